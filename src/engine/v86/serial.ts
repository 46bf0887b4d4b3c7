import type { V86Instance } from "./internals.ts";

/** As many bytes as a guest's driver takes at one interrupt. */
const BURST = 256;

/** COM1..COM4: gathers what the guest writes in a turn, and feeds input no faster than the guest reads it. */
export class Serial {
  readonly #ports: Port[];

  constructor(count: number) {
    this.#ports = Array.from({ length: count }, (_, index) => new Port(index));
  }

  /** Goes on with another instance; undefined while there is none. */
  follow(instance: V86Instance | undefined): void {
    for (const port of this.#ports) port.follow(instance);
  }

  /** Queues input; false when there is no such port. */
  send(port: number, bytes: Uint8Array): boolean {
    const target = this.#ports[port];
    if (target === undefined) return false;
    for (let at = 0; at < bytes.length; at += BURST) target.pending.push(bytes.slice(at, at + BURST));
    return true;
  }

  /** Bytes of input that the guest has not been given yet. */
  waiting(port: number): number {
    return (this.#ports[port]?.pending ?? []).reduce((sum, bytes) => sum + bytes.length, 0);
  }

  /** Gives the guest input where it has read the last; calls `emptied` for a port that has no more. */
  feed(emptied: (port: number) => void): void {
    for (const port of this.#ports) if (port.feed() && port.pending.length === 0) emptied(port.index);
  }

  /** True when a port has input waiting and its guest has read what it got. */
  get hungry(): boolean {
    return this.#ports.some((port) => port.pending.length > 0 && port.drained);
  }

  /** Hands over what the guest wrote. */
  flush(sink: (port: number, bytes: Uint8Array) => void): void {
    for (const port of this.#ports) {
      const bytes = port.take();
      if (bytes !== undefined) sink(port.index, bytes);
    }
  }
}

class Port {
  readonly index: number;
  readonly pending: Uint8Array[] = [];
  #instance: V86Instance | undefined;
  #output = new Uint8Array(256);
  #length = 0;

  constructor(index: number) {
    this.index = index;
  }

  follow(instance: V86Instance | undefined): void {
    this.#instance = instance;
    instance?.add_listener(`serial${this.index}-output-byte`, (byte) => {
      if (this.#length === this.#output.length) {
        const larger = new Uint8Array(2 * this.#length);
        larger.set(this.#output);
        this.#output = larger;
      }
      this.#output[this.#length++] = byte;
    });
  }

  get drained(): boolean {
    return this.#uart()?.input.length === 0;
  }

  /** True when it gave something. */
  feed(): boolean {
    const bytes = this.drained ? this.pending.shift() : undefined;
    if (bytes === undefined) return false;
    for (const byte of bytes) this.#instance?.bus.send(`serial${this.index}-input`, byte);
    return true;
  }

  take(): Uint8Array | undefined {
    if (this.#length === 0) return undefined;
    const bytes = this.#output.slice(0, this.#length);
    this.#length = 0;
    return bytes;
  }

  #uart() {
    const devices = this.#instance?.v86.cpu.devices;
    return devices === undefined ? undefined : [devices.uart0, devices.uart1, devices.uart2, devices.uart3][this.index];
  }
}
