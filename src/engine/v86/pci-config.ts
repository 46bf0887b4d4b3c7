import type { AccessSize, PciFunction } from "../../transport/pci/function.ts";
import type { V86Pci } from "./internals.ts";

export const PCI_CONFIG_ADDRESS = 0xcf8;
export const PCI_CONFIG_DATA = 0xcfc;
const ENABLE = 0x80000000;
const ISA_BRIDGE = 1 << 3;

/**
 * Configuration mechanism #1 in front of v86's: the functions plugged in here answer for themselves, at the moment of the
 * access and with its width; v86's own devices go on as they are.
 */
export class PciConfig {
  readonly functions: (PciFunction | undefined)[] = new Array(256).fill(undefined);
  readonly #routesChanged: () => void;
  /** The functions v86 has itself; they never change. */
  #board: readonly boolean[] = [];
  #address: Int32Array = new Int32Array(1);

  /** @param routesChanged called before the guest's write to the ISA bridge, which routes the interrupt pins */
  constructor(routesChanged: () => void) {
    this.#routesChanged = routesChanged;
  }

  follow(pci: V86Pci): void {
    this.#board = Array.from({ length: 256 }, (_, devfn) => pci.device_spaces[devfn] !== undefined);
    this.#address = pci.pci_addr32;
  }

  /** True when v86 has a device of its own there. */
  occupied(devfn: number): boolean {
    return this.#board[devfn] === true;
  }

  /** A read of a data port; undefined leaves it to v86. */
  read(port: number, size: AccessSize): number | undefined {
    const device = this.functions[this.#devfn()];
    if (device === undefined) return undefined;
    const offset = this.#offset(port);
    if (aligned(port, size)) return device.configRead(offset, size);
    let value = 0;
    for (let i = 0; i < size && port + i < PCI_CONFIG_DATA + 4; i++)
      value |= device.configRead(offset + i, 1) << (8 * i);
    return value >>> 0;
  }

  /** A write to a data port; false leaves it to v86, which fails on functions that are not there. */
  write(port: number, size: AccessSize, value: number): boolean {
    const devfn = this.#devfn();
    const device = this.functions[devfn];
    if (device === undefined) {
      if (devfn === ISA_BRIDGE) this.#routesChanged();
      return !this.occupied(devfn);
    }
    const offset = this.#offset(port);
    if (aligned(port, size)) {
      device.configWrite(offset, size, value);
      return true;
    }
    for (let i = 0; i < size && port + i < PCI_CONFIG_DATA + 4; i++)
      device.configWrite(offset + i, 1, (value >>> (8 * i)) & 0xff);
    return true;
  }

  /** Device and function the address register names on bus 0, or -1. */
  #devfn(): number {
    const address = (this.#address[0] as number) >>> 0;
    return (address & 0xff0000) === 0 && address >= ENABLE ? (address >>> 8) & 0xff : -1;
  }

  #offset(port: number): number {
    return ((this.#address[0] as number) & 0xfc) + (port - PCI_CONFIG_DATA);
  }
}

function aligned(port: number, size: AccessSize): boolean {
  return (port & (size - 1)) === 0;
}
