import { AttachedSink } from "./attached.ts";
import { ByteRing } from "./ring.ts";
import type { CharBackend, CharSink } from "./types.ts";

/** The host's end of a {@link MemoryCharBackend}. */
export interface CharStream {
  /** Bytes for the guest; returns how many were taken. For the rest wait for {@link onWritable}. */
  write(bytes: Uint8Array): number;
  /** Takes up to `most` bytes of the guest's; empty when there are none now. */
  read(most?: number): Uint8Array;
  /** Bytes that wait for {@link read}. */
  readonly available: number;
  /** Opens or closes this end; the guest sees it. It begins open. */
  setOpen(open: boolean): void;
  /** The guest has its end open. */
  readonly guestOpen: boolean;
  /** Called when {@link available} grows. */
  onReadable: (() => void) | undefined;
  /** Called when {@link write} can take bytes again after it took fewer than it was given. */
  onWritable: (() => void) | undefined;
  onGuestOpen: ((open: boolean) => void) | undefined;
}

/** A character back end whose other end is in the same program, with a bounded buffer in each direction. */
export class MemoryCharBackend implements CharBackend {
  readonly name: string;
  /** The program's end. */
  readonly stream: CharStream;
  readonly #attached: AttachedSink;
  readonly #toGuest: ByteRing;
  readonly #fromGuest: ByteRing;
  #open = true;
  #guestOpen = false;
  /** The guest was told that the buffer is full. */
  #full = false;
  /** The program was. */
  #streamFull = false;
  #closed = false;

  /** @param capacity bytes buffered in each direction, 1 or more */
  constructor(options: { name?: string; capacity?: number } = {}) {
    this.name = options.name ?? "memory";
    const capacity = options.capacity ?? 65536;
    this.#attached = new AttachedSink(this.name);
    this.#toGuest = new ByteRing(capacity);
    this.#fromGuest = new ByteRing(capacity);
    this.stream = this.#makeStream();
  }

  attach(sink: CharSink): void {
    this.#attached.attach(sink);
    sink.setOpen(this.#open);
    this.#deliver();
  }

  write(bytes: Uint8Array): number {
    if (this.#closed) return bytes.length;
    const taken = this.#fromGuest.write(bytes);
    this.#full = taken < bytes.length;
    if (taken > 0) this.stream.onReadable?.();
    return taken;
  }

  drained(): void {
    this.#deliver();
  }

  guestOpen(open: boolean): void {
    this.#guestOpen = open;
    this.stream.onGuestOpen?.(open);
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#attached.sink?.setOpen(false);
    this.#fromGuest.clear();
    this.#toGuest.clear();
    this.#readSome();
  }

  #makeStream(): CharStream {
    const backend = this;
    return {
      write: (bytes) => this.#streamWrite(bytes),
      read: (most) => {
        const bytes = this.#fromGuest.read(most);
        if (bytes.length > 0) this.#readSome();
        return bytes;
      },
      get available() {
        return backend.#fromGuest.length;
      },
      setOpen: (open) => {
        this.#open = open;
        this.#attached.sink?.setOpen(open);
      },
      get guestOpen() {
        return backend.#guestOpen;
      },
      onReadable: undefined,
      onWritable: undefined,
      onGuestOpen: undefined,
    };
  }

  #streamWrite(bytes: Uint8Array): number {
    if (this.#closed) return bytes.length;
    this.#streamFull = false;
    let taken = 0;
    do {
      taken += this.#toGuest.write(bytes.subarray(taken));
      this.#deliver();
    } while (taken < bytes.length && this.#toGuest.free > 0);
    this.#streamFull = taken < bytes.length;
    return taken;
  }

  /** Gives the guest what it takes. */
  #deliver(): void {
    const sink = this.#attached.sink;
    if (sink === undefined) return;
    let moved = 0;
    while (this.#toGuest.length > 0) {
      const taken = sink.receive(this.#toGuest.peek());
      if (taken === 0) break;
      this.#toGuest.skip(taken);
      moved += taken;
    }
    if (moved === 0 || !this.#streamFull) return;
    this.#streamFull = false;
    this.stream.onWritable?.();
  }

  #readSome(): void {
    if (!this.#full) return;
    this.#full = false;
    this.#attached.sink?.writable();
  }
}
