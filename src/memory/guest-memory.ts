import { hex, VirtkitError } from "../common/error.ts";
import { MemoryRegion } from "./memory-region.ts";

/** Called after every write to guest memory, before the driver can learn of it. */
export type WriteObserver = (address: number, length: number) => void;

/** The map as columns, region by region, for loops that must not call out: see {@link GuestMemory.columns}. */
export interface RegionColumns {
  readonly base: Float64Array;
  /** One past the last address. */
  readonly end: Float64Array;
  /** 1 where a device may write, else 0. */
  readonly writable: Uint8Array;
}

/**
 * Guest-physical memory: the one border where an address of the other side is checked.
 *
 * A caller asks {@link locate} once for (address, length, access) and then works on the region it got. Regions come and
 * go while a machine runs ({@link setRegions}), and the buffer under a region may be replaced
 * ({@link MemoryRegion.setBuffer}); so nobody keeps a typed array or a region's index across a turn of the event loop.
 * What has to outlive a turn keeps the {@link MemoryRegion} object and an offset: the views of a removed region are empty.
 */
export class GuestMemory {
  /**
   * True where the bytes never move while a region is in use (a memfd, a plain ArrayBuffer): only then may a back end
   * be handed guest memory for I/O that finishes in a later turn.
   */
  readonly fixed: boolean;
  #regions: readonly MemoryRegion[] = [];
  #columns: RegionColumns = { base: new Float64Array(0), end: new Float64Array(0), writable: new Uint8Array(0) };
  #last = 0;
  #observer: WriteObserver | undefined;

  constructor(regions: readonly MemoryRegion[] = [], options: { fixed?: boolean } = {}) {
    this.fixed = options.fixed ?? true;
    this.setRegions(regions);
  }

  /** One region of `size` bytes (a multiple of 16) of fresh zeroed memory at `base`. */
  static allocate(size: number, base = 0): GuestMemory {
    return new GuestMemory([new MemoryRegion(base, new ArrayBuffer(size))]);
  }

  /** The regions in ascending order of address. The array itself never changes; {@link setRegions} replaces it. */
  get regions(): readonly MemoryRegion[] {
    return this.#regions;
  }

  /** {@link regions} in parallel arrays, in the same order; replaced by {@link setRegions}. */
  get columns(): RegionColumns {
    return this.#columns;
  }

  /**
   * Replaces the map. Regions that are no longer in it are dropped: their views become empty at once. I/O in flight
   * to them must have been drained before.
   * @throws ERR_VIRTKIT_MEMORY_OVERLAP when two regions overlap.
   */
  setRegions(regions: readonly MemoryRegion[]): void {
    const sorted = [...regions].sort((a, b) => a.base - b.base);
    for (let i = 1; i < sorted.length; i++) {
      if ((sorted[i - 1] as MemoryRegion).end > (sorted[i] as MemoryRegion).base) {
        throw new VirtkitError(
          "ERR_VIRTKIT_MEMORY_OVERLAP",
          `guest memory regions overlap at ${hex((sorted[i] as MemoryRegion).base)}; give each its own range of addresses`,
        );
      }
    }
    for (const old of this.#regions) if (!sorted.includes(old)) old.drop();
    this.#regions = sorted;
    this.#columns = {
      base: Float64Array.from(sorted, (region) => region.base),
      end: Float64Array.from(sorted, (region) => region.end),
      writable: Uint8Array.from(sorted, (region) => (region.readOnly ? 0 : 1)),
    };
    this.#last = 0;
  }

  /**
   * Index into {@link regions} of the region that holds all of [address, address + length), or -1 when there is none
   * or, with `write`, when it is read-only. A range that runs from one region into its neighbour is not in one region:
   * the caller splits it (see {@link contiguous}). `length` 0 asks for the address alone.
   */
  locate(address: number, length: number, write: boolean): number {
    const regions = this.#regions;
    let i = this.#last;
    let region = regions[i];
    if (region === undefined || !(address >= region.base && address < region.end)) {
      i = this.#find(address);
      if (i < 0) return -1;
      region = regions[i] as MemoryRegion;
      this.#last = i;
    }
    if (length > region.end - address) return -1;
    if (write && region.readOnly) return -1;
    return i;
  }

  /** Bytes that lie in one region from `address` on, at most `length`; 0 when the address is not in guest memory. */
  contiguous(address: number, length: number): number {
    const i = this.#find(address);
    if (i < 0) return 0;
    return Math.min(length, (this.#regions[i] as MemoryRegion).end - address);
  }

  /**
   * Says that [address, address + length) was written from our side. To be called after each write to guest memory and before
   * the used index (or whatever tells the other side of it) is published: an engine's translation cache, a dirty
   * log and snapshots listen here.
   */
  markWritten(address: number, length: number): void {
    if (this.#observer !== undefined) this.#observer(address, length);
  }

  /** True when somebody listens for writes; lets a hot loop skip the bookkeeping. */
  get observed(): boolean {
    return this.#observer !== undefined;
  }

  /** Installs (or with undefined removes) the one listener for writes. */
  observeWrites(observer: WriteObserver | undefined): void {
    this.#observer = observer;
  }

  /** Copies guest memory out. False (and `into` untouched) when some byte of the range is not guest memory. */
  read(address: number, into: Uint8Array): boolean {
    return this.#copy(address, into, false);
  }

  /** Copies bytes in and marks them written. False, with nothing written, when some byte cannot be written. */
  write(address: number, from: Uint8Array): boolean {
    if (!this.#copy(address, from, true)) return false;
    this.markWritten(address, from.length);
    return true;
  }

  #copy(address: number, bytes: Uint8Array, write: boolean): boolean {
    for (let done = 0; done < bytes.length; ) {
      const n = this.contiguous(address + done, bytes.length - done);
      if (n === 0 || this.locate(address + done, n, write) < 0) return false;
      done += n;
    }
    for (let done = 0; done < bytes.length; ) {
      const n = this.contiguous(address + done, bytes.length - done);
      const region = this.#regions[this.#find(address + done)] as MemoryRegion;
      const offset = address + done - region.base;
      if (write) region.u8.set(bytes.subarray(done, done + n), offset);
      else bytes.set(region.u8.subarray(offset, offset + n), done);
      done += n;
    }
    return true;
  }

  #find(address: number): number {
    const regions = this.#regions;
    let low = 0;
    let high = regions.length - 1;
    while (low <= high) {
      const middle = (low + high) >> 1;
      const region = regions[middle] as MemoryRegion;
      // Written so that NaN is nowhere.
      if (!(address >= region.base)) high = middle - 1;
      else if (address >= region.end) low = middle + 1;
      else return middle;
    }
    return -1;
  }
}
