import type { GuestMemory } from "../memory/guest-memory.ts";
import type { MemoryRegion } from "../memory/memory-region.ts";
import type { ChainBatch } from "./chain-batch.ts";

/** Up to so many bytes a loop is faster than Uint8Array.set with a subarray. */
const LOOP_BYTES = 64;
const TWO_32 = 2 ** 32;

/**
 * A place in one part of a chain, as if its segments were one stretch of bytes. Made once, pointed at one chain after the
 * other; good within the turn in which the chain was popped. Nothing here ever leaves the chain's checked segments.
 */
class ChainCursor {
  protected readonly memory: GuestMemory;
  protected batch: ChainBatch | undefined;
  #firstSegment = 0;
  #endSegment = 0;
  /** The segment the cursor is in, its region, the byte to come and the bytes left. */
  #segment = 0;
  protected region: MemoryRegion | undefined;
  protected offset = 0;
  protected left = 0;
  #total = 0;
  #remaining = 0;

  constructor(memory: GuestMemory) {
    this.memory = memory;
  }

  /** Bytes between the cursor and the end of the part. */
  get remaining(): number {
    return this.#remaining;
  }

  /** Bytes between the start of the part and the cursor. */
  get position(): number {
    return this.#total - this.#remaining;
  }

  /** Moves on by `count` bytes, at most to the end. Returns by how many. */
  skip(count: number): number {
    const most = Math.min(Math.max(count, 0), this.#remaining);
    for (let done = 0; done < most; ) {
      if (this.left === 0 && !this.open()) return done;
      const step = Math.min(most - done, this.left);
      this.advance(step);
      done += step;
    }
    return most;
  }

  /** Goes to `position` bytes from the start of the part. False, with the cursor at the end, when it is not so long. */
  seek(position: number): boolean {
    this.#segment = this.#firstSegment;
    this.left = 0;
    this.#remaining = this.#total;
    return this.skip(position) === position;
  }

  protected start(batch: ChainBatch, firstSegment: number, segments: number, bytes: number): void {
    this.batch = batch;
    this.#firstSegment = firstSegment;
    this.#endSegment = firstSegment + segments;
    this.#total = bytes;
    this.seek(0);
  }

  /** Enters the next segment. False at the end, or when the memory under it went away. */
  protected open(): boolean {
    const batch = this.batch;
    if (batch === undefined || this.#segment >= this.#endSegment) return this.#stop();
    const s = this.#segment++;
    const region = this.memory.regions[batch.region[s] as number];
    const offset = batch.offset[s] as number;
    const length = batch.length[s] as number;
    if (region === undefined || offset + length > region.u8.length) return this.#stop();
    this.region = region;
    this.offset = offset;
    this.left = length;
    return true;
  }

  protected advance(count: number): void {
    this.offset += count;
    this.left -= count;
    this.#remaining -= count;
  }

  #stop(): false {
    this.left = 0;
    this.#remaining = 0;
    return false;
  }
}

/**
 * Reads the device-readable part of a chain. Numbers are little-endian; one that does not fit in what remains is -1, and
 * the cursor stays where it is.
 */
export class ChainReader extends ChainCursor {
  /** Points at the start of chain `chain` of the batch. */
  from(batch: ChainBatch, chain: number): this {
    const first = batch.first[chain] as number;
    this.start(batch, first, batch.readable[chain] as number, batch.readableBytes[chain] as number);
    return this;
  }

  u8(): number {
    if (this.left === 0 && !this.open()) return -1;
    const value = (this.region as MemoryRegion).u8[this.offset] as number;
    this.advance(1);
    return value;
  }

  u16(): number {
    return this.#number(2);
  }

  u32(): number {
    return this.#number(4);
  }

  /** Exact below 2^53; larger values are rounded, and stay larger than any size we can have. */
  u64(): number {
    if (this.remaining < 8) return -1;
    const low = this.#number(4);
    const high = this.#number(4);
    return high < 0 ? -1 : high * TWO_32 + low;
  }

  /** Copies as many bytes as remain, at most `into.length`. Returns how many. */
  bytes(into: Uint8Array): number {
    let done = 0;
    while (done < into.length && (this.left > 0 || this.open())) {
      const count = Math.min(into.length - done, this.left);
      const { offset } = this;
      const { u8 } = this.region as MemoryRegion;
      if (count > LOOP_BYTES) into.set(u8.subarray(offset, offset + count), done);
      else for (let i = 0; i < count; i++) into[done + i] = u8[offset + i] as number;
      this.advance(count);
      done += count;
    }
    return done;
  }

  #number(size: number): number {
    if (this.remaining < size) return -1;
    let value = 0;
    for (let i = 0, scale = 1; i < size; i++, scale *= 256) {
      if (this.left === 0 && !this.open()) return -1;
      value += ((this.region as MemoryRegion).u8[this.offset] as number) * scale;
      this.advance(1);
    }
    return value;
  }
}

/**
 * Writes the device-writable part of a chain and reports each write to the memory. Numbers are little-endian; false says
 * that there was too little room and that nothing was written.
 */
export class ChainWriter extends ChainCursor {
  /** Points at the start of chain `chain` of the batch. */
  to(batch: ChainBatch, chain: number): this {
    const first = (batch.first[chain] as number) + (batch.readable[chain] as number);
    this.start(batch, first, batch.writable[chain] as number, batch.writableBytes[chain] as number);
    return this;
  }

  u8(value: number): boolean {
    return this.#number(value, 1);
  }

  u16(value: number): boolean {
    return this.#number(value, 2);
  }

  u32(value: number): boolean {
    return this.#number(value, 4);
  }

  /** @param value an integer 0..2^53 */
  u64(value: number): boolean {
    if (this.remaining < 8) return false;
    this.#number(value % TWO_32, 4);
    return this.#number(Math.floor(value / TWO_32), 4);
  }

  /** Copies as many bytes in as there is room for. Returns how many. */
  bytes(from: Uint8Array): number {
    let done = 0;
    while (done < from.length && (this.left > 0 || this.open())) {
      const count = Math.min(from.length - done, this.left);
      const { offset } = this;
      const { u8 } = this.region as MemoryRegion;
      if (count > LOOP_BYTES) u8.set(from.subarray(done, done + count), offset);
      else for (let i = 0; i < count; i++) u8[offset + i] = from[done + i] as number;
      this.#wrote(count);
      done += count;
    }
    return done;
  }

  /** Sets up to `count` bytes to `value`. Returns how many. */
  fill(value: number, count: number): number {
    let done = 0;
    while (done < count && (this.left > 0 || this.open())) {
      const step = Math.min(count - done, this.left);
      (this.region as MemoryRegion).u8.fill(value, this.offset, this.offset + step);
      this.#wrote(step);
      done += step;
    }
    return done;
  }

  #number(value: number, size: number): boolean {
    if (this.remaining < size) return false;
    for (let i = 0; i < size; i++) {
      if (this.left === 0 && !this.open()) return false;
      (this.region as MemoryRegion).u8[this.offset] = value;
      value = Math.floor(value / 256);
      this.#wrote(1);
    }
    return true;
  }

  #wrote(count: number): void {
    if (this.memory.observed) this.memory.markWritten((this.region as MemoryRegion).base + this.offset, count);
    this.advance(count);
  }
}
