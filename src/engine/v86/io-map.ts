import type { AccessSize, PciBar, PciFunction } from "../../transport/pci/function.ts";
import type { ReadAccess, V86Imports, WriteAccess } from "./internals.ts";
import type { MemoryWindow } from "./memory-window.ts";

/** Where a BAR answers. Addresses are unsigned; `end` is one past the last. */
interface Range {
  readonly start: number;
  readonly end: number;
  readonly device: PciFunction;
  readonly bar: number;
}

/** A register or port of the board itself, which the engine answers in v86's place. */
export interface BoardPorts {
  /** What the guest reads, or undefined to let v86 answer. */
  read(port: number, size: AccessSize): number | undefined;
  /** True when v86 must not see the write. */
  write(port: number, size: AccessSize, value: number): boolean;
}

const BLOCK_BITS = 17;
const NOTHING: Range = { start: -1, end: -1, device: undefined as never, bar: 0 };
const OWNER_V86 = 0;
const OWNER_BOARD = 1;
const OWNER_BAR = 2;

/**
 * Decodes the guest's accesses. It stands between v86's WebAssembly module and v86's own device models ({@link install}): what
 * lies in a BAR of ours goes to its function, everything else to v86.
 *
 * Functions see naturally aligned accesses inside their BAR only; others are split into bytes. v86 itself splits a
 * 16-bit read of memory into two 8-bit reads, and wider accesses into 32-bit ones.
 */
export class IoMap {
  readonly #memorySize: number;
  readonly #board: BoardPorts;
  #window: MemoryWindow | undefined;
  #memory: Range[] = [];
  #ports: Range[] = [];
  /** 1 where a 128 KiB block of memory holds (part of) a BAR. */
  readonly #blocks = new Uint8Array(2 ** (32 - BLOCK_BITS));
  /** Who answers a port: OWNER_*. */
  readonly #owner = new Uint8Array(0x10000);
  #last: Range = NOTHING;

  /** @param memorySize bytes of RAM: v86 never asks us below, so a BAR put there does not answer */
  constructor(memorySize: number, board: BoardPorts) {
    this.#memorySize = memorySize;
    this.#board = board;
  }

  /** The window to keep live when the guest enters; before the guest runs. */
  follow(window: MemoryWindow): void {
    this.#window = window;
  }

  /** Puts this map in front of v86's functions. `imports` is what the WebAssembly module is about to be given. */
  install(imports: V86Imports): void {
    this.#installMemory(imports);
    imports.io_port_read8 = this.#portReader(imports.io_port_read8, 1);
    imports.io_port_read16 = this.#portReader(imports.io_port_read16, 2);
    imports.io_port_read32 = this.#portReader(imports.io_port_read32, 4);
    imports.io_port_write8 = this.#portWriter(imports.io_port_write8, 1);
    imports.io_port_write16 = this.#portWriter(imports.io_port_write16, 2);
    imports.io_port_write32 = this.#portWriter(imports.io_port_write32, 4);
  }

  /** Gives [first, last] to {@link BoardPorts}. */
  claimPorts(first: number, last: number): void {
    this.#owner.fill(OWNER_BOARD, first, last + 1);
  }

