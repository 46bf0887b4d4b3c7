import type { AccessSize } from "./function.ts";

/** The 256 bytes of a function's configuration space, with a mask of the bits that software may write. */
export class ConfigBytes {
  readonly #bytes = new Uint8Array(256);
  readonly #writable = new Uint8Array(256);
  #start = new Uint8Array(256);

  /** Takes the present contents as those after a bus reset. */
  seal(): void {
    this.#start = this.#bytes.slice();
  }

  reset(): void {
    this.#bytes.set(this.#start);
  }

  get(offset: number, size: AccessSize): number {
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = value * 256 + (this.#bytes[offset + i] ?? 0);
    return value;
  }

  /** Sets a value from our side, whatever the mask says. */
  set(offset: number, size: AccessSize, value: number): void {
    for (let i = 0; i < size; i++) this.#bytes[offset + i] = Math.floor(value / 2 ** (8 * i)) & 0xff;
  }

  /** Lets software write these bits. */
  allow(offset: number, size: AccessSize, mask: number): void {
    for (let i = 0; i < size; i++) this.#writable[offset + i] = Math.floor(mask / 2 ** (8 * i)) & 0xff;
  }

  /** Software's write: only writable bits change. */
  write(offset: number, size: AccessSize, value: number): void {
    for (let i = 0; i < size && offset + i < 256; i++) {
      const mask = this.#writable[offset + i] as number;
      const byte = Math.floor(value / 2 ** (8 * i)) & 0xff;
      this.#bytes[offset + i] = ((this.#bytes[offset + i] as number) & ~mask) | (byte & mask);
    }
  }
}
