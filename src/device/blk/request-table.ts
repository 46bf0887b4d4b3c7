import { BlockRequests } from "../../backend/block/types.ts";
import type { MemoryRegion } from "../../memory/memory-region.ts";
import type { RunningQueue } from "../running-queue.ts";
import { SegmentList } from "../segment-list.ts";
import type { RangeList } from "./ranges.ts";

/** No request. */
export const NONE = -1;

/**
 * Requests in flight, in parallel arrays. A slot is a virtio request; it is also the back end's slot of the I/O that it began.
 * Requests that were merged into that I/O hang on it by `next`.
 */
export class RequestTable {
  readonly io: BlockRequests;
  free: number;

  // Of a request.
  readonly running: (RunningQueue | undefined)[];
  readonly chain: Uint16Array;
  /** Next request of the same I/O, or NONE. */
  readonly next: Int32Array;
  readonly statusRegion: (MemoryRegion | undefined)[];
  readonly statusOffset: Float64Array;
  /** Data bytes that it moves in all. */
  readonly bytes: Float64Array;
  /** Device-writable bytes in front of the status byte. */
  readonly room: Float64Array;
  /** Those of them that were written when it was taken, behind what it reads. */
  readonly filled: Float64Array;
  readonly segments: SegmentList[];
  readonly staging: (Uint8Array | undefined)[];
  /** Of a request that names ranges instead of moving data. */
  readonly ranges: (RangeList | undefined)[];

  // Of an I/O, at the index of its first request.
  /** Last request of the list. */
  readonly tail: Int32Array;
  /** Bytes that earlier parts of a large request have moved. */
  readonly done: Float64Array;
  /** 1 while the back end has it. */
  readonly busy: Uint8Array;
  /** 1 for a write whose queue was stopped while the back end had it. */
  readonly disowned: Uint8Array;

  readonly #freeList: Int32Array;

  constructor(slots: number) {
    this.io = new BlockRequests(slots);
    this.free = slots;
    this.running = new Array(slots).fill(undefined);
    this.chain = new Uint16Array(slots);
    this.next = new Int32Array(slots).fill(NONE);
    this.statusRegion = new Array(slots).fill(undefined);
    this.statusOffset = new Float64Array(slots);
    this.bytes = new Float64Array(slots);
    this.room = new Float64Array(slots);
    this.filled = new Float64Array(slots);
    this.segments = Array.from({ length: slots }, () => new SegmentList());
    this.staging = new Array(slots).fill(undefined);
    this.ranges = new Array(slots).fill(undefined);
    this.tail = new Int32Array(slots);
    this.done = new Float64Array(slots);
    this.busy = new Uint8Array(slots);
    this.disowned = new Uint8Array(slots);
    this.#freeList = Int32Array.from({ length: slots }, (_, i) => slots - 1 - i);
  }

  /** Takes a free slot; there must be one. */
  take(running: RunningQueue, chain: number, room: number, region: MemoryRegion, offset: number): number {
    const slot = this.#freeList[--this.free] as number;
    this.running[slot] = running;
    this.chain[slot] = chain;
    this.next[slot] = NONE;
    this.tail[slot] = slot;
    this.statusRegion[slot] = region;
    this.statusOffset[slot] = offset;
    this.bytes[slot] = 0;
    this.room[slot] = room;
    this.filled[slot] = 0;
    this.done[slot] = 0;
    (this.segments[slot] as SegmentList).clear();
    return slot;
  }

  release(slot: number): void {
    this.running[slot] = undefined;
    this.statusRegion[slot] = undefined;
    this.ranges[slot] = undefined;
    this.#freeList[this.free++] = slot;
  }

  /** Appends the list of I/O `other` to that of I/O `first`. */
  join(first: number, other: number): void {
    this.next[this.tail[first] as number] = other;
    this.tail[first] = this.tail[other] as number;
  }
}
