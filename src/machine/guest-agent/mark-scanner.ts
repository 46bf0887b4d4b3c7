/** Begins every mark and is nowhere else in one, which makes looking for a mark a search for one byte. */
export const MARK_START = 0x01;

/**
 * Passes a stream on until a mark ends it. The mark is a run of bytes that the stream's content cannot foresee; it may
 * be cut anywhere between two chunks. What comes after it is dropped.
 */
export class MarkScanner {
  readonly #mark: Uint8Array;
  readonly #emit: (bytes: Uint8Array) => void;
  /** How many bytes of the mark the last chunk ended with. */
  #held = 0;
  #found = false;

  /**
   * @param mark at least one byte, MARK_START first and only there
   * @param emit takes the content, in order; the bytes are valid only during the call
   */
  constructor(mark: Uint8Array, emit: (bytes: Uint8Array) => void) {
    this.#mark = mark;
    this.#emit = emit;
  }

  get found(): boolean {
    return this.#found;
  }

  push(chunk: Uint8Array): void {
    if (this.#found || chunk.length === 0) return;
    if (this.#held > 0) {
      const matched = this.#matchAt(chunk, 0, this.#held);
      if (this.#held + matched === this.#mark.length) {
        this.#found = true;
        return;
      }
      if (matched === chunk.length) {
        this.#held += matched;
        return;
      }
      // Not the mark after all: what was held back is content, and so is what matched of this chunk.
      this.#emit(this.#mark.subarray(0, this.#held));
      this.#held = 0;
    }
    this.#scan(chunk);
  }

  #scan(chunk: Uint8Array): void {
    let at = chunk.indexOf(MARK_START);
    while (at >= 0) {
      const matched = this.#matchAt(chunk, at, 0);
      const isWhole = matched === this.#mark.length;
      if (isWhole || at + matched === chunk.length) {
        if (at > 0) this.#emit(chunk.subarray(0, at));
        this.#found = isWhole;
        this.#held = isWhole ? 0 : matched;
        return;
      }
      at = chunk.indexOf(MARK_START, at + 1);
    }
    this.#emit(chunk);
  }

  /** How many bytes from `at` on equal the mark's from `from` on. */
  #matchAt(chunk: Uint8Array, at: number, from: number): number {
    const length = Math.min(this.#mark.length - from, chunk.length - at);
    let count = 0;
    while (count < length && chunk[at + count] === this.#mark[from + count]) count++;
    return count;
  }
}
