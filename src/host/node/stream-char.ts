import type { Readable, Writable } from "node:stream";
import { AttachedSink } from "../../backend/char/attached.ts";
import type { CharBackend, CharSink } from "../../backend/char/types.ts";

/** Milliseconds that a reader gets for the last bytes when the back end is closed. */
const LINGER = 1000;

/**
 * A character back end over Node streams, which may come and go (a server's clients). Both directions keep their streams' own
 * bounds: what the guest does not take is left unread, and while the output is full the guest's bytes are not taken. Without an
 * output the guest's bytes are dropped, as into a cable that nobody holds.
 */
export class StreamCharBackend implements CharBackend {
  readonly name: string;
  readonly #attached: AttachedSink;
  #input: Readable | undefined;
  #output: Writable | undefined;
  #connected = false;
  /** Bytes that the guest did not take yet. */
  #pending: Uint8Array[] = [];
  #delivering = false;
  #full = false;

  constructor(name: string) {
    this.name = name;
    this.#attached = new AttachedSink(name);
  }

  get connected(): boolean {
    return this.#connected;
  }

  attach(sink: CharSink): void {
    this.#attached.attach(sink);
    sink.setOpen(this.#connected);
    this.#deliver();
  }

  /** Joins streams to the port; the old ones are let go. Errors of the streams are the caller's. */
  connect(input: Readable | undefined, output: Writable | undefined): void {
    this.disconnect();
    this.#input = input;
    this.#output = output;
    this.#connected = true;
    output?.on("drain", this.#onDrain);
    this.#attached.sink?.setOpen(true);
    input?.on("data", this.#onData);
  }

  /** Lets go of the streams; the guest sees the host's end closed. Bytes that it has not read yet are lost. */
  disconnect(): void {
    if (!this.#connected) return;
    this.#connected = false;
    this.#input?.off("data", this.#onData);
    this.#input?.pause();
    this.#output?.off("drain", this.#onDrain);
    this.#input = undefined;
    this.#output = undefined;
    this.#pending = [];
    this.#attached.sink?.setOpen(false);
    this.#onDrain();
  }

  write(bytes: Uint8Array): number {
    if (this.#full) return 0;
    const output = this.#output;
    if (output === undefined || output.destroyed || output.writableEnded) return bytes.length;
    // The bytes are guest memory, good during this call only.
    this.#full = !output.write(Uint8Array.from(bytes));
    return bytes.length;
  }

  drained(): void {
    this.#deliver();
  }

  guestOpen(_open: boolean): void {}

  /** Resolves when the output has taken everything, or a second later: its reader may never read again. */
  async close(): Promise<void> {
    const input = this.#input;
    const output = this.#output;
    this.disconnect();
    if (!Object.is(input, output)) input?.destroy();
    if (output === undefined || output.destroyed) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(() => output.destroy(), LINGER);
      const done = (): void => {
        clearTimeout(timer);
        resolve();
      };
      output.once("close", done);
      output.once("error", done);
      output.end(done);
    });
  }

  readonly #onData = (chunk: Uint8Array): void => {
    this.#pending.push(chunk);
    this.#deliver();
  };

  readonly #onDrain = (): void => {
    if (!this.#full) return;
    this.#full = false;
    this.#attached.sink?.writable();
  };

  #deliver(): void {
    const sink = this.#attached.sink;
    if (this.#delivering) return;
    this.#delivering = true;
    while (sink !== undefined) {
      const chunk = this.#pending[0];
      if (chunk === undefined) break;
      const taken = sink.receive(chunk);
      if (this.#pending[0] !== chunk) continue;
      if (taken < chunk.length) this.#pending[0] = chunk.subarray(taken);
      else this.#pending.shift();
      if (taken === 0) break;
    }
    this.#delivering = false;
    if (this.#pending.length > 0) this.#input?.pause();
    else if (this.#input?.isPaused()) this.#input.resume();
  }
}
