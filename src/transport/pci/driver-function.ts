import { VirtkitError } from "../../common/error.ts";
import {
  PCI_BASE_ADDRESS_0,
  PCI_BASE_ADDRESS_MEM_TYPE_64,
  PCI_BASE_ADDRESS_SPACE_IO,
  PCI_CAPABILITY_LIST,
  PCI_COMMAND,
  PCI_COMMAND_IO,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_STATUS,
  PCI_STATUS_CAP_LIST,
  PCI_STD_HEADER_SIZE,
} from "../../spec/pci.ts";
import type { AddressRange, PciAccess } from "./access.ts";
import type { AccessSize, BarKind } from "./function.ts";

/** A BAR as the driver found it. */
export interface FoundBar {
  readonly kind: BarKind;
  readonly size: number;
  readonly address: number;
}

const BARS = 6;
const ALL_ONES = 0xffffffff;
const MEM_TYPE = 6;
/** A list of capabilities has no more entries than this: 192 bytes of 4 each. */
const MAX_CAPABILITIES = 48;

/** Gives out addresses for BARs, each aligned to its size. */
export class BarAllocator {
  readonly #next = new Map<AddressRange, number>();

  take(range: AddressRange, size: number): number {
    const address = Math.ceil((this.#next.get(range) ?? range.base) / size) * size;
    if (address + size > range.base + range.size)
      throw new VirtkitError("ERR_VIRTKIT_PCI_RESOURCES", `no room for a BAR of ${size} bytes at this bus`);
    this.#next.set(range, address + size);
    return address;
  }
}

/** One function as a driver handles it: configuration, BARs, capabilities. */
export class DriverFunction {
  readonly device: number;
  readonly fn: number;
  readonly access: PciAccess;

  constructor(access: PciAccess, device: number, fn: number) {
    this.access = access;
    this.device = device;
    this.fn = fn;
  }

  /** As `lspci` names it: "00:04.0". */
  get name(): string {
    return `00:${this.device.toString(16).padStart(2, "0")}.${this.fn}`;
  }

  read(offset: number, size: AccessSize): number {
    return this.access.configRead(this.device, this.fn, offset, size);
  }

  write(offset: number, size: AccessSize, value: number): void {
    this.access.configWrite(this.device, this.fn, offset, size, value);
  }

  /** Sets and clears bits of the command register. */
  command(set: number, clear = 0): void {
    this.write(PCI_COMMAND, 2, (this.read(PCI_COMMAND, 2) | set) & ~clear);
  }

  /** Offsets of the capabilities with this id, in the order of the list. Loops and wild pointers end the walk. */
  capabilities(id: number): number[] {
    const found: number[] = [];
    if ((this.read(PCI_STATUS, 2) & PCI_STATUS_CAP_LIST) === 0) return found;
    let offset = this.read(PCI_CAPABILITY_LIST, 1) & ~3;
    for (let n = 0; n < MAX_CAPABILITIES && offset >= PCI_STD_HEADER_SIZE; n++) {
      if (this.read(offset, 1) === id) found.push(offset);
      offset = this.read(offset + 1, 1) & ~3;
    }
    return found;
  }

  /**
   * Finds the BARs, gives addresses to those that have none, and switches decoding and bus mastering on. Decoding is off
   * while sizes are asked for, as all ones would be an address otherwise.
   */
  assignBars(allocator: BarAllocator): (FoundBar | undefined)[] {
    const { resources } = this.access;
    const found: (FoundBar | undefined)[] = new Array(BARS).fill(undefined);
    this.command(0, PCI_COMMAND_IO | PCI_COMMAND_MEMORY);
    for (let i = 0; i < BARS; i++) {
      const bar = this.#size(i);
      if (bar === undefined) continue;
      let { address } = bar;
      if (address === 0) {
        const range =
          bar.kind === "io"
            ? resources.io
            : bar.kind === "mem64"
              ? (resources.mem64 ?? resources.mem32)
              : resources.mem32;
        address = allocator.take(range, bar.size);
        this.write(PCI_BASE_ADDRESS_0 + 4 * i, 4, address % 2 ** 32);
        if (bar.kind === "mem64") this.write(PCI_BASE_ADDRESS_0 + 4 * i + 4, 4, Math.floor(address / 2 ** 32));
      }
      found[i] = { ...bar, address };
      if (bar.kind === "mem64") i++;
    }
    this.command(PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    return found;
  }

  #size(index: number): FoundBar | undefined {
    const register = PCI_BASE_ADDRESS_0 + 4 * index;
    const before = this.read(register, 4);
    this.write(register, 4, ALL_ONES);
    const answer = this.read(register, 4);
    this.write(register, 4, before);
    if (answer === 0) return undefined;
    const io = (answer & PCI_BASE_ADDRESS_SPACE_IO) !== 0;
    const flags = io ? 4 : 16;
    const low = before - (before % flags);
    // An I/O BAR may leave its upper half out, and then it is 16 bits wide.
    const mask = (answer - (answer % flags)) | (io && answer < 0x10000 ? 0xffff0000 : 0);
    const size = (~mask >>> 0) + 1;
    if (io) return { kind: "io", size, address: low };
    if ((answer & MEM_TYPE) !== PCI_BASE_ADDRESS_MEM_TYPE_64) return { kind: "mem32", size, address: low };
    return this.#size64(register, size, low);
  }

  #size64(register: number, lowSize: number, low: number): FoundBar {
    const before = this.read(register + 4, 4);
    this.write(register + 4, 4, ALL_ONES);
    const answer = this.read(register + 4, 4);
    this.write(register + 4, 4, before);
    // Nothing writable in the low half means a size of 4 GiB or more.
    const size = lowSize < 2 ** 32 ? lowSize : ((~answer >>> 0) + 1) * 2 ** 32;
    return { kind: "mem64", size, address: before * 2 ** 32 + low };
  }
}
