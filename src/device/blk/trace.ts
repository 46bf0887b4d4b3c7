import {
  BLOCK_DISCARD,
  BLOCK_FLUSH,
  BLOCK_OK,
  BLOCK_READ,
  BLOCK_SECURE_ERASE,
  BLOCK_UNSUPPORTED,
  BLOCK_WRITE,
  BLOCK_WRITE_ZEROES,
} from "../../backend/block/types.ts";
import {
  VIRTIO_BLK_S_IOERR,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_S_UNSUPP,
  VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE,
  VIRTIO_BLK_S_ZONE_INVALID_CMD,
  VIRTIO_BLK_S_ZONE_OPEN_RESOURCE,
  VIRTIO_BLK_S_ZONE_UNALIGNED_WP,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_GET_ID,
  VIRTIO_BLK_T_GET_LIFETIME,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_SECURE_ERASE,
  VIRTIO_BLK_T_WRITE_ZEROES,
  VIRTIO_BLK_T_ZONE_APPEND,
  VIRTIO_BLK_T_ZONE_CLOSE,
  VIRTIO_BLK_T_ZONE_FINISH,
  VIRTIO_BLK_T_ZONE_OPEN,
  VIRTIO_BLK_T_ZONE_REPORT,
  VIRTIO_BLK_T_ZONE_RESET,
  VIRTIO_BLK_T_ZONE_RESET_ALL,
} from "../../spec/blk.ts";
import type { IoBeginEvent, IoEndEvent, MergeEvent, RequestBeginEvent, RequestEndEvent } from "../../trace/types.ts";
import type { RunningQueue } from "../running-queue.ts";
import type { RequestFrame } from "./frame.ts";
import type { RequestTable } from "./request-table.ts";

/** What traces say of requests. Only called while there is a tracer. */

const TYPES: ReadonlyMap<number, string> = new Map([
  [VIRTIO_BLK_T_IN, "IN"],
  [VIRTIO_BLK_T_OUT, "OUT"],
  [VIRTIO_BLK_T_FLUSH, "FLUSH"],
  [VIRTIO_BLK_T_GET_ID, "GET_ID"],
  [VIRTIO_BLK_T_GET_LIFETIME, "GET_LIFETIME"],
  [VIRTIO_BLK_T_DISCARD, "DISCARD"],
  [VIRTIO_BLK_T_WRITE_ZEROES, "WRITE_ZEROES"],
  [VIRTIO_BLK_T_SECURE_ERASE, "SECURE_ERASE"],
  [VIRTIO_BLK_T_ZONE_APPEND, "ZONE_APPEND"],
  [VIRTIO_BLK_T_ZONE_REPORT, "ZONE_REPORT"],
  [VIRTIO_BLK_T_ZONE_OPEN, "ZONE_OPEN"],
  [VIRTIO_BLK_T_ZONE_CLOSE, "ZONE_CLOSE"],
  [VIRTIO_BLK_T_ZONE_FINISH, "ZONE_FINISH"],
  [VIRTIO_BLK_T_ZONE_RESET, "ZONE_RESET"],
  [VIRTIO_BLK_T_ZONE_RESET_ALL, "ZONE_RESET_ALL"],
]);

const STATUSES: ReadonlyMap<number, string> = new Map([
  [VIRTIO_BLK_S_OK, "OK"],
  [VIRTIO_BLK_S_IOERR, "IOERR"],
  [VIRTIO_BLK_S_UNSUPP, "UNSUPP"],
  [VIRTIO_BLK_S_ZONE_INVALID_CMD, "ZONE_INVALID_CMD"],
  [VIRTIO_BLK_S_ZONE_UNALIGNED_WP, "ZONE_UNALIGNED_WP"],
  [VIRTIO_BLK_S_ZONE_OPEN_RESOURCE, "ZONE_OPEN_RESOURCE"],
  [VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE, "ZONE_ACTIVE_RESOURCE"],
]);

const OPERATIONS: ReadonlyMap<number, string> = new Map([
  [BLOCK_READ, "read"],
  [BLOCK_WRITE, "write"],
  [BLOCK_FLUSH, "flush"],
  [BLOCK_DISCARD, "discard"],
  [BLOCK_WRITE_ZEROES, "write-zeroes"],
  [BLOCK_SECURE_ERASE, "secure-erase"],
]);

export function requestBegin(queue: number, head: number, frame: RequestFrame): RequestBeginEvent {
  const { type, sector, readableBytes, writableBytes } = frame;
  const hasSector = type === VIRTIO_BLK_T_IN || type === VIRTIO_BLK_T_OUT || type >= VIRTIO_BLK_T_ZONE_APPEND;
  const place = hasSector ? { sector } : {};
  const length = type === VIRTIO_BLK_T_IN ? writableBytes : readableBytes;
  return { kind: "request-begin", queue, head, type: TYPES.get(type) ?? type, ...place, length };
}

export function requestEnd(queue: number, head: number, status: number): RequestEndEvent {
  return { kind: "request-end", queue, head, status: STATUSES.get(status) ?? String(status) };
}

export function ioBegin({ io }: RequestTable, slot: number): IoBeginEvent {
  const op = OPERATIONS.get(io.op[slot] as number) ?? "?";
  if (io.op[slot] === BLOCK_FLUSH) return { kind: "io-begin", slot, op };
  return { kind: "io-begin", slot, op, offset: io.offset[slot] as number, length: io.length[slot] as number };
}

/** The request in `slot` goes along with that in `head`. */
export function merge(table: RequestTable, head: number, slot: number): MergeEvent {
  const { index: queue } = table.running[slot] as RunningQueue;
  return { kind: "merge", queue, head: table.chain[slot] as number, into: table.chain[head] as number };
}

export function ioEnd(slot: number, result: number): IoEndEvent {
  const text = result === BLOCK_OK ? "ok" : result === BLOCK_UNSUPPORTED ? "unsupported" : "error";
  return { kind: "io-end", slot, result: text };
}
