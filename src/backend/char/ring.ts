/** A bounded first-in-first-out of bytes. */
export class ByteRing {
  readonly capacity: number;
  readonly #bytes: Uint8Array;
  #start = 0;
  #length = 0;

  /** @param capacity bytes, 1 or more */
  constructor(capacity: number) {
    this.capacity = capacity;
    this.#bytes = new Uint8Array(capacity);
  }

  get length(): number {
    return this.#length;
  }
  get free(): number {
    return this.capacity - this.#length;
  }

  /** Appends as much as there is room for; returns how much. */
  write(bytes: Uint8Array): number {
    const n = Math.min(bytes.length, this.free);
    let at = (this.#start + this.#length) % this.capacity;
    for (let done = 0; done < n; ) {
      const part = Math.min(n - done, this.capacity - at);
      this.#bytes.set(bytes.subarray(done, done + part), at);
      done += part;
      at = 0;
    }
    this.#length += n;
    return n;
  }

  /** The oldest bytes that lie in one piece; empty only when the ring is. Good until the next call. */
  peek(): Uint8Array {
    return this.#bytes.subarray(this.#start, Math.min(this.#start + this.#length, this.capacity));
  }

  /** Drops the oldest `n` bytes. */
  skip(n: number): void {
    const most = Math.max(0, Math.min(n, this.#length));
    this.#start = (this.#start + most) % this.capacity;
    this.#length -= most;
  }

  /** Takes up to `most` bytes out. */
  read(most = this.#length): Uint8Array {
    const bytes = new Uint8Array(Math.min(most, this.#length));
    for (let done = 0; done < bytes.length; ) {
      const piece = this.peek().subarray(0, bytes.length - done);
      bytes.set(piece, done);
      done += piece.length;
      this.skip(piece.length);
    }
    return bytes;
  }

  clear(): void {
    this.#length = 0;
  }
}
