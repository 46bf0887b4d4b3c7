import { BLOCK_READ } from "../../backend/block/types.ts";
import type { GuestMemory } from "../../memory/guest-memory.ts";
import {
  VIRTIO_BLK_APPEND_SECTOR_SIZE as APPENDED,
  VIRTIO_BLK_S_IOERR,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_S_UNSUPP,
  VIRTIO_BLK_S_ZONE_INVALID_CMD,
  VIRTIO_BLK_SECTOR_SIZE,
  VIRTIO_BLK_T_ZONE_CLOSE,
  VIRTIO_BLK_T_ZONE_FINISH,
  VIRTIO_BLK_T_ZONE_OPEN,
  VIRTIO_BLK_T_ZONE_REPORT,
  VIRTIO_BLK_T_ZONE_RESET,
  VIRTIO_BLK_T_ZONE_RESET_ALL,
  VIRTIO_BLK_ZONE_REPORT_HEADER_SIZE,
} from "../../spec/blk.ts";
import type { ChainBatch } from "../../virtqueue/index.ts";
import type { RunningQueue } from "../running-queue.ts";
import { SegmentList } from "../segment-list.ts";
import type { RequestFrame } from "./frame.ts";
import type { BlkIo } from "./io.ts";
import type { RangeList } from "./ranges.ts";
import { NONE } from "./request-table.ts";
import type { ZonedSettings } from "./zoned-config.ts";
import { ZoneMap } from "./zones.ts";

export { APPENDED };

/** Unwritten bytes of a zone that a read may ask for; they are filled in at once. */
const MAX_UNWRITTEN = 64 * 1024 * 1024;

/** The device around the zones. The frame is that of the chain at hand. */
export interface ZonedHost {
  readonly memory: GuestMemory;
  readonly frame: RequestFrame;
  readonly io: BlkIo;
  readonly readOnly: boolean;
  /** VIRTIO_BLK_F_ZONED is in force. */
  readonly negotiated: boolean;
  /** For traces: a request goes to the back end. */
  begun(running: RunningQueue, batch: ChainBatch, c: number): void;
  /** Answers with VIRTIO_BLK_S_OK: `filled` of the writable data bytes were written. */
  answer(running: RunningQueue, batch: ChainBatch, c: number, filled: number): void;
  answerBytes(running: RunningQueue, batch: ChainBatch, c: number, bytes: Uint8Array): void;
  refuse(running: RunningQueue, batch: ChainBatch, c: number, status: number): void;
}

/** What a zoned disk does beyond any other: the requests about zones, and reads of what was never written. */
export class ZonedRequests {
  readonly zones: ZoneMap;
  readonly #host: ZonedHost;
  readonly #maxAppend: number;
  readonly #small = new SegmentList();

  constructor(settings: ZonedSettings, host: ZonedHost) {
    this.zones = new ZoneMap(settings);
    this.#host = host;
    this.#maxAppend = settings.maxAppendSectors * VIRTIO_BLK_SECTOR_SIZE;
  }

  /** Answers a request that only concerns the state of zones; false when it is none. */
  manage(running: RunningQueue, batch: ChainBatch, c: number): boolean {
    const host = this.#host;
    if (!host.negotiated) return false;
    const { type, sector, writableBytes } = host.frame;
    if (type === VIRTIO_BLK_T_ZONE_REPORT) {
      if (sector >= this.zones.layout.capacity || writableBytes < VIRTIO_BLK_ZONE_REPORT_HEADER_SIZE)
        host.refuse(running, batch, c, VIRTIO_BLK_S_ZONE_INVALID_CMD);
      else host.answerBytes(running, batch, c, this.zones.report(sector, writableBytes));
      return true;
    }
    if (!CHANGES.has(type)) return false;
    const status = host.readOnly ? VIRTIO_BLK_S_IOERR : this.#change(type, sector);
    if (status === VIRTIO_BLK_S_OK) host.answer(running, batch, c, 0);
    else host.refuse(running, batch, c, status);
    return true;
  }

