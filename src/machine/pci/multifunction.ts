import type { AccessSize, PciBar, PciFunction, PciHost } from "../../transport/pci/function.ts";

const HEADER_TYPE = 0x0e;
const MULTIFUNCTION = 0x80;

/** The function with the bit in its header type that makes the guest look for more functions in the slot. */
export function withMultifunctionBit(inner: PciFunction): PciFunction {
  return new MultifunctionHead(inner);
}

class MultifunctionHead implements PciFunction {
  readonly #inner: PciFunction;

  constructor(inner: PciFunction) {
    this.#inner = inner;
  }

  get name(): string {
    return this.#inner.name;
  }

  get interruptPin(): number {
    return this.#inner.interruptPin;
  }

  get bars(): readonly PciBar[] {
    return this.#inner.bars;
  }

  configRead(offset: number, size: AccessSize): number {
    const value = this.#inner.configRead(offset, size);
    const byte = HEADER_TYPE - offset;
    return byte >= 0 && byte < size ? (value | (MULTIFUNCTION << (8 * byte))) >>> 0 : value;
  }

  configWrite(offset: number, size: AccessSize, value: number): void {
    this.#inner.configWrite(offset, size, value);
  }

  barRead(bar: number, offset: number, size: AccessSize): number {
    return this.#inner.barRead(bar, offset, size);
  }

  barWrite(bar: number, offset: number, size: AccessSize, value: number): void {
    this.#inner.barWrite(bar, offset, size, value);
  }

  connect(host: PciHost): void {
    this.#inner.connect(host);
  }

  reset(): void {
    this.#inner.reset();
  }
}
