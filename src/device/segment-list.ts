import type { IoVector } from "../backend/block/types.ts";
import type { GuestMemory } from "../memory/guest-memory.ts";
import type { MemoryRegion } from "../memory/memory-region.ts";
import type { ChainBatch } from "../virtqueue/index.ts";

/**
 * A part of a chain that outlives the turn in which it was popped, with a cursor for what was moved already: region
 * objects and offsets; views are read afresh at each use.
 */
export class SegmentList {
  count = 0;
  readonly region: MemoryRegion[] = [];
  readonly offset: number[] = [];
  readonly length: number[] = [];
  #at = 0;
  #inside = 0;
  /** How far {@link markMoved} has come. */
  #markedAt = 0;
  #markedInside = 0;

  clear(): void {
    // A request of very many pieces is rare: do not keep its arrays.
    if (this.count > 1024) this.region.length = this.offset.length = this.length.length = 0;
    this.count = 0;
    this.#at = this.#inside = 0;
    this.#markedAt = this.#markedInside = 0;
  }

  add(region: MemoryRegion, offset: number, length: number): void {
    const i = this.count++;
    this.region[i] = region;
    this.offset[i] = offset;
    this.length[i] = length;
  }

  /** Adds the next `bytes` bytes of guest memory to the vector. False when some of them are gone (their region was removed). */
  toVector(vector: IoVector, bytes: number): boolean {
    for (let done = 0; done < bytes; ) {
      if (this.#at >= this.count) return false;
      const n = this.#piece(bytes - done);
      const from = this.#position();
      const view = (this.region[this.#at] as MemoryRegion).u8;
      if (from + n > view.length) return false;
      vector.add(view, from, n);
      this.#advance(n);
      done += n;
    }
    return true;
  }

  /** Appends segments `first` to `end` of a batch. */
  addFrom(memory: GuestMemory, batch: ChainBatch, first: number, end: number): void {
    for (let s = first; s < end; s++) {
      const region = memory.regions[batch.region[s] as number] as MemoryRegion;
      this.add(region, batch.offset[s] as number, batch.length[s] as number);
    }
  }

  /**
   * Offers what is left, piece by piece, to `take`, which returns how much of a piece it took. True when all of it was taken
   * (what is gone from guest memory counts as taken).
   */
  drain(take: (bytes: Uint8Array) => number): boolean {
    while (this.#at < this.count) {
      const n = (this.length[this.#at] as number) - this.#inside;
      const from = this.#position();
      const piece = (this.region[this.#at] as MemoryRegion).u8.subarray(from, from + n);
      const taken = piece.length === 0 ? n : Math.min(take(piece), n);
      if (this.#at >= this.count) return true;
      this.#advance(taken);
      if (taken < piece.length) return false;
    }
    return true;
  }

  /** Copies the next `bytes` bytes of guest memory out. False when some of them are gone. */
  copyTo(target: Uint8Array, bytes: number): boolean {
    for (let done = 0; done < bytes; ) {
      if (this.#at >= this.count) return false;
      const n = this.#piece(bytes - done);
      const from = this.#position();
      const view = (this.region[this.#at] as MemoryRegion).u8;
      if (from + n > view.length) return false;
      target.set(view.subarray(from, from + n), done);
      this.#advance(n);
      done += n;
    }
    return true;
  }

  /** Copies `bytes` bytes into guest memory at the cursor and marks them written. False when some of it is gone. */
  copyFrom(source: Uint8Array, bytes: number, memory: GuestMemory): boolean {
    for (let done = 0; done < bytes; ) {
      if (this.#at >= this.count) return false;
      const n = this.#piece(bytes - done);
      const to = this.#position();
      const region = this.region[this.#at] as MemoryRegion;
      if (to + n > region.u8.length) return false;
      region.u8.set(source.subarray(done, done + n), to);
      memory.markWritten(region.base + to, n);
      this.#advance(n);
      done += n;
    }
    return true;
  }

  /** Fills all of it, from the cursor on, with zeros and marks it written; what is gone is left out. */
  zero(memory: GuestMemory): void {
    this.drain((bytes) => {
      bytes.fill(0);
      memory.markWritten((this.region[this.#at] as MemoryRegion).base + this.#position(), bytes.length);
      return bytes.length;
    });
  }

  /** Marks written what went into a vector since the last time, for data that a back end put there. */
  markMoved(memory: GuestMemory): void {
    for (let i = this.#markedAt; i < this.count && i <= this.#at; i++) {
      const end = i < this.#at ? (this.length[i] as number) : this.#inside;
      const start = (this.offset[i] as number) + this.#markedInside;
      if (end > this.#markedInside)
        memory.markWritten((this.region[i] as MemoryRegion).base + start, end - this.#markedInside);
      this.#markedAt = i < this.#at ? i + 1 : i;
      this.#markedInside = i < this.#at ? 0 : end;
    }
  }

  #piece(wanted: number): number {
    return Math.min(wanted, (this.length[this.#at] as number) - this.#inside);
  }

  #position(): number {
    return (this.offset[this.#at] as number) + this.#inside;
  }

  #advance(n: number): void {
    this.#inside += n;
    if (this.#inside < (this.length[this.#at] as number)) return;
    this.#at++;
    this.#inside = 0;
  }
}
