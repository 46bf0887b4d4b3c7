const SMALLEST = 12; // 4 KiB

/**
 * The device's own buffers for I/O that finishes in a later turn while guest memory may move: sizes are powers of two,
 * what is lent out is bounded, and what lies idle is bounded too.
 */
export class StagingPool {
  readonly #free: Uint8Array[][] = [];
  readonly #most: number;
  readonly #keep: number;
  #idle = 0;
  /** Bytes lent out now. */
  lent = 0;

  /**
   * @param most bytes lent out at the same time; one buffer is always granted when nothing is lent
   * @param keep idle bytes kept for the next request
   */
  constructor(most: number, keep: number) {
    this.#most = most;
    this.#keep = keep;
  }

  /** A buffer of at least `bytes` bytes with any contents, or undefined while too much is lent out. */
  take(bytes: number): Uint8Array | undefined {
    const order = orderOf(bytes);
    const size = 2 ** order;
    if (this.lent > 0 && this.lent + size > this.#most) return undefined;
    this.lent += size;
    const buffer = this.#free[order]?.pop();
    if (buffer === undefined) return new Uint8Array(size);
    this.#idle -= size;
    return buffer;
  }

  giveBack(buffer: Uint8Array): void {
    this.lent -= buffer.length;
    if (this.#idle + buffer.length > this.#keep) return;
    this.#idle += buffer.length;
    const order = orderOf(buffer.length);
    let list = this.#free[order];
    if (list === undefined) {
      list = [];
      this.#free[order] = list;
    }
    list.push(buffer);
  }
}

const orderOf = (bytes: number): number => Math.max(SMALLEST, 32 - Math.clz32(bytes - 1));
