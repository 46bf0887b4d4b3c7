import {
  BLOCK_DISCARD,
  BLOCK_FLUSH,
  BLOCK_IO_ERROR,
  BLOCK_MAX_PIECES,
  BLOCK_OK,
  BLOCK_READ,
  BLOCK_UNSUPPORTED,
  BLOCK_WRITE,
  type BlockBackend,
  type IoVector,
} from "../../backend/block/types.ts";
import type { GuestMemory } from "../../memory/guest-memory.ts";
import type { MemoryRegion } from "../../memory/memory-region.ts";
import { VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP } from "../../spec/blk.ts";
import type { Tracer } from "../../trace/types.ts";
import type { RunningQueue } from "../running-queue.ts";
import type { SegmentList } from "../segment-list.ts";
import type { RequestFrame } from "./frame.ts";
import type { RangeList } from "./ranges.ts";
import { NONE, RequestTable } from "./request-table.ts";
import { StagingPool } from "./staging.ts";
import { ioBegin, ioEnd, merge, requestEnd } from "./trace.ts";

/** Bytes of one I/O; a larger request is worked off in parts of this, neighbours are merged up to it. */
const MAX_IO_BYTES = 2 * 1024 * 1024;
/** Bytes of own buffers lent to the back end at a time, and kept when idle. */
const STAGING_BYTES = 32 * 1024 * 1024;
const STAGING_IDLE = 8 * 1024 * 1024;
/** Bytes begun in one turn before other work of the thread gets its own. */
const TURN_BYTES = 64 * 1024 * 1024;

/** What a device has done since it was made. */
export interface BlkStats {
  reads: number;
  writes: number;
  flushes: number;
  readBytes: number;
  writtenBytes: number;
  discards: number;
  /** Write zeroes and secure erase requests. */
  zeroes: number;
  /** Requests answered with VIRTIO_BLK_S_IOERR. */
  errors: number;
  /** Requests answered with VIRTIO_BLK_S_UNSUPP. */
  unsupported: number;
  /** Requests that went along in the I/O of a neighbour. */
  merged: number;
}

/** The device around the I/O. */
export interface BlkIoHost {
  readonly memory: GuestMemory;
  readonly tracer: Tracer | undefined;
  /** True while a write may complete before it is durable. */
  readonly writeback: boolean;
  readonly stats: BlkStats;
  /** Requests of this queue were pushed; it has to be published. */
  pushed(running: RunningQueue): void;
  /** A completion came outside `submit`. */
  completed(): void;
  /** An I/O failed; the requests in it are answered with an error. */
  failed(op: number): void;
  resized(capacity: number): void;
  /** The back end threw, which it must not. The guest gets I/O errors. */
  threw(error: unknown): void;
  /** Asks for {@link BlkIo.nextTurn} in a later turn. */
  deferred(): void;
}

/**
 * The way of requests through the back end: neighbours are merged into one I/O, large requests are cut into several, writes
 * without a write cache are followed by a flush, completions fan out to the requests. Guest memory is handed to the back end
 * where it stays put (or where the data is at hand); otherwise everything goes through own buffers, and a queue that was stopped
 * meanwhile is not touched.
 */
export class BlkIo {
  /** Writes on their way whose queue was stopped. */
  disownedWrites = 0;
  readonly #host: BlkIoHost;
  readonly #backend: BlockBackend;
  readonly #table: RequestTable;
  readonly #staging = new StagingPool(STAGING_BYTES, STAGING_IDLE);
  /** Requests in flight, by queue. */
  readonly #inFlight: Int32Array;
  /** I/O that new neighbours may still join, or NONE. */
  #open = NONE;
  #openEnd = 0;
  /** I/O to be submitted next; the second array is in the back end's hands meanwhile. */
  #pending: Int32Array;
  #spare: Int32Array;
  #pendingCount = 0;
  /** Writes that wait for the flush that makes them durable, as one I/O, or NONE. */
  #unflushed = NONE;
  /** Large requests whose next part is due. */
  #continuing: number[] = [];
  #turnBytes = 0;
  /** What the back end said for the next submit; undefined when it was not asked yet. */
  #now: boolean | undefined;

