import type { GuestMemory } from "../memory/guest-memory.ts";
import type { MemoryRegion } from "../memory/memory-region.ts";
import { VIRTQ_CHAIN_MAX_BYTES, VIRTQ_DESC_F_WRITE, VIRTQ_DESC_SIZE } from "../spec/ring.ts";
import type { ChainBatch } from "./chain-batch.ts";
import { bufferAddressFault, chainBytesFault, indirectFault, orderFault } from "./fault.ts";
import type { QueueFault } from "./types.ts";

const TWO_32 = 2 ** 32;

/** `next` is 16 bits wide, so a larger table could not be used; Linux's vhost draws the line here too. */
export const INDIRECT_MAX_ENTRIES = 65536;

/**
 * The thorough way through one chain, for both formats: indirect tables, buffers that run over the border of two
 * regions, empty buffers, and the reason when something is wrong. The queues' own loops handle the plain cases and start
 * over here with everything else. Nothing of a chain shows in the batch before {@link end}.
 */
export class ChainWalker {
  fault: QueueFault | undefined;
  /** The indirect table that {@link table} opened: 32-bit words, the first word's index, entries. */
  tableWords: Uint32Array = new Uint32Array(0);
  tableBase = 0;
  tableEntries = 0;
  #batch: ChainBatch | undefined;
  #segment = 0;
  #readable = 0;
  #writable = 0;
  #readableBytes = 0;
  #writableBytes = 0;
  #sawWritable = false;
  /** The region that the last buffer was in: most are in the same one. */
  #region = 0;
  #base = 0.5;
  #end = 0.5;
  #canWrite = false;
  /** Where a table that is not aligned, or not in one region, is copied to. */
  #scratch: Uint32Array = new Uint32Array(0);
  readonly #memory: GuestMemory;

  constructor(memory: GuestMemory) {
    this.#memory = memory;
  }

  /** Begins the batch's next chain; its segments go behind those in use. */
  begin(batch: ChainBatch): void {
    this.fault = undefined;
    this.#batch = batch;
    this.#segment = batch.segments;
    this.#readable = 0;
    this.#writable = 0;
    this.#readableBytes = 0;
    this.#writableBytes = 0;
    this.#sawWritable = false;
    this.#base = this.#end = 0.5;
  }

  /**
   * Adds one buffer. An empty one is allowed and adds nothing: neither VIRTIO 1.4 nor Linux forbids it, no byte of it is
   * ever touched, and so its address does not matter.
   */
  add(address: number, length: number, write: boolean): boolean {
    (this.#batch as ChainBatch).walked++;
    if (write) this.#sawWritable = true;
    else if (this.#sawWritable) return this.stop(orderFault());
    const bytes = this.#readableBytes + this.#writableBytes + length;
    if (bytes > VIRTQ_CHAIN_MAX_BYTES) return this.stop(chainBytesFault());
    if (write) this.#writableBytes += length;
    else this.#readableBytes += length;
    if (length === 0) return true;
    if (!(address >= this.#base && address + length <= this.#end && (this.#canWrite || !write))) {
      const i = this.#memory.locate(address, length, write);
      if (i < 0) return this.#split(address, length, write);
      this.#enter(i);
    }
    this.#append(this.#region, address - this.#base, length, write);
    return true;
  }

  /**
   * Opens an indirect table. It may lie anywhere (VIRTIO 1.4 §2.7.5.3 asks for no alignment); one that cannot be read in
   * place is copied once. A table may be longer than the queue, as stock Linux drivers make them.
   */
  table(address: number, length: number): boolean {
    if (length === 0 || length % VIRTQ_DESC_SIZE !== 0)
      return this.stop(indirectFault(`a table of ${length} bytes is no whole number of descriptors`));
    const entries = length / VIRTQ_DESC_SIZE;
    if (entries > INDIRECT_MAX_ENTRIES)
      return this.stop(indirectFault(`a table of ${entries} entries is longer than ${INDIRECT_MAX_ENTRIES}`));
    this.tableEntries = entries;
    const i = this.#memory.locate(address, length, false);
    const region = this.#memory.regions[i];
    if (region !== undefined && address % 4 === 0) {
      this.tableWords = region.u32;
      this.tableBase = (address - region.base) / 4;
      return true;
    }
    if (this.#scratch.length < length / 4) this.#scratch = new Uint32Array(length / 4);
    if (!this.#memory.read(address, new Uint8Array(this.#scratch.buffer, 0, length)))
      return this.stop(bufferAddressFault(address, length, false));
    this.tableWords = this.#scratch;
    this.tableBase = 0;
    return true;
  }

  /** Adds the buffers of a packed table: its entries lie in a row, and of their flags only WRITE counts (VIRTIO 1.4 §2.8.7). */
  addRow(address: number, length: number): boolean {
    if (!this.table(address, length)) return false;
    const words = this.tableWords;
    for (let i = 0; i < this.tableEntries; i++) {
      const at = this.tableBase + i * 4;
      const buffer = (words[at + 1] as number) * TWO_32 + (words[at] as number);
      const flags = (words[at + 3] as number) >>> 16;
      if (!this.add(buffer, words[at + 2] as number, (flags & VIRTQ_DESC_F_WRITE) !== 0)) return false;
    }
    return true;
  }

  /** Writes the chain's first segment and totals to the batch's next entry. Returns the index behind its last segment. */
  end(): number {
    const batch = this.#batch as ChainBatch;
    const chain = batch.count;
    batch.first[chain] = batch.segments;
    batch.readable[chain] = this.#readable;
    batch.writable[chain] = this.#writable;
    batch.readableBytes[chain] = this.#readableBytes;
    batch.writableBytes[chain] = this.#writableBytes;
    return this.#segment;
  }

  stop(fault: QueueFault): false {
    this.fault = fault;
    return false;
  }

  /** A buffer that runs from one region into its neighbour becomes a segment in each. */
  #split(address: number, length: number, write: boolean): boolean {
    const memory = this.#memory;
    for (let done = 0; done < length; ) {
      const bytes = memory.contiguous(address + done, length - done);
      const i = bytes === 0 ? -1 : memory.locate(address + done, bytes, write);
      if (i < 0) return this.stop(bufferAddressFault(address, length, write));
      this.#enter(i);
      this.#append(i, address + done - this.#base, bytes, write);
      done += bytes;
    }
    return true;
  }

  #enter(i: number): void {
    const region = this.#memory.regions[i] as MemoryRegion;
    this.#region = i;
    this.#base = region.base;
    this.#end = region.end;
    this.#canWrite = !region.readOnly;
  }

  #append(region: number, offset: number, length: number, write: boolean): void {
    const batch = this.#batch as ChainBatch;
    const s = this.#segment++;
    if (s >= batch.length.length) batch.grow();
    batch.region[s] = region;
    batch.offset[s] = offset;
    batch.length[s] = length;
    if (write) this.#writable++;
    else this.#readable++;
  }
}
