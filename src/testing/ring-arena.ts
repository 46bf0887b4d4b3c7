import { GuestMemory } from "../memory/guest-memory.ts";
import { MemoryRegion } from "../memory/memory-region.ts";

/**
 * Guest memory for ring fuzzing: four small regions in one buffer with guard bytes before, between and behind them, and a
 * twin of it all that holds what ought to be there. The rings lie at the start of the first region.
 */

/** One region as the oracle sees it: guest-physical `base`, `size` bytes at `at` of the arena. */
export interface ArenaRegion {
  readonly base: number;
  readonly size: number;
  readonly at: number;
  readonly readOnly: boolean;
}

export interface Piece {
  readonly region: number;
  readonly offset: number;
  readonly length: number;
}

const GUARD = 256;
/** Rings and indirect tables stay within so many bytes of the first region; well-formed buffers lie behind. */
export const RING_BYTES = 0x1000;
export const RING_BASE = 0x10000;
const SIZES = [
  { base: RING_BASE, size: 0x2000, readOnly: false },
  // These two follow without a gap: a buffer may run over the border.
  { base: RING_BASE + 0x2000, size: 0x400, readOnly: false },
  { base: RING_BASE + 0x2400, size: 0x200, readOnly: true },
  { base: 2 ** 33, size: 0x400, readOnly: false },
];

export class Arena {
  readonly regions: readonly ArenaRegion[];
  readonly memory: GuestMemory;
  /** What the queue under test works on. */
  readonly real: Uint8Array;
  /** What ought to be there. Tests write here, then {@link show}. */
  readonly twin: Uint8Array;
  readonly twinView: DataView;

  constructor() {
    let at = GUARD;
    this.regions = SIZES.map((region) => {
      const placed = { ...region, at };
      at += region.size + GUARD;
      return placed;
    });
    this.real = new Uint8Array(at);
    this.twin = new Uint8Array(at);
    this.twinView = new DataView(this.twin.buffer);
    this.memory = new GuestMemory(
      this.regions.map(
        ({ base, size, at: byteOffset, readOnly }) =>
          new MemoryRegion(base, this.real.buffer, { byteOffset, size, readOnly }),
      ),
    );
  }

  /** Where in the arena guest-physical `address` of the first region lies. */
  ringOffset(address: number): number {
    return address - RING_BASE + GUARD;
  }

  /** Fills everything with a pattern of `seed`, rings with zeroes. */
  reset(seed: number): void {
    for (let i = 0; i < this.twin.length; i++) this.twin[i] = (seed + i * 7) ^ (i >>> 8);
    this.twin.fill(0, GUARD, GUARD + RING_BYTES);
    this.real.set(this.twin);
  }

  /** Lets a driver write to the rings of the twin, and the queue see it. Stray bytes up to here are found first. */
  write(change: () => void): void {
    const end = GUARD + RING_BYTES;
    if (Buffer.compare(this.real.subarray(GUARD, end), this.twin.subarray(GUARD, end)) !== 0)
      throw new Error(`a stray byte at ${this.difference()}`);
    change();
    this.real.set(this.twin.subarray(GUARD, GUARD + RING_BYTES), GUARD);
  }

  /** The first byte that is not what it ought to be, or -1. */
  difference(): number {
    if (Buffer.compare(this.real, this.twin) === 0) return -1;
    return this.real.findIndex((byte, i) => byte !== this.twin[i]);
  }

  /** The plain way to translate: undefined when some byte is not there or, with `write`, not writable. */
  translate(address: number, length: number, write: boolean): Piece[] | undefined {
    const pieces: Piece[] = [];
    for (let done = 0; done < length; ) {
      const at = address + done;
      const region = this.regions.findIndex((r) => at >= r.base && at < r.base + r.size);
      const found = this.regions[region];
      if (found === undefined || (write && found.readOnly)) return undefined;
      const offset = at - found.base;
      const bytes = Math.min(length - done, found.size - offset);
      pieces.push({ region, offset, length: bytes });
      done += bytes;
    }
    return pieces;
  }
}

/** A small seeded generator (xorshift32): the same seed, the same run. */
export class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = (Math.imul(seed, 2654435761) ^ 0x9e3779b9) >>> 0 || 1;
  }

  /** 0..2^32-1 */
  u32(): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    this.#state = x >>> 0;
    return this.#state;
  }

  /** 0..n-1 */
  below(n: number): number {
    return this.u32() % n;
  }

  /** True once in `n` times. */
  once(n: number): boolean {
    return this.below(n) === 0;
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)] as T;
  }
}
