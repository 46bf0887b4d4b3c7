import { hex, VirtkitError } from "../common/error.ts";
import type { GuestMemory } from "../memory/guest-memory.ts";

/** A range of memory that the device may be told of. */
export interface DmaSegment {
  /** Guest-physical address. */
  readonly address: number;
  /** Bytes, 1 or more. */
  readonly length: number;
}

/** Memory that a driver shares with its device. Zeroed when allocated. */
export class DmaBuffer implements DmaSegment {
  readonly address: number;
  readonly length: number;
  readonly #memory: GuestMemory;

  constructor(memory: GuestMemory, address: number, length: number) {
    this.#memory = memory;
    this.address = address;
    this.length = length;
  }

  /** The bytes, for this turn of the event loop only: memory may move, so ask again in the next one. */
  get bytes(): Uint8Array {
    const { regions } = this.#memory;
    const region = regions[this.#memory.locate(this.address, this.length, true)];
    if (region === undefined)
      throw new VirtkitError("ERR_VIRTKIT_DMA_GONE", `the memory at ${hex(this.address)} was taken away`);
    return region.u8.subarray(this.address - region.base, this.address - region.base + this.length);
  }

  /** Copies `from` in at `offset` and marks it written. */
  write(from: Uint8Array, offset = 0): void {
    this.bytes.subarray(offset, offset + from.length).set(from);
    this.#memory.markWritten(this.address + offset, from.length);
  }

  /** A copy of `length` bytes from `offset` on. */
  read(offset = 0, length = this.length - offset): Uint8Array {
    return this.bytes.slice(offset, offset + length);
  }

  /** A part of this buffer; freeing stays the business of the whole. */
  slice(offset: number, length: number): DmaBuffer {
    if (offset < 0 || length < 1 || offset + length > this.length)
      throw new VirtkitError("ERR_VIRTKIT_DMA_RANGE", `no ${length} bytes at ${offset} in a buffer of ${this.length}`);
    return new DmaBuffer(this.#memory, this.address + offset, length);
  }
}

/** Every allocation starts at a multiple of this, and takes a multiple of it. */
const GRAIN = 16;

/**
 * Hands out guest-physical memory to drivers from one range of it: first fit, neighbours are merged when they come
 * back.
 */
export class DmaAllocator {
  readonly memory: GuestMemory;
  /** Free ranges in ascending order; no two touch. */
  readonly #start: number[];
  readonly #end: number[];

  /**
   * @param base a multiple of 16; `length` bytes from there on belong to the allocator and lie in one writable region
   * @throws ERR_VIRTKIT_DMA_RANGE otherwise
   */
  constructor(memory: GuestMemory, base: number, length: number) {
    if (base % GRAIN !== 0 || length < GRAIN || memory.locate(base, length, true) < 0)
      throw new VirtkitError(
        "ERR_VIRTKIT_DMA_RANGE",
        `${length} bytes at ${hex(base)} are not a range of writable guest memory that starts at a multiple of ${GRAIN}`,
      );
    this.memory = memory;
    this.#start = [base];
    this.#end = [base + length - (length % GRAIN)];
  }

  /** Bytes that are free, in however many pieces. */
  get free(): number {
    return this.#start.reduce((sum, start, i) => sum + (this.#end[i] as number) - start, 0);
  }

  /**
   * @param length bytes, 1 or more
   * @param align a power of two
   * @throws ERR_VIRTKIT_DMA_EXHAUSTED when there is no room
   */
  alloc(length: number, align = GRAIN): DmaBuffer {
    const step = Math.max(align, GRAIN);
    const bytes = Math.ceil(Math.max(length, 1) / GRAIN) * GRAIN;
    for (let i = 0; i < this.#start.length; i++) {
      const start = this.#start[i] as number;
      const end = this.#end[i] as number;
      const address = Math.ceil(start / step) * step;
      if (address + bytes > end) continue;
      this.#take(i, address, address + bytes);
      const buffer = new DmaBuffer(this.memory, address, Math.max(length, 1));
      buffer.bytes.fill(0);
      return buffer;
    }
    throw new VirtkitError(
      "ERR_VIRTKIT_DMA_EXHAUSTED",
      `no ${length} bytes of memory for the driver; ${this.free} are free: give it more, or smaller queues`,
    );
  }

  /** Gives a buffer back, once. The device must have let go of it (its queue was reset, or the buffer was used). */
  release(buffer: DmaBuffer): void {
    const start = buffer.address;
    const end = start + Math.ceil(buffer.length / GRAIN) * GRAIN;
    let i = 0;
    while (i < this.#start.length && (this.#start[i] as number) < start) i++;
    const overlaps = (i > 0 && (this.#end[i - 1] as number) > start) || (this.#start[i] ?? Infinity) < end;
    if (overlaps) throw new VirtkitError("ERR_VIRTKIT_DMA_FREE", `the buffer at ${hex(start)} was given back already`);
    this.#start.splice(i, 0, start);
    this.#end.splice(i, 0, end);
    this.#merge(i);
    if (i > 0) this.#merge(i - 1);
  }

  #take(i: number, from: number, to: number): void {
    const start = this.#start[i] as number;
    const end = this.#end[i] as number;
    const starts = [];
    const ends = [];
    if (from > start) {
      starts.push(start);
      ends.push(from);
    }
    if (to < end) {
      starts.push(to);
      ends.push(end);
    }
    this.#start.splice(i, 1, ...starts);
    this.#end.splice(i, 1, ...ends);
  }

  #merge(i: number): void {
    if (this.#end[i] === undefined || this.#end[i] !== this.#start[i + 1]) return;
    this.#end.splice(i, 1);
    this.#start.splice(i + 1, 1);
  }
}
