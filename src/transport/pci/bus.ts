import { hex, VirtkitError } from "../../common/error.ts";
import { PCI_HEADER_TYPE } from "../../spec/pci.ts";
import type { AccessSize, PciBar, PciFunction } from "./function.ts";

/** What the machine around a bus takes from it. */
export interface PciBusHost {
  /** A message-signalled interrupt: a 32-bit write of `data` to `address`. */
  sendMsi(address: number, data: number): void;
  /** One of the four interrupt lines (0..3), the OR of all pins wired to it, has changed. */
  setIntx(line: number, asserted: boolean): void;
  /** The map of BARs changed; see {@link PciBus.windows}. */
  windowsChanged?(): void;
}

/** A BAR that decodes, as the machine sees it. */
export interface PciWindow {
  readonly io: boolean;
  /** First address. */
  readonly base: number;
  /** One past the last. */
  readonly end: number;
  readonly function: PciFunction;
  readonly bar: number;
}

interface Slot {
  readonly function: PciFunction;
  readonly devfn: number;
  intx: boolean;
}

const DEVICES = 32;
const FUNCTIONS = 8;
const LINES = 4;
const MULTIFUNCTION = 0x80;

/** Device and function numbers in one: device * 8 + function. */
export const devfn = (device: number, fn: number): number => device * FUNCTIONS + fn;

/** All ones of a width: what a read gives that nobody answers. */
const floating = (size: AccessSize): number => 2 ** (8 * size) - 1;

/**
 * PCI bus 0 in this process: slots with functions, decoding of configuration, memory and I/O accesses, interrupt lines. Memory that
 * no BAR claims reads as all ones and takes writes without effect.
 */
export class PciBus {
  readonly #host: PciBusHost;
  readonly #slots: (Slot | undefined)[] = new Array(DEVICES * FUNCTIONS).fill(undefined);
  readonly #lines = new Uint16Array(LINES);
  #windows: PciWindow[] = [];
  #lastMem: PciWindow | undefined;
  #lastIo: PciWindow | undefined;

  constructor(host: PciBusHost) {
    this.#host = host;
  }

  /** The BARs that decode now. The array never changes; a new one replaces it. */
  get windows(): readonly PciWindow[] {
    return this.#windows;
  }

  /** What is plugged into a slot. */
  at(device: number, fn = 0): PciFunction | undefined {
    return this.#slots[devfn(device, fn)]?.function;
  }

