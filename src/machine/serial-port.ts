import type { CharBackend, CharSink } from "../backend/char/types.ts";

/** Bytes that wait for a slow back end; a UART has no way to hold the guest back, so what is beyond is lost, as on a real line. */
const BACKLOG_MAX = 1 << 20;

/** A serial port of the machine with a character back end at its other end. */
export class SerialPort implements CharSink {
  readonly #backend: CharBackend;
  readonly #send: (bytes: Uint8Array) => void;
  #backlog: Uint8Array[] = [];
  #waiting = 0;
  /** Bytes that were lost because the back end was too slow. */
  lost = 0;

  /** @param send gives the guest bytes; they are queued */
  constructor(backend: CharBackend, send: (bytes: Uint8Array) => void) {
    this.#backend = backend;
    this.#send = send;
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
    this.#send(bytes.slice());
    return bytes.length;
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
