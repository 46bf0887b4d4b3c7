import type { Environment } from "../../common/environment.ts";
import { hex } from "../../common/error.ts";
import type { AddressRange, MsiMessage, PciAccess, PciResources } from "./access.ts";
import { intxLine, PciBus } from "./bus.ts";
import type { AccessSize } from "./function.ts";

export interface HostBridgeOptions {
  readonly environment: Environment;
  /**
   * When interrupts reach their handlers: "deferred" in a later turn of the event loop, "direct" as a call from within
   * the device. Deferred unless said.
   */
  readonly delivery?: "deferred" | "direct";
  /** How many messages drivers may have; 256 unless said. 0 makes them use INTx. */
  readonly msis?: number;
  readonly resources?: Partial<PciResources>;
}

/** Where x86 has its message window. */
const MSI_BASE = 0xfee00000;
const IO: AddressRange = { base: 0xc000, size: 0x4000 };
const MEM32: AddressRange = { base: 0xe0000000, size: 0x1000_0000 };
const MEM64: AddressRange = { base: 0x80_0000_0000, size: 0x10_0000_0000 };
/** Rounds of a level-triggered line before it is taken for stuck. */
const STUCK = 1000;

/** PCI bus 0 with drivers in the same process: what a host bridge and an interrupt controller are in a machine. */
export class PciHostBridge implements PciAccess {
  readonly bus: PciBus;
  readonly resources: PciResources;
  readonly #environment: Environment;
  readonly #direct: boolean;
  readonly #messages: ((() => void) | undefined)[];
  readonly #asserted = [false, false, false, false];
  readonly #lines: Set<() => void>[] = [new Set(), new Set(), new Set(), new Set()];
  readonly #pending = new Set<() => void>();
  #scheduled = false;
  #delivering = false;

  constructor(options: HostBridgeOptions) {
    this.#environment = options.environment;
    this.#direct = options.delivery === "direct";
    this.#messages = new Array(options.msis ?? 256).fill(undefined);
    this.resources = { io: IO, mem32: MEM32, mem64: MEM64, ...options.resources };
    this.bus = new PciBus({
      sendMsi: (address, data) => this.#message(address, data),
      setIntx: (line, asserted) => this.#level(line, asserted),
    });
  }

  configRead(device: number, fn: number, offset: number, size: AccessSize): number {
    return this.bus.configRead(device, fn, offset, size);
  }
  configWrite(device: number, fn: number, offset: number, size: AccessSize, value: number): void {
    this.bus.configWrite(device, fn, offset, size, value);
  }
  memRead(address: number, size: AccessSize): number {
    return this.bus.memRead(address, size);
  }
  memWrite(address: number, size: AccessSize, value: number): void {
    this.bus.memWrite(address, size, value);
  }
  ioRead(port: number, size: AccessSize): number {
    return this.bus.ioRead(port, size);
  }
  ioWrite(port: number, size: AccessSize, value: number): void {
    this.bus.ioWrite(port, size, value);
  }

  allocateMsi(handler: () => void): MsiMessage | undefined {
    const data = this.#messages.indexOf(undefined);
    if (data < 0) return undefined;
    this.#messages[data] = handler;
    return { address: MSI_BASE, data };
  }

  freeMsi(message: MsiMessage): void {
    const handler = this.#messages[message.data];
    if (handler !== undefined) this.#pending.delete(handler);
    this.#messages[message.data] = undefined;
  }

  onIntx(device: number, pin: number, handler: () => void): () => void {
    const line = intxLine(device, pin);
    this.#lines[line]?.add(handler);
    if (this.#asserted[line]) this.#level(line, true);
    return () => void this.#lines[line]?.delete(handler);
  }

  #message(address: number, data: number): void {
    const handler = address === MSI_BASE ? this.#messages[data] : undefined;
    if (handler === undefined)
      this.#environment.log.log("warn", `a message for nobody was written: ${hex(data)} to ${hex(address)}`);
    else if (this.#direct) handler();
    else {
      this.#pending.add(handler);
      this.#schedule();
    }
  }

  #level(line: number, asserted: boolean): void {
    this.#asserted[line] = asserted;
    if (!asserted) return;
    if (this.#direct) this.#serveLines();
    else this.#schedule();
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    this.#environment.defer(() => {
      this.#scheduled = false;
      const pending = [...this.#pending];
      this.#pending.clear();
      for (const handler of pending) handler();
      this.#serveLines();
    });
  }

  /** Calls the handlers of each line until the level is gone, as a level-triggered interrupt comes again and again. */
  #serveLines(): void {
    if (this.#delivering) return;
    this.#delivering = true;
    try {
      for (let round = 0; round < STUCK; round++) {
        const line = this.#lines.findIndex((handlers, i) => this.#asserted[i] === true && handlers.size > 0);
        if (line < 0) return;
        for (const handler of [...(this.#lines[line] ?? [])]) handler();
      }
      this.#environment.log.log("error", "an interrupt line stays asserted whatever its handlers do");
    } finally {
      this.#delivering = false;
    }
  }
}
