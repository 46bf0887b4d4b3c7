import type { AccessSize, BarKind, PciBar, PciFunction, PciHost } from "../../transport/pci/function.ts";

interface Declared {
  readonly index: number;
  readonly kind: BarKind;
  readonly size: number;
}

const DECLARED: readonly Declared[] = [
  { index: 0, kind: "io", size: 64 },
  { index: 1, kind: "mem32", size: 4096 },
  { index: 2, kind: "mem64", size: 1 << 18 },
];

/**
 * A bank of 64 registers behind three BARs, which notes each access. Reading offset 0x20 of any BAR lets go of the interrupt
 * pin; writing 0x30 calls {@link doorbell}.
 */
export class FakeFunction implements PciFunction {
  readonly name: string;
  readonly interruptPin: number;
  readonly log: string[] = [];
  readonly registers = new Uint8Array(64);
  readonly #config = new DataView(new ArrayBuffer(256));
  host: PciHost | undefined;
  resets = 0;
  doorbell: ((value: number) => void) | undefined;

  constructor(name: string, interruptPin = 1) {
    this.name = name;
    this.interruptPin = interruptPin;
    this.#clear();
  }

  get bars(): readonly PciBar[] {
    const command = this.#config.getUint16(4, true);
    return DECLARED.map((bar) => {
      const low = this.#config.getUint32(0x10 + 4 * bar.index, true);
      const high = bar.kind === "mem64" ? this.#config.getUint32(0x14 + 4 * bar.index, true) : 0;
      const enabled = (command & (bar.kind === "io" ? 1 : 2)) !== 0;
      const address = (bar.kind === "io" ? low & 0xfffc : (low & ~15) >>> 0) + high * 2 ** 32;
      const sizing = address === (bar.kind === "io" ? 0x10000 : 2 ** (bar.kind === "mem32" ? 32 : 64)) - bar.size;
      return { ...bar, address: enabled && address !== 0 && !sizing ? address : undefined };
    });
  }

  connect(host: PciHost): void {
    this.host = host;
  }

  reset(): void {
    this.resets++;
    this.#clear();
    this.host?.setIntx(false);
  }

  configRead(offset: number, size: AccessSize): number {
    if (size === 1) return this.#config.getUint8(offset);
    return size === 2 ? this.#config.getUint16(offset, true) : this.#config.getUint32(offset, true);
  }

  configWrite(offset: number, size: AccessSize, value: number): void {
    const bar = DECLARED.find(({ index }) => 0x10 + 4 * index === offset);
    if (offset === 4 && size === 2) this.#config.setUint16(4, value, true);
    else if (offset === 0x3c) this.#config.setUint8(0x3c, value & 0xff);
    else if (size === 4 && bar !== undefined)
      this.#config.setUint32(offset, ((value & -bar.size) | flags(bar)) >>> 0, true);
    else if (size === 4 && offset === 0x1c) this.#config.setUint32(offset, value, true);
    this.log.push(`config ${offset.toString(16)}/${size}`);
    this.host?.barsChanged();
  }

  barRead(bar: number, offset: number, size: AccessSize): number {
    this.log.push(`read ${bar}+${offset.toString(16)}/${size}`);
    if (offset === 0x20) this.host?.setIntx(false);
    let value = 0;
    for (let i = 0; i < size; i++) value |= (this.registers[(offset + i) & 63] as number) << (8 * i);
    return value >>> 0;
  }

  barWrite(bar: number, offset: number, size: AccessSize, value: number): void {
    this.log.push(`write ${bar}+${offset.toString(16)}/${size}=${value.toString(16)}`);
    for (let i = 0; i < size; i++) this.registers[(offset + i) & 63] = (value >>> (8 * i)) & 0xff;
    if (offset === 0x30) this.doorbell?.(value);
  }

  /** The accesses since the last call. */
  taken(): string[] {
    return this.log.splice(0);
  }

  #clear(): void {
    for (let at = 0; at < 256; at += 4) this.#config.setUint32(at, 0);
    this.#config.setUint32(0, 0x10f01af4, true);
    this.#config.setUint8(0x0b, 0xff);
    this.#config.setUint8(0x3d, this.interruptPin);
    for (const bar of DECLARED) this.#config.setUint32(0x10 + 4 * bar.index, flags(bar), true);
    this.registers.fill(0);
  }
}

function flags(bar: Declared): number {
  return bar.kind === "io" ? 1 : bar.kind === "mem64" ? 4 : 0;
}