  #change(type: number, sector: number): number {
    if (type !== VIRTIO_BLK_T_ZONE_RESET_ALL) return this.zones.manage(type, sector);
    this.zones.resetAll();
    return VIRTIO_BLK_S_OK;
  }

  /**
   * Makes a ZONE_APPEND a write: sets the frame's sector, and the driver's `append_sector`, which is only defined after success and can
   * be written now. Anything but VIRTIO_BLK_S_OK refuses it.
   */
  beginAppend(batch: ChainBatch, c: number): number {
    const { frame, memory, negotiated } = this.#host;
    if (!negotiated || this.#maxAppend === 0) return VIRTIO_BLK_S_UNSUPP;
    const at = frame.sector < this.zones.layout.capacity ? this.zones.appendSector(frame.sector) : -1;
    if (at < 0 || frame.readableBytes > this.#maxAppend || frame.writableBytes < APPENDED)
      return VIRTIO_BLK_S_ZONE_INVALID_CMD;
    const sector = new DataView(new ArrayBuffer(APPENDED));
    sector.setUint32(0, at % 2 ** 32, true);
    sector.setUint32(4, Math.floor(at / 2 ** 32), true);
    this.#small.clear();
    frame.writableData(memory, batch, c, APPENDED, this.#small);
    this.#small.copyFrom(new Uint8Array(sector.buffer), APPENDED, memory);
    frame.sector = at;
    return VIRTIO_BLK_S_OK;
  }

  /**
   * Takes a read: what is behind the write pointer reads as zeros, whatever the back end has there (device: Block Device / Device
   * Operation #27, #28). False when it has to wait.
   */
  read(running: RunningQueue, batch: ChainBatch, c: number): boolean {
    const { frame, io, memory } = this.#host;
    const { sector, writableBytes: bytes } = frame;
    const sectors = bytes / VIRTIO_BLK_SECTOR_SIZE;
    const written = this.zones.readable(sector, sectors) * VIRTIO_BLK_SECTOR_SIZE;
    const unwritten = bytes - written;
    const status = this.zones.checkRead(sector, sectors) || (unwritten > MAX_UNWRITTEN ? VIRTIO_BLK_S_IOERR : 0);
    if (status !== VIRTIO_BLK_S_OK) {
      this.#host.refuse(running, batch, c, status);
      return true;
    }
    if (written > 0) {
      const slot = io.transfer(running, batch.id[c] as number, frame, written, batch.writable[c] as number);
      if (slot === NONE) return false;
      this.#host.begun(running, batch, c);
      frame.writableData(memory, batch, c, written, io.segments(slot));
      io.filled(slot, unwritten);
      io.begin(slot, BLOCK_READ, sector * VIRTIO_BLK_SECTOR_SIZE);
    }
    this.#small.clear();
    frame.writableData(memory, batch, c, unwritten, this.#small, written);
    this.#small.zero(memory);
    io.charge(unwritten);
    if (written === 0) this.#host.answer(running, batch, c, bytes);
    return true;
  }

  /** Ranges to be erased are zones to be reset, all or none (device: Block Device / Device Operation #30, #31). */
  erase({ count, offset, length }: RangeList): number {
    const sectors = (list: readonly number[], i: number): number => (list[i] as number) / VIRTIO_BLK_SECTOR_SIZE;
    for (let i = 0; i < count; i++)
      if (!this.zones.canReset(sectors(offset, i), sectors(length, i))) return VIRTIO_BLK_S_ZONE_INVALID_CMD;
    for (let i = 0; i < count; i++) this.zones.resetRange(sectors(offset, i), sectors(length, i));
    return VIRTIO_BLK_S_OK;
  }
}

const CHANGES: ReadonlySet<number> = new Set([
  VIRTIO_BLK_T_ZONE_OPEN,
  VIRTIO_BLK_T_ZONE_CLOSE,
  VIRTIO_BLK_T_ZONE_FINISH,
  VIRTIO_BLK_T_ZONE_RESET,
  VIRTIO_BLK_T_ZONE_RESET_ALL,
]);