  constructor(host: BlkIoHost, backend: BlockBackend, slots: number, queues: number) {
    this.#host = host;
    this.#backend = backend;
    this.#table = new RequestTable(slots);
    this.#pending = new Int32Array(slots);
    this.#spare = new Int32Array(slots);
    this.#inFlight = new Int32Array(queues);
    backend.attach(this.#table.io, {
      complete: (slot, generation, result) => this.#complete(slot, generation, result),
      completed: () => host.completed(),
      resized: (capacity) => host.resized(capacity),
    });
  }

  /** Requests in flight on queue `index`, or on all. */
  inFlight(index?: number): number {
    if (index !== undefined) return this.#inFlight[index] ?? 0;
    return this.#table.io.slots - this.#table.free;
  }

  get full(): boolean {
    return this.#table.free === 0;
  }

  /** True when this turn has begun as much as it may. */
  get turnIsOver(): boolean {
    return this.#turnBytes >= TURN_BYTES;
  }

  nextTurn(): void {
    this.#turnBytes = 0;
  }

  /**
   * Takes a slot for a read or write of `bytes` > 0 bytes; the caller fills in its segments and then calls {@link begin}.
   * NONE while own buffers are short. There must be a free slot.
   */
  transfer(running: RunningQueue, chain: number, frame: RequestFrame, bytes: number, descriptors: number): number {
    let staging: Uint8Array | undefined;
    const stays = this.#backend.inline || this.#host.memory.fixed;
    if (descriptors > BLOCK_MAX_PIECES || !(stays || this.#finishesNow())) {
      staging = this.#staging.take(Math.min(bytes, MAX_IO_BYTES));
      if (staging === undefined) return NONE;
    }
    const slot = this.#take(running, chain, frame);
    this.#table.staging[slot] = staging;
    this.#table.bytes[slot] = bytes;
    this.#table.io.now[slot] = stays || staging !== undefined ? 0 : 1;
    return slot;
  }

  #finishesNow(): boolean {
    this.#now ??= this.#backend.finishesNow?.() ?? false;
    return this.#now;
  }

  /** Gives back a slot that was not begun. */
  cancel(slot: number): void {
    this.#release(slot);
  }

  /** The caller has written `bytes` bytes of the driver's room for data, behind those that are read. */
  filled(slot: number, bytes: number): void {
    this.#table.filled[slot] = bytes;
  }

  /** Counts bytes that were written without any I/O against this turn's budget. */
  charge(bytes: number): void {
    this.#turnBytes += bytes;
  }

  segments(slot: number): SegmentList {
    return this.#table.segments[slot] as SegmentList;
  }

  flush(running: RunningQueue, chain: number, frame: RequestFrame): void {
    this.#enqueue(this.#take(running, chain, frame), BLOCK_FLUSH, 0);
  }

  /** Begins a request that names ranges; there must be a free slot, and at least one range. */
  beginRanges(running: RunningQueue, chain: number, frame: RequestFrame, ranges: RangeList): void {
    const slot = this.#take(running, chain, frame);
    this.#table.ranges[slot] = ranges;
    this.#nextRange(slot, ranges);
  }

  /** One range after the other, each an I/O of its own. */
  #nextRange(slot: number, ranges: RangeList): void {
    const { io } = this.#table;
    const i = ranges.begun++;
    io.offset[slot] = ranges.offset[i] as number;
    io.flags[slot] = ranges.flags[i] as number;
    this.#enqueue(slot, ranges.op, 0);
    io.length[slot] = ranges.length[i] as number;
  }

  /** Disowns what a stopped queue has in flight. */
  stopped(running: RunningQueue): void {
    const table = this.#table;
    for (let slot = 0; slot < table.io.slots; slot++) {
      if (table.busy[slot] === 0 || table.running[slot] !== running || !changes(table.io.op[slot] as number)) continue;
      table.disowned[slot] = 1;
      this.disownedWrites++;
    }
  }

  #take(running: RunningQueue, chain: number, frame: RequestFrame): number {
    this.#inFlight[running.index] = (this.#inFlight[running.index] as number) + 1;
    return this.#table.take(running, chain, frame.writableBytes, frame.statusRegion, frame.statusOffset);
  }

  /** Joins the slot's request to its neighbour in front, or makes it an I/O of its own. `offset` is in bytes. */
  begin(slot: number, op: number, offset: number): void {
    const { io } = this.#table;
    const bytes = this.#table.bytes[slot] as number;
    this.#turnBytes += Math.min(bytes, MAX_IO_BYTES);
    const head = this.#open;
    if (head !== NONE && io.op[head] === op && this.#openEnd === offset && this.#join(head, slot, bytes)) return;
    io.offset[slot] = offset;
    if (!this.#enqueue(slot, op, Math.min(bytes, MAX_IO_BYTES))) {
      this.#finishAll(slot, op, BLOCK_IO_ERROR);
      return;
    }
    if (bytes > MAX_IO_BYTES) return;
    this.#open = slot;
    this.#openEnd = offset + bytes;
  }

  /** Lets a neighbour go along in the I/O `head`, if it fits. */
  #join(head: number, slot: number, bytes: number): boolean {
    const table = this.#table;
    const vector = table.io.vector[head];
    if (vector === undefined || (table.io.length[head] as number) + bytes > MAX_IO_BYTES) return false;
    const pieces = table.staging[slot] === undefined ? (table.segments[slot] as SegmentList).count : 1;
    if (vector.count + pieces > BLOCK_MAX_PIECES) return false;
    this.#fill(head, slot, bytes);
    if (table.io.now[slot] === 1) table.io.now[head] = 1;
    table.io.length[head] = (table.io.length[head] as number) + bytes;
    table.join(head, slot);
    this.#host.tracer?.emit(merge(table, head, slot));
    this.#openEnd += bytes;
    this.#host.stats.merged++;
    return true;
  }

  /** Makes the slot's next I/O. False when the guest memory that it needs is gone: then nothing was done. */
  #enqueue(slot: number, op: number, bytes: number): boolean {
    const { io, busy } = this.#table;
    io.vector[slot]?.clear();
    io.op[slot] = op;
    io.length[slot] = bytes;
    this.#open = NONE;
    if (bytes > 0 && !this.#fill(slot, slot, bytes)) return false;
    io.generation[slot] = (io.generation[slot] as number) + 1;
    busy[slot] = 1;
    this.#pending[this.#pendingCount++] = slot;
    return true;
  }

  /** Adds the next `bytes` bytes of a request to the vector of I/O `head`. False when some of them are gone. */
  #fill(head: number, slot: number, bytes: number): boolean {
    const { io, segments, staging } = this.#table;
    const vector = io.vector[head] as IoVector;
    const list = segments[slot] as SegmentList;
    const buffer = staging[slot];
    if (buffer === undefined) return list.toVector(vector, bytes);
    vector.add(buffer, 0, bytes);
    return io.op[head] !== BLOCK_WRITE || list.copyTo(buffer, bytes);
  }

  /** Hands everything that was begun to the back end. */
  submit(): void {
    for (;;) {
      this.#open = NONE;
      this.#now = undefined;
      if (this.#pendingCount === 0 && this.#unflushed !== NONE) {
        const first = this.#unflushed;
        this.#unflushed = NONE;
        this.#enqueue(first, BLOCK_FLUSH, 0);
      }
      const count = this.#pendingCount;
      if (count === 0) return;
      const slots = this.#pending;
      this.#pending = this.#spare;
      this.#spare = slots;
      this.#pendingCount = 0;
      if (this.#host.tracer !== undefined)
        for (let i = 0; i < count; i++) this.#host.tracer.emit(ioBegin(this.#table, slots[i] as number));
      try {
        this.#backend.submit(slots, count);
      } catch (error) {
        this.#host.threw(error);
        this.#failAll(slots, count);
      }
    }
  }

  /** Answers what of a batch the back end has not answered. */
  #failAll(slots: Int32Array, count: number): void {
    const { generation } = this.#table.io;
    for (let i = 0; i < count; i++) {
      const slot = slots[i] as number;
      this.#complete(slot, generation[slot] as number, BLOCK_IO_ERROR);
    }
  }

  /** Begins the next part of the large requests, as far as this turn's budget goes. {@link submit} is the caller's. */
  goOn(): void {
    if (this.#continuing.length === 0) return;
    const slots = this.#continuing;
    this.#continuing = [];
    for (const slot of slots) {
      if (this.turnIsOver) this.#continuing.push(slot);
      else this.#nextPart(slot);
    }
    if (this.#continuing.length > 0) this.#host.deferred();
  }

  #nextPart(slot: number): void {
    const { io, bytes, done, running, ranges } = this.#table;
    const op = io.op[slot] as number;
    const list = ranges[slot];
    if (list !== undefined && running[slot]?.live === true) {
      this.#nextRange(slot, list);
      return;
    }
    const part = Math.min((bytes[slot] as number) - (done[slot] as number), MAX_IO_BYTES);
    this.#turnBytes += part;
    if (running[slot]?.live !== true || !this.#enqueue(slot, op, part)) this.#finishAll(slot, op, BLOCK_IO_ERROR);
  }

  #complete(slot: number, generation: number, result: number): void {
    const table = this.#table;
    if (table.busy[slot] !== 1 || table.io.generation[slot] !== generation) return;
    table.busy[slot] = 0;
    this.#host.tracer?.emit(ioEnd(slot, result));
    table.io.vector[slot]?.clear();
    const op = table.io.op[slot] as number;
    if (table.disowned[slot] === 1) {
      table.disowned[slot] = 0;
      this.disownedWrites--;
    }
    if (op === BLOCK_READ && !this.#deliver(slot, result === BLOCK_OK)) result = BLOCK_IO_ERROR;
    if (result === BLOCK_OK && op !== BLOCK_FLUSH) {
      if (this.#hasMore(slot)) return;
      if (changes(op) && !this.#host.writeback) {
        if (this.#unflushed === NONE) this.#unflushed = slot;
        else table.join(this.#unflushed, slot);
        return;
      }
    }
    this.#finishAll(slot, op, result);
  }

  #finishAll(slot: number, op: number, result: number): void {
    if (result === BLOCK_IO_ERROR) this.#host.failed(op);
    const { next } = this.#table;
    for (let request = slot; request !== NONE; ) {
      const following = next[request] as number;
      this.#finish(request, op, result);
      request = following;
    }
  }

  /**
   * Brings what was read to guest memory, from own buffers where there are some, and marks it. False when some of that memory is
   * gone. What a failed read left in guest memory is marked too.
   */
  #deliver(slot: number, ok: boolean): boolean {
    const { segments, staging, running, bytes, next, io } = this.#table;
    const last = io.length[slot] as number;
    for (let request = slot; request !== NONE; request = next[request] as number) {
      const buffer = staging[request];
      const list = segments[request] as SegmentList;
      if (running[request]?.live !== true) continue;
      if (buffer === undefined) {
        if (this.#host.memory.observed) list.markMoved(this.#host.memory);
      } else if (ok) ok = list.copyFrom(buffer, Math.min(bytes[request] as number, last), this.#host.memory);
    }
    return ok;
  }

  /** Puts a request that is larger than an I/O may be down for its next part. False when all of it is done. */
  #hasMore(slot: number): boolean {
    const { io, done, bytes, next, running } = this.#table;
    const list = this.#table.ranges[slot];
    if (list !== undefined) {
      if (list.begun === list.count || running[slot]?.live !== true) return false;
      this.#continuing.push(slot);
      this.#host.deferred();
      return true;
    }
    const moved = io.length[slot] as number;
    const left = (bytes[slot] as number) - (done[slot] as number) - moved;
    if (next[slot] !== NONE || left <= 0 || running[slot]?.live !== true) return false;
    done[slot] = (done[slot] as number) + moved;
    io.offset[slot] = (io.offset[slot] as number) + moved;
    this.#continuing.push(slot);
    this.#host.deferred();
    return true;
  }

  #finish(request: number, op: number, result: number): void {
    const table = this.#table;
    const running = table.running[request] as RunningQueue;
    const room = table.room[request] as number;
    const read = op === BLOCK_READ ? (table.bytes[request] as number) : 0;
    const moved = result === BLOCK_OK ? read + (table.filled[request] as number) : 0;
    this.#count(table.ranges[request]?.op ?? op, result, table.bytes[request] as number);
    if (running.live) {
      const status =
        result === BLOCK_OK ? VIRTIO_BLK_S_OK : result === BLOCK_UNSUPPORTED ? VIRTIO_BLK_S_UNSUPP : VIRTIO_BLK_S_IOERR;
      writeStatus(
        this.#host.memory,
        table.statusRegion[request] as MemoryRegion,
        table.statusOffset[request] as number,
        status,
      );
      this.#host.tracer?.emit(requestEnd(running.index, table.chain[request] as number, status));
      // The length counts from the first writable byte: the status byte only when nothing in front of it was left out.
      running.queue.push(table.chain[request] as number, moved === room ? room + 1 : moved);
      this.#host.pushed(running);
    }
    this.#release(request);
  }

  #release(request: number): void {
    const table = this.#table;
    const { index } = table.running[request] as RunningQueue;
    const buffer = table.staging[request];
    if (buffer !== undefined) {
      table.staging[request] = undefined;
      this.#staging.giveBack(buffer);
    }
    this.#inFlight[index] = (this.#inFlight[index] as number) - 1;
    table.release(request);
  }

  #count(op: number, result: number, bytes: number): void {
    const { stats } = this.#host;
    if (result === BLOCK_UNSUPPORTED) stats.unsupported++;
    else if (result !== BLOCK_OK) stats.errors++;
    else if (op === BLOCK_READ) {
      stats.reads++;
      stats.readBytes += bytes;
    } else if (op === BLOCK_DISCARD) stats.discards++;
    else if (op !== BLOCK_WRITE && op !== BLOCK_FLUSH) stats.zeroes++;
    else if (bytes > 0) {
      stats.writes++;
      stats.writtenBytes += bytes;
    } else stats.flushes++;
  }
}

/** Whether an operation changes what is on the disk. */
const changes = (op: number): boolean => op !== BLOCK_READ && op !== BLOCK_FLUSH;

/** Writes a request's status byte. */
export function writeStatus(memory: GuestMemory, region: MemoryRegion, offset: number, status: number): void {
  region.u8[offset] = status;
  memory.markWritten(region.base + offset, 1);
}
