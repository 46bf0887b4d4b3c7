import { AttachedSink } from "./attached.ts";
import { ByteRing } from "./ring.ts";
import type { CharBackend, CharSink } from "./types.ts";

/** Keeps the last bytes that the guest wrote, for somebody to read them later; older ones are lost. */
export class RingCharBackend implements CharBackend {
  readonly name: string;
  readonly #ring: ByteRing;
  readonly #attached: AttachedSink;

  /** @param size bytes kept, 1 or more */
  constructor(size = 65536, name = "ringbuf") {
    this.name = name;
    this.#ring = new ByteRing(size);
    this.#attached = new AttachedSink(name);
  }

  /** Takes the bytes out, oldest first. */
  read(most?: number): Uint8Array {
    return this.#ring.read(most);
  }

  attach(sink: CharSink): void {
    this.#attached.attach(sink);
    sink.setOpen(true);
  }

  write(bytes: Uint8Array): number {
    const kept = bytes.subarray(Math.max(0, bytes.length - this.#ring.capacity));
    this.#ring.skip(kept.length - this.#ring.free);
    this.#ring.write(kept);
    return bytes.length;
  }

  drained(): void {}
  guestOpen(): void {}
  async close(): Promise<void> {}
}