  /**
   * Plugs a function in, into the first free device unless one is named. Returns the device number.
   * @throws ERR_VIRTKIT_PCI_SLOT when the slot is taken or there is none
   */
  plug(pciFunction: PciFunction, device = this.#freeDevice(), fn = 0): number {
    if (!(device >= 0 && device < DEVICES && fn >= 0 && fn < FUNCTIONS))
      throw new VirtkitError("ERR_VIRTKIT_PCI_SLOT", `no PCI slot ${hex(device)}.${fn} for ${pciFunction.name}`);
    const number = devfn(device, fn);
    const other = this.#slots[number];
    if (other !== undefined)
      throw new VirtkitError(
        "ERR_VIRTKIT_PCI_SLOT",
        `PCI slot ${hex(device)}.${fn} is taken by ${other.function.name}; give ${pciFunction.name} another addr`,
      );
    const slot: Slot = { function: pciFunction, devfn: number, intx: false };
    this.#slots[number] = slot;
    pciFunction.connect({
      setIntx: (asserted) => this.#setIntx(slot, asserted),
      sendMsi: (address, data) => {
        if (this.#slots[number] === slot) this.#host.sendMsi(address, data);
      },
      barsChanged: () => this.#decode(),
    });
    this.#decode();
    return device;
  }

  /** Takes a function out; it is reset first, so that it lets go of guest memory. */
  unplug(device: number, fn = 0): void {
    const slot = this.#slots[devfn(device, fn)];
    if (slot === undefined) return;
    slot.function.reset();
    this.#setIntx(slot, false);
    this.#slots[devfn(device, fn)] = undefined;
    this.#decode();
  }

  /** Bus reset. */
  reset(): void {
    for (const slot of this.#slots) slot?.function.reset();
  }

  configRead(device: number, fn: number, offset: number, size: AccessSize): number {
    const slot = this.#slots[devfn(device, fn)];
    if (slot === undefined) return floating(size);
    const value = slot.function.configRead(offset, size);
    const covers = offset <= PCI_HEADER_TYPE && offset + size > PCI_HEADER_TYPE;
    if (!covers || fn !== 0 || !this.#multifunction(device)) return value;
    const scale = 2 ** (8 * (PCI_HEADER_TYPE - offset));
    return (Math.floor(value / scale) & MULTIFUNCTION) === 0 ? value + MULTIFUNCTION * scale : value;
  }

  configWrite(device: number, fn: number, offset: number, size: AccessSize, value: number): void {
    this.#slots[devfn(device, fn)]?.function.configWrite(offset, size, value);
  }

  memRead(address: number, size: AccessSize): number {
    const window = this.#findMem(address);
    return window === undefined ? floating(size) : window.function.barRead(window.bar, address - window.base, size);
  }

  memWrite(address: number, size: AccessSize, value: number): void {
    const window = this.#findMem(address);
    if (window !== undefined) window.function.barWrite(window.bar, address - window.base, size, value);
  }

  ioRead(port: number, size: AccessSize): number {
    const window = this.#findIo(port);
    return window === undefined ? floating(size) : window.function.barRead(window.bar, port - window.base, size);
  }

  ioWrite(port: number, size: AccessSize, value: number): void {
    const window = this.#findIo(port);
    if (window !== undefined) window.function.barWrite(window.bar, port - window.base, size, value);
  }

  #findMem(address: number): PciWindow | undefined {
    const last = this.#lastMem;
    if (last !== undefined && address >= last.base && address < last.end) return last;
    const found = find(this.#windows, address, false);
    if (found !== undefined) this.#lastMem = found;
    return found;
  }

  #findIo(port: number): PciWindow | undefined {
    const last = this.#lastIo;
    if (last !== undefined && port >= last.base && port < last.end) return last;
    const found = find(this.#windows, port, true);
    if (found !== undefined) this.#lastIo = found;
    return found;
  }

  #freeDevice(): number {
    for (let device = 0; device < DEVICES; device++) {
      const first = devfn(device, 0);
      if (this.#slots.slice(first, first + FUNCTIONS).every((slot) => slot === undefined)) return device;
    }
    throw new VirtkitError("ERR_VIRTKIT_PCI_SLOT", `all ${DEVICES} PCI slots are taken`);
  }

  #multifunction(device: number): boolean {
    for (let fn = 1; fn < FUNCTIONS; fn++) if (this.#slots[devfn(device, fn)] !== undefined) return true;
    return false;
  }

  /** Pins are wired to lines in turn, so that neighbours do not share one: (device + pin - 1) mod 4. */
  #setIntx(slot: Slot, asserted: boolean): void {
    if (slot.intx === asserted) return;
    slot.intx = asserted;
    const line = intxLine(Math.floor(slot.devfn / FUNCTIONS), slot.function.interruptPin);
    const pins = (this.#lines[line] as number) + (asserted ? 1 : -1);
    this.#lines[line] = pins;
    if (pins === (asserted ? 1 : 0)) this.#host.setIntx(line, asserted);
  }

  #decode(): void {
    const windows: PciWindow[] = [];
    for (const slot of this.#slots) for (const bar of slot?.function.bars ?? []) addWindow(windows, slot, bar);
    this.#windows = windows;
    this.#lastMem = undefined;
    this.#lastIo = undefined;
    this.#host.windowsChanged?.();
  }
}

/** The interrupt line, 0..3, that a device's pin (1..4) is wired to. */
export const intxLine = (device: number, pin: number): number => (device + pin - 1) % LINES;

function addWindow(windows: PciWindow[], slot: Slot | undefined, bar: PciBar): void {
  if (slot === undefined || bar.address === undefined) return;
  windows.push({
    io: bar.kind === "io",
    base: bar.address,
    end: bar.address + bar.size,
    function: slot.function,
    bar: bar.index,
  });
}

/** Where two BARs overlap, the one in the lower slot answers. */
function find(windows: readonly PciWindow[], address: number, io: boolean): PciWindow | undefined {
  for (const window of windows) if (window.io === io && address >= window.base && address < window.end) return window;
  return undefined;
}
