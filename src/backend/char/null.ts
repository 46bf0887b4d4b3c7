import { AttachedSink } from "./attached.ts";
import type { CharBackend, CharSink } from "./types.ts";

/** Takes everything and has nothing. */
export class NullCharBackend implements CharBackend {
  readonly name: string;
  readonly #attached: AttachedSink;

  constructor(name = "null") {
    this.name = name;
    this.#attached = new AttachedSink(name);
  }

  attach(sink: CharSink): void {
    this.#attached.attach(sink);
    sink.setOpen(true);
  }
  write(bytes: Uint8Array): number {
    return bytes.length;
  }
  drained(): void {}
  guestOpen(): void {}
  async close(): Promise<void> {}
}
