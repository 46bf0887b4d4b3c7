import type { PciFunction } from "../transport/pci/function.ts";
import type { PciSlots } from "./machine-host.ts";

/**
 * A PCI bus in front of the engine's. Devices are built (and their images opened) before the guest boots or is restored, but a saved
 * state knows no device of ours, so they only reach the engine's bus with {@link plugIn}.
 */
export class DeferredSlots implements PciSlots {
  readonly #bus: PciSlots;
  #waiting: Map<PciFunction, number> | undefined = new Map();

  constructor(bus: PciSlots) {
    this.#bus = bus;
  }

  attach(device: PciFunction, devfn: number): void {
    if (this.#waiting === undefined) this.#bus.attach(device, devfn);
    else this.#waiting.set(device, devfn);
  }

  detach(device: PciFunction): void {
    if (this.#waiting?.delete(device) !== true) this.#bus.detach(device);
  }

  occupied(devfn: number): boolean {
    return this.#bus.occupied(devfn) || [...(this.#waiting?.values() ?? [])].includes(devfn);
  }

  /** Plugs in what came so far; what comes later goes straight through. */
  plugIn(): void {
    const waiting = this.#waiting ?? new Map<PciFunction, number>();
    this.#waiting = undefined;
    for (const [device, devfn] of waiting) this.#bus.attach(device, devfn);
  }
}
