import type { CharBackend, CharSink } from "../../backend/char/types.ts";

/** The names of the agent's virtio ports (`virtserialport`'s property `name`), by what they carry. */
export const AGENT_PORT_NAMES = {
  control: "org.virtkit.exec.0",
  stdin: "org.virtkit.stdin.0",
  stdout: "org.virtkit.stdout.0",
  stderr: "org.virtkit.stderr.0",
} as const;

/** A port that bytes go out on, to the guest: whole writes are queued here and fed as the guest takes them. */
export class OutgoingPort implements CharBackend {
  readonly name: string;
  #sink: CharSink | undefined;
  #queue: Uint8Array[] = [];
  #offset = 0;
  #isGuestOpen = false;
  #isOpen = false;
  #onEmpty: () => void = () => {};
  readonly #onData: (bytes: Uint8Array) => void;
  readonly #onGuestOpen: (open: boolean) => void;

  constructor(name: string, onGuestOpen: (open: boolean) => void, onData: (bytes: Uint8Array) => void = () => {}) {
    this.name = name;
    this.#onGuestOpen = onGuestOpen;
    this.#onData = onData;
  }

  get isGuestOpen(): boolean {
    return this.#isGuestOpen;
  }

  get isEmpty(): boolean {
    return this.#queue.length === 0;
  }

  /** Called each time that all that was sent has been taken. */
  set onEmpty(callback: () => void) {
    this.#onEmpty = callback;
  }

  setOpen(open: boolean): void {
    this.#isOpen = open;
    this.#sink?.setOpen(open);
  }

  /** Queues bytes, which must not change until they are taken. */
  send(bytes: Uint8Array): void {
    if (bytes.length > 0) this.#queue.push(bytes);
    this.#pump();
  }

  /** Forgets what the guest has not taken. */
  clear(): void {
    this.#queue = [];
    this.#offset = 0;
  }

  #pump(): void {
    if (!this.#sink || !this.#isGuestOpen) return;
    while (this.#queue.length > 0) {
      const bytes = this.#offset === 0 ? this.#queue[0] : this.#queue[0].subarray(this.#offset);
      const taken = this.#sink.receive(bytes);
      if (taken < bytes.length) {
        this.#offset += taken;
        return;
      }
      this.#queue.shift();
      this.#offset = 0;
    }
    this.#onEmpty();
  }

  attach(sink: CharSink): void {
    this.#sink = sink;
    sink.setOpen(this.#isOpen);
  }

  write(bytes: Uint8Array): number {
    this.#onData(bytes);
    return bytes.length;
  }

  drained(): void {
    this.#pump();
  }

  guestOpen(open: boolean): void {
    if (open === this.#isGuestOpen) return;
    this.#isGuestOpen = open;
    if (!open) this.clear();
    this.#onGuestOpen(open);
    if (open) this.#pump();
  }

  async close(): Promise<void> {
    this.clear();
    this.#sink = undefined;
  }
}

/** A port that a command's output comes in on. While `pause`d the guest has to wait. */
export class IncomingPort implements CharBackend {
  readonly name: string;
  #sink: CharSink | undefined;
  #paused = 0;
  #receive: ((bytes: Uint8Array) => void) | undefined;

  constructor(name: string) {
    this.name = name;
  }

  /** Takes what comes from now on; nothing: it is dropped. */
  set receiver(receive: ((bytes: Uint8Array) => void) | undefined) {
    this.#receive = receive;
  }

  pause(): void {
    this.#paused++;
  }

  resume(): void {
    this.#paused--;
    if (this.#paused === 0) this.#sink?.writable();
  }

  attach(sink: CharSink): void {
    this.#sink = sink;
    sink.setOpen(true);
  }

  write(bytes: Uint8Array): number {
    if (this.#paused > 0) return 0;
    this.#receive?.(bytes);
    return bytes.length;
  }

  drained(): void {}

  guestOpen(): void {}

  async close(): Promise<void> {
    this.#receive = undefined;
    this.#sink = undefined;
  }
}