  /** Takes over where the functions' BARs are now. Of two that overlap the first in `devices` answers. */
  update(devices: Iterable<PciFunction>): void {
    for (const { start, end } of this.#memory) this.#blocks.fill(0, start >>> BLOCK_BITS, blockEnd(end));
    for (const { start, end } of this.#ports) {
      for (let port = start; port < end; port++) if (this.#owner[port] === OWNER_BAR) this.#owner[port] = OWNER_V86;
    }
    this.#memory = [];
    this.#ports = [];
    this.#last = NOTHING;
    for (const device of devices) for (const bar of device.bars) this.#place(device, bar);
    for (const { start, end } of this.#memory) this.#blocks.fill(1, start >>> BLOCK_BITS, blockEnd(end));
    for (const { start, end } of this.#ports) {
      for (let port = start; port < end; port++) if (this.#owner[port] === OWNER_V86) this.#owner[port] = OWNER_BAR;
    }
  }

  #place(device: PciFunction, bar: PciBar): void {
    if (bar.address === undefined) return;
    const range: Range = { start: bar.address, end: bar.address + bar.size, device, bar: bar.index };
    if (bar.kind === "io") {
      if (range.end <= 0x10000) this.#ports.push(range);
    } else if (range.start >= this.#memorySize && range.end <= 2 ** 32) {
      this.#memory.push(range);
    }
  }

  #find(address: number): Range | undefined {
    const last = this.#last;
    if (address >= last.start && address < last.end) return last;
    if (this.#blocks[address >>> BLOCK_BITS] === 0) return undefined;
    const found = search(this.#memory, address);
    if (found !== undefined) this.#last = found;
    return found;
  }

  #installMemory(imports: V86Imports): void {
    const { mmap_read8, mmap_read32, mmap_write8, mmap_write16, mmap_write32 } = imports;
    const read = (address: number, size: AccessSize, original: ReadAccess): number => {
      const range = this.#find(address >>> 0);
      if (range === undefined) return original(address);
      this.#window?.sync();
      const offset = (address >>> 0) - range.start;
      if ((offset & (size - 1)) === 0) return range.device.barRead(range.bar, offset, size);
      return this.#splitRead(address, size, read8);
    };
    const write = (address: number, size: AccessSize, value: number, original: WriteAccess): unknown => {
      const range = this.#find(address >>> 0);
      if (range === undefined) return original(address, value);
      this.#window?.sync();
      const offset = (address >>> 0) - range.start;
      if ((offset & (size - 1)) === 0) range.device.barWrite(range.bar, offset, size, value);
      else this.#splitWrite(address, size, value, write8);
      return 0;
    };
    const read8 = (address: number) => read(address, 1, mmap_read8);
    const read32 = (address: number) => read(address, 4, mmap_read32);
    const write8 = (address: number, value: number) => write(address, 1, value & 0xff, mmap_write8);
    const write32 = (address: number, value: number) => write(address, 4, value >>> 0, mmap_write32);
    imports.mmap_read8 = read8;
    imports.mmap_read32 = read32;
    imports.mmap_write8 = write8;
    imports.mmap_write16 = (address, value) => write(address, 2, value & 0xffff, mmap_write16);
    imports.mmap_write32 = write32;
    const { mmap_write64, mmap_write128 } = imports;
    imports.mmap_write64 = (address, v0, v1) => {
      if (this.#find(address >>> 0) === undefined) return mmap_write64(address, v0, v1);
      write32(address, v0);
      return write32(address + 4, v1);
    };
    imports.mmap_write128 = (address, v0, v1, v2, v3) => {
      if (this.#find(address >>> 0) === undefined) return mmap_write128(address, v0, v1, v2, v3);
      write32(address, v0);
      write32(address + 4, v1);
      write32(address + 8, v2);
      return write32(address + 12, v3);
    };
  }

  #splitRead(address: number, size: AccessSize, read8: ReadAccess): number {
    let value = 0;
    for (let i = 0; i < size; i++) value |= (read8(address + i) & 0xff) << (8 * i);
    return value >>> 0;
  }

  #splitWrite(address: number, size: AccessSize, value: number, write8: WriteAccess): void {
    for (let i = 0; i < size; i++) write8(address + i, (value >>> (8 * i)) & 0xff);
  }

  #portReader(original: ReadAccess, size: AccessSize): ReadAccess {
    return (port) => {
      const owner = this.#owner[port];
      if (owner === OWNER_V86) return original(port);
      this.#window?.sync();
      if (owner === OWNER_BOARD) return this.#board.read(port, size) ?? original(port);
      const range = search(this.#ports, port);
      if (range === undefined) return original(port);
      if (((port - range.start) & (size - 1)) === 0) return range.device.barRead(range.bar, port - range.start, size);
      return this.#splitRead(port, size, (at) => {
        const part = search(this.#ports, at);
        return part === undefined ? 0xff : part.device.barRead(part.bar, at - part.start, 1);
      });
    };
  }

  #portWriter(original: WriteAccess, size: AccessSize): WriteAccess {
    const mask = 2 ** (8 * size) - 1;
    return (port, value) => {
      const owner = this.#owner[port];
      if (owner === OWNER_V86) return original(port, value);
      this.#window?.sync();
      if (owner === OWNER_BOARD) return this.#board.write(port, size, (value & mask) >>> 0) ? 0 : original(port, value);
      const range = search(this.#ports, port);
      if (range === undefined) return original(port, value);
      if (((port - range.start) & (size - 1)) === 0) {
        range.device.barWrite(range.bar, port - range.start, size, (value & mask) >>> 0);
      } else {
        this.#splitWrite(port, size, value, (at, byte) => {
          const part = search(this.#ports, at);
          part?.device.barWrite(part.bar, at - part.start, 1, byte);
        });
      }
      return 0;
    };
  }
}

function blockEnd(end: number): number {
  return Math.ceil(end / 2 ** BLOCK_BITS);
}

function search(ranges: readonly Range[], address: number): Range | undefined {
  for (const range of ranges) if (address >= range.start && address < range.end) return range;
  return undefined;
}
