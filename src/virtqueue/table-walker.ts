import type { GuestMemory } from "../memory/guest-memory.ts";
import type { MemoryRegion } from "../memory/memory-region.ts";
import * as ring from "../spec/ring.ts";
import { BATCH_SEGMENTS, type ChainBatch } from "./chain-batch.ts";
import { INDIRECT_MAX_ENTRIES } from "./chain-walker.ts";

// Aliases of the module's own: an imported binding is looked up again at each use.
const NEXT = ring.VIRTQ_DESC_F_NEXT;
const WRITE = ring.VIRTQ_DESC_F_WRITE;
const INDIRECT = ring.VIRTQ_DESC_F_INDIRECT;
const DESC_SIZE = ring.VIRTQ_DESC_SIZE;
const CHAIN_MAX = ring.VIRTQ_CHAIN_MAX_BYTES;
const MAX_BYTES = INDIRECT_MAX_ENTRIES * DESC_SIZE;
const TWO_32 = 2 ** 32;

/**
 * The quick way through an indirect table, for both formats: Linux puts every chain of two buffers and more into one. It takes
 * tables that can be read in place, of buffers that lie in one region each, and leaves all else to the ChainWalker.
 */
export class TableWalker {
  readonly #memory: GuestMemory;
  readonly #linked: boolean;

  /** @param linked entries are linked by `next` (split, VIRTIO 1.4 §2.7.5.3), or lie in a row (packed, §2.8.7) */
  constructor(memory: GuestMemory, linked: boolean) {
    this.#memory = memory;
    this.#linked = linked;
  }

  /**
   * Writes the table's buffers behind the segments in use and the totals to the batch's next entry. Returns the index behind
   * the last segment, or -1 when the table is not plain, good or bad: then what was written counts for nothing.
   */
  walk(batch: ChainBatch, address: number, bytes: number): number {
    const { base: bases, end: ends, writable: writables } = this.#memory.columns;
    if (bytes === 0 || bytes > MAX_BYTES || bytes % DESC_SIZE !== 0) return -1;
    let place = 0;
    while (place < bases.length && !(address < (ends[place] as number))) place++;
    if (place === bases.length) return -1;
    // Most buffers lie in the region that the table is in.
    let base = bases[place] as number;
    let end = ends[place] as number;
    if (!(address >= base && address + bytes <= end) || ((address - base) & 3) !== 0) return -1;
    const words = (this.#memory.regions[place] as MemoryRegion).u32;
    const table = (address - base) >>> 2;
    const entries = bytes / DESC_SIZE;
    const linked = this.#linked;
    const { region, offset, length } = batch;
    const segmentLimit = Math.min(length.length, BATCH_SEGMENTS);
    const first = batch.segments;
    let segment = first;
    let index = 0;
    let firstWritable = -1;
    let total = 0;
    let totalReadable = 0;
    for (let seen = 1; ; seen++) {
      const at = table + (index << 2);
      const tail = words[at + 3] as number;
      const flags = linked ? tail : tail >>> 16;
      const size = words[at + 2] as number;
      const buffer = (words[at + 1] as number) * TWO_32 + (words[at] as number);
      if (size === 0 || segment >= segmentLimit) return -1;
      if (!(buffer >= base && buffer + size <= end)) {
        place = 0;
        while (place < bases.length && !(buffer < (ends[place] as number))) place++;
        if (place === bases.length) return -1;
        base = bases[place] as number;
        end = ends[place] as number;
        if (!(buffer >= base && buffer + size <= end)) return -1;
      }
      if ((flags & WRITE) !== 0) {
        if (writables[place] === 0) return -1;
        if (firstWritable < 0) {
          firstWritable = segment;
          totalReadable = total;
        }
      } else if (firstWritable >= 0) return -1;
      total += size;
      region[segment] = place;
      offset[segment] = buffer - base;
      length[segment] = size;
      segment++;
      if (linked) {
        if ((flags & INDIRECT) !== 0) return -1;
        if ((flags & NEXT) === 0) break;
        index = flags >>> 16;
        if (index >= entries || seen === entries) return -1;
      } else if (++index === entries) break;
    }
    if (total > CHAIN_MAX) return -1;
    if (firstWritable < 0) {
      firstWritable = segment;
      totalReadable = total;
    }
    const chain = batch.count;
    batch.first[chain] = first;
    batch.readable[chain] = firstWritable - first;
    batch.writable[chain] = segment - firstWritable;
    batch.readableBytes[chain] = totalReadable;
    batch.writableBytes[chain] = total - totalReadable;
    return segment;
  }
}
