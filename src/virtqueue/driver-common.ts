import { VirtkitError } from "../common/error.ts";
import type { GuestMemory } from "../memory/guest-memory.ts";
import { VIRTQ_CHAIN_MAX_BYTES, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE, VIRTQ_DESC_SIZE } from "../spec/ring.ts";
import type { ScatterList } from "./types.ts";

/** Memory for the indirect tables of a driver's queue: `size` tables, one for each descriptor of the ring. */
export interface IndirectTables {
  /** Guest-physical address of the first table, a multiple of 16. */
  readonly address: number;
  /** Descriptors a table holds, 2..32768. Longer chains go directly into the ring. */
  readonly entriesPerTable: number;
}

/** Bytes of memory that the indirect tables of a queue of `size` entries take. */
export const indirectTablesBytes = (size: number, entriesPerTable: number): number =>
  size * entriesPerTable * VIRTQ_DESC_SIZE;

/** A chain that could never be made available: a bug of the driver's. */
export function chainError(total: number, size: number): VirtkitError {
  return new VirtkitError(
    "ERR_VIRTKIT_CHAIN",
    `a chain of ${total} buffers does not fit: 1 to ${size} (the queue's size) buffers of at most 2^32 bytes in all`,
  );
}

/** Writes indirect tables for a driver's queue of either format. */
export class IndirectWriter {
  readonly entries: number;
  readonly #memory: GuestMemory;
  readonly #tables: IndirectTables;
  /** A split table links its entries; in a packed one every flag but WRITE and the id are reserved. */
  readonly #linked: boolean;

  /** @throws ERR_VIRTKIT_INDIRECT when the tables do not lie in one region of guest memory */
  constructor(memory: GuestMemory, tables: IndirectTables, size: number, linked: boolean) {
    const { address, entriesPerTable } = tables;
    this.entries = entriesPerTable;
    this.#memory = memory;
    this.#tables = tables;
    this.#linked = linked;
    const bytes = indirectTablesBytes(size, entriesPerTable);
    if (address % VIRTQ_DESC_SIZE !== 0 || memory.locate(address, bytes, false) < 0)
      throw new VirtkitError(
        "ERR_VIRTKIT_INDIRECT",
        `indirect.address must be a multiple of 16 with ${bytes} bytes of guest memory (size * entriesPerTable * 16)`,
      );
  }

  /** Guest-physical address of table `i`. */
  address(i: number): number {
    return this.#tables.address + i * this.entries * VIRTQ_DESC_SIZE;
  }

  /** Fills table `i`. Returns the device-writable bytes, or -1 when the chain is too long or the memory is gone. */
  write(i: number, sg: ScatterList, first: number, out: number, in_: number): number {
    const start = this.address(i);
    const total = out + in_;
    const found = this.#memory.locate(start, total * VIRTQ_DESC_SIZE, false);
    const region = this.#memory.regions[found];
    if (region === undefined) return -1;
    const words = region.u32;
    const base = (start - region.base) / 4;
    let bytes = 0;
    let writableBytes = 0;
    for (let n = 0; n < total; n++) {
      const address = sg.address[first + n] as number;
      const length = sg.length[first + n] as number;
      const write = n < out ? 0 : VIRTQ_DESC_F_WRITE;
      const link = this.#linked && n + 1 < total ? VIRTQ_DESC_F_NEXT | ((n + 1) << 16) : 0;
      const at = base + n * 4;
      words[at] = address;
      words[at + 1] = address / 2 ** 32;
      words[at + 2] = length;
      words[at + 3] = this.#linked ? write | link : write << 16;
      bytes += length;
      if (n >= out) writableBytes += length;
    }
    if (bytes > VIRTQ_CHAIN_MAX_BYTES) return -1;
    if (this.#memory.observed) this.#memory.markWritten(start, total * VIRTQ_DESC_SIZE);
    return writableBytes;
  }
}
