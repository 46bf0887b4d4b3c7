import type { CharBackend, CharSink } from "../backend/char/types.ts";

/** Bytes that wait for a slow back end; a UART has no way to hold the guest back, so what is beyond is lost, as on a real line. */
const BACKLOG_MAX = 1 << 20;

/** Input that may wait for the guest; a back end keeps what is beyond until there is room. */
const INPUT_MAX = 64 * 1024;

/** The guest's end of the line, as the engine has it. */
export interface SerialInput {
  /** Queues bytes for the guest. */
  send(bytes: Uint8Array): void;
  /** Bytes that are queued. */
  waiting(): number;
}

/** A serial port of the machine with a character back end at its other end. */
export class SerialPort implements CharSink {
  readonly #backend: CharBackend;
  readonly #input: SerialInput;
  #refused = false;
  #backlog: Uint8Array[] = [];
  #waiting = 0;
  /** Bytes that were lost because the back end was too slow. */
  lost = 0;

  constructor(backend: CharBackend, input: SerialInput) {
    this.#backend = backend;
    this.#input = input;
    backend.attach(this);
    backend.guestOpen(true);
  }

  /** Bytes from the guest. */
  transmit(bytes: Uint8Array): void {
    const taken = this.#backlog.length > 0 ? 0 : this.#backend.write(bytes);
    const rest = bytes.length - taken;
    if (rest === 0) return;
    if (this.#waiting + rest > BACKLOG_MAX) {
      this.lost += rest;
      return;
    }
    this.#backlog.push(bytes.slice(taken));
    this.#waiting += rest;
  }

  receive(bytes: Uint8Array): number {
    const taken = Math.min(bytes.length, Math.max(0, INPUT_MAX - this.#input.waiting()));
    this.#refused = taken < bytes.length;
    if (taken > 0) this.#input.send(bytes.slice(0, taken));
    return taken;
  }

  /** The guest has been given all that was queued. */
  drained(): void {
    if (!this.#refused) return;
    this.#refused = false;
    this.#backend.drained();
  }

  setOpen(_open: boolean): void {}

  writable(): void {
    for (let first = this.#backlog[0]; first !== undefined; first = this.#backlog[0]) {
      const taken = this.#backend.write(first);
      this.#waiting -= taken;
      if (taken < first.length) {
        this.#backlog[0] = first.subarray(taken);
        return;
      }
      this.#backlog.shift();
    }
  }
}
