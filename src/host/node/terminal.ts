import type { Readable, Writable } from "node:stream";
import { AttachedSink } from "../../backend/char/attached.ts";
import { EscapeFilter, escapeHelp } from "../../backend/char/escape.ts";
import { ByteRing } from "../../backend/char/ring.ts";
import type { CharBackend, CharSink } from "../../backend/char/types.ts";
import { enterRawMode, type RawTty } from "./raw-mode.ts";

/** Typed bytes that wait for a guest which does not read; more are lost on a terminal, left unread on a pipe. */
const TYPED_AHEAD = 256 * 1024;
const CTRL_C = 3;

export interface TerminalOptions {
  /** Default standard input and output. */
  readonly input?: Readable & RawTty;
  readonly output?: Writable & { readonly columns?: number; readonly rows?: number };
  /** Ctrl-A is the escape character (Ctrl-A X quits). Default true. */
  readonly mux?: boolean;
  /** Ctrl-C interrupts this program, instead of reaching the guest. Default false. */
  readonly signal?: boolean;
  /** Ctrl-A X. */
  readonly onQuit: () => void;
  /** Ctrl-C with `signal`; default SIGINT to this program. */
  readonly onInterrupt?: () => void;
}

/**
 * The user's terminal, as one character back end or several: what they write is shown, what is typed goes to the one in front;
 * Ctrl-A C takes the next. The terminal is raw while somebody is attached, and always put back (see {@link enterRawMode}).
 */
export class Terminal {
  /** The size of the window changed. */
  onResize: ((cols: number, rows: number) => void) | undefined;
  readonly #input: Readable & RawTty;
  readonly #output: Writable & { readonly columns?: number; readonly rows?: number };
  readonly #options: TerminalOptions;
  readonly #filter: EscapeFilter | undefined;
  readonly #channels: Channel[] = [];
  #front = 0;
  #leaveRaw: (() => void) | undefined;
  #full = false;

  constructor(options: TerminalOptions) {
    this.#options = options;
    this.#input = options.input ?? process.stdin;
    this.#output = options.output ?? process.stdout;
    this.#filter = options.mux === false ? undefined : new EscapeFilter();
  }

  /** Size of the window in characters; zeros when unknown. */
  get size(): { cols: number; rows: number } {
    return { cols: this.#output.columns ?? 0, rows: this.#output.rows ?? 0 };
  }

  /** Makes one more back end of this terminal. */
  channel(name = "stdio"): CharBackend {
    const channel = new Channel(name, {
      attached: () => this.#start(),
      write: (bytes) => this.#write(bytes),
      taken: () => this.#taken(),
      gone: (gone) => this.#remove(gone),
    });
    this.#channels.push(channel);
    return channel;
  }

  /** Puts the terminal back and stops reading. Idempotent. */
  close(): void {
    this.#leaveRaw?.();
    if (this.#leaveRaw === undefined) return;
    this.#leaveRaw = undefined;
    this.#input.off("data", this.#onData);
    this.#input.pause();
    this.#output.off("drain", this.#onDrain);
    this.#output.off("resize", this.#onResized);
    this.#output.off("error", this.#onError);
    this.#input.off("error", this.#onError);
  }

  #start(): void {
    if (this.#leaveRaw !== undefined) return;
    this.#leaveRaw = enterRawMode(this.#input);
    this.#output.on("drain", this.#onDrain);
    this.#output.on("resize", this.#onResized);
    // A reader that went away (EPIPE) is no reason to stop the guest.
    this.#output.on("error", this.#onError);
    this.#input.on("error", this.#onError);
    this.#input.on("data", this.#onData);
  }

  readonly #onError = (): void => this.#onDrain();
  readonly #onResized = (): void => this.onResize?.(this.size.cols, this.size.rows);

  readonly #onDrain = (): void => {
    if (!this.#full) return;
    this.#full = false;
    for (const channel of [...this.#channels]) channel.writable();
  };

  readonly #onData = (chunk: Uint8Array | string): void => {
    const bytes = typeof chunk === "string" ? Buffer.from(chunk) : chunk;
    if (this.#filter === undefined) this.#typed(bytes);
    else
      this.#filter.feed(bytes, {
        data: (part) => this.#typed(part),
        command: (command) => this.#command(command),
      });
  };

  #typed(bytes: Uint8Array): void {
    if (this.#options.signal === true && this.#input.isTTY === true && bytes.includes(CTRL_C)) {
      if (this.#options.onInterrupt !== undefined) this.#options.onInterrupt();
      else process.kill(process.pid, "SIGINT");
      return;
    }
    const room = this.#channels[this.#front]?.typed(bytes) ?? TYPED_AHEAD;
    // A user must always reach the escape character; a pipe can wait.
    if (room < TYPED_AHEAD / 2 && this.#input.isTTY !== true) this.#input.pause();
  }

  #taken(): void {
    if (this.#leaveRaw !== undefined && this.#input.isPaused()) this.#input.resume();
  }

  #command(command: "help" | "quit" | "switch" | "break"): void {
    if (command === "quit") this.#options.onQuit();
    else if (command === "help") this.#output.write(`${escapeHelp()}\r\n`);
    else if (command === "switch" && this.#channels.length > 1) {
      this.#front = (this.#front + 1) % this.#channels.length;
      this.#output.write(`\r\n[${this.#channels[this.#front]?.name}]\r\n`);
    }
  }

  #write(bytes: Uint8Array): number {
    if (this.#full) return 0;
    if (this.#output.destroyed || this.#output.writableEnded) return bytes.length;
    this.#full = !this.#output.write(Uint8Array.from(bytes));
    return bytes.length;
  }

  #remove(channel: Channel): void {
    const at = this.#channels.indexOf(channel);
    if (at < 0) return;
    this.#channels.splice(at, 1);
    this.#front = this.#channels.length === 0 ? 0 : this.#front % this.#channels.length;
    if (this.#channels.length === 0) this.close();
  }
}

interface ChannelHost {
  attached(): void;
  write(bytes: Uint8Array): number;
  /** The guest took typed bytes. */
  taken(): void;
  gone(channel: Channel): void;
}

class Channel implements CharBackend {
  readonly name: string;
  readonly #host: ChannelHost;
  readonly #attached: AttachedSink;
  readonly #typed = new ByteRing(TYPED_AHEAD);
  #delivering = false;
  #waits = false;

  constructor(name: string, host: ChannelHost) {
    this.name = name;
    this.#host = host;
    this.#attached = new AttachedSink(name);
  }

  attach(sink: CharSink): void {
    this.#attached.attach(sink);
    sink.setOpen(true);
    this.#host.attached();
  }

  write(bytes: Uint8Array): number {
    const taken = this.#host.write(bytes);
    this.#waits = taken < bytes.length;
    return taken;
  }

  writable(): void {
    if (!this.#waits) return;
    this.#waits = false;
    this.#attached.sink?.writable();
  }

  /** Returns the room that is left. */
  typed(bytes: Uint8Array): number {
    this.#typed.write(bytes);
    this.drained();
    return this.#typed.free;
  }

  drained(): void {
    const sink = this.#attached.sink;
    if (sink === undefined || this.#delivering) return;
    this.#delivering = true;
    let moved = 0;
    while (this.#typed.length > 0) {
      const taken = sink.receive(this.#typed.peek());
      if (taken === 0) break;
      this.#typed.skip(taken);
      moved += taken;
    }
    this.#delivering = false;
    if (moved > 0) this.#host.taken();
  }

  guestOpen(): void {}

  async close(): Promise<void> {
    this.#host.gone(this);
  }
}
