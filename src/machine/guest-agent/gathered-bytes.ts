const LEAST = 1024;
const MOST = 64 * 1024;

/** Bytes that come in pieces of any size, in blocks: a guest that writes byte by byte must not cost an object for each. */
export class GatheredBytes {
  readonly #blocks: Uint8Array[] = [];
  /** The block that is being filled, and how far. */
  #last = new Uint8Array(0);
  #used = 0;
  #length = 0;

  get length(): number {
    return this.#length;
  }

  /** Appends a copy. */
  add(bytes: Uint8Array): void {
    for (let done = 0; done < bytes.length; ) {
      if (this.#used === this.#last.length) this.#open();
      const part = bytes.subarray(done, done + this.#last.length - this.#used);
      this.#last.set(part, this.#used);
      this.#used += part.length;
      this.#length += part.length;
      done += part.length;
    }
  }

  /** All of it in one piece. */
  join(): Uint8Array {
    const all = new Uint8Array(this.#length);
    let at = 0;
    for (const block of this.#blocks) {
      all.set(block.subarray(0, this.#length - at), at);
      at += block.length;
    }
    return all;
  }

  #open(): void {
    this.#last = new Uint8Array(Math.min(MOST, Math.max(LEAST, this.#length)));
    this.#used = 0;
    this.#blocks.push(this.#last);
  }
}
