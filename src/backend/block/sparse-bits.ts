const PAGE_BYTES = 512;
const PAGE_BITS = PAGE_BYTES * 8;

/** A set of numbers 0..2^53, kept as bits in pages: pages without any cost nothing. Made for runs. */
export class SparseBits {
  /** Numbers in the set. */
  count = 0;
  readonly #pages = new Map<number, Uint8Array>();

  has(bit: number): boolean {
    const page = this.#pages.get(Math.floor(bit / PAGE_BITS));
    const at = bit % PAGE_BITS;
    return page !== undefined && ((page[at >>> 3] as number) & (1 << (at & 7))) !== 0;
  }

  /** The first number from `from` on that differs from it in being in the set, at most `end`. */
  runEnd(from: number, end: number): number {
    const value = this.has(from);
    const full = value ? 0xff : 0;
    let bit = from;
    while (bit < end) {
      const page = this.#pages.get(Math.floor(bit / PAGE_BITS));
      const at = bit % PAGE_BITS;
      if (page === undefined) {
        if (value) return bit;
        bit += PAGE_BITS - at;
      } else if ((at & 7) === 0 && page[at >>> 3] === full) bit += 8;
      else if (this.has(bit) === value) bit++;
      else return bit;
    }
    return end;
  }

  /** Puts `from` .. `end - 1` in. */
  add(from: number, end: number): void {
    for (let bit = from; bit < end; ) {
      const index = Math.floor(bit / PAGE_BITS);
      let page = this.#pages.get(index);
      if (page === undefined) {
        page = new Uint8Array(PAGE_BYTES);
        this.#pages.set(index, page);
      }
      const stop = Math.min(end, (index + 1) * PAGE_BITS);
      for (; bit < stop; bit++) {
        const at = bit % PAGE_BITS;
        const mask = 1 << (at & 7);
        const byte = page[at >>> 3] as number;
        if ((byte & mask) === 0) this.count++;
        page[at >>> 3] = byte | mask;
      }
    }
  }

  /** Takes everything from `from` on out. */
  truncate(from: number): void {
    for (const [index, page] of this.#pages)
      for (let at = 0; at < PAGE_BITS; at++) {
        if (index * PAGE_BITS + at < from) continue;
        const mask = 1 << (at & 7);
        const byte = page[at >>> 3] as number;
        if ((byte & mask) !== 0) this.count--;
        page[at >>> 3] = byte & ~mask;
      }
  }
}
