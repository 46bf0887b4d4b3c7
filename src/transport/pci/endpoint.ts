import { VirtkitError } from "../../common/error.ts";
import {
  PCI_BASE_ADDRESS_0,
  PCI_BASE_ADDRESS_MEM_PREFETCH,
  PCI_BASE_ADDRESS_MEM_TYPE_64,
  PCI_BASE_ADDRESS_SPACE_IO,
  PCI_CACHE_LINE_SIZE,
  PCI_CAP_ID_MSIX,
  PCI_CAP_MSIX_SIZEOF,
  PCI_CAPABILITY_LIST,
  PCI_CLASS_DEVICE,
  PCI_CLASS_PROG,
  PCI_COMMAND,
  PCI_COMMAND_INTX_DISABLE,
  PCI_COMMAND_IO,
  PCI_COMMAND_MASTER,
  PCI_COMMAND_MEMORY,
  PCI_DEVICE_ID,
  PCI_INTERRUPT_LINE,
  PCI_INTERRUPT_PIN,
  PCI_LATENCY_TIMER,
  PCI_MSIX_FLAGS,
  PCI_MSIX_FLAGS_ENABLE,
  PCI_MSIX_FLAGS_MASKALL,
  PCI_MSIX_PBA,
  PCI_MSIX_TABLE,
  PCI_REVISION_ID,
  PCI_STATUS,
  PCI_STATUS_CAP_LIST,
  PCI_STATUS_INTERRUPT,
  PCI_STD_HEADER_SIZE,
  PCI_SUBSYSTEM_ID,
  PCI_SUBSYSTEM_VENDOR_ID,
  PCI_VENDOR_ID,
} from "../../spec/pci.ts";
import { ConfigBytes } from "./config-bytes.ts";
import type { AccessSize, BarKind, PciBar, PciFunction, PciHost } from "./function.ts";
import { MSIX_MAX_VECTORS, MsixTable } from "./msix.ts";

/** What a function says of itself in its header. */
export interface PciIdentity {
  readonly vendorId: number;
  readonly deviceId: number;
  /** Class and subclass, 16 bits. */
  readonly classCode: number;
  readonly programmingInterface?: number;
  readonly revision: number;
  readonly subsystemVendorId: number;
  readonly subsystemId: number;
}

/** Bits of the command register that software may set; parity and SERR# do nothing here but read back. */
const COMMAND_WRITABLE = PCI_COMMAND_IO | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE | 0x0140;
const ALL_ONES = 0xffffffff;

interface Bar extends PciBar {
  address: number | undefined;
  readonly register: number;
  readonly mask: number;
}

/**
 * A PCI function without a purpose: header of type 0, BARs with sizing, capability list, MSI-X, INTx. Every register takes byte,
 * word and dword accesses. A subclass adds BARs and capabilities in its constructor and then calls {@link seal}.
 */
export abstract class PciEndpoint implements PciFunction {
  readonly name: string;
  readonly interruptPin = 1;
  protected readonly config = new ConfigBytes();
  protected msix: MsixTable | undefined;
  #msixBar = -1;
  #msixCapability = 0;
  #nextCapability = PCI_STD_HEADER_SIZE;
  readonly #bars: Bar[] = [];
  #host: PciHost | undefined;
  #intxRequested = false;
  #intxDriven = false;

  protected constructor(name: string, identity: PciIdentity) {
    this.name = name;
    const { config } = this;
    config.set(PCI_VENDOR_ID, 2, identity.vendorId);
    config.set(PCI_DEVICE_ID, 2, identity.deviceId);
    config.set(PCI_REVISION_ID, 1, identity.revision);
    config.set(PCI_CLASS_PROG, 1, identity.programmingInterface ?? 0);
    config.set(PCI_CLASS_DEVICE, 2, identity.classCode);
    config.set(PCI_SUBSYSTEM_VENDOR_ID, 2, identity.subsystemVendorId);
    config.set(PCI_SUBSYSTEM_ID, 2, identity.subsystemId);
    config.set(PCI_INTERRUPT_PIN, 1, this.interruptPin);
    config.allow(PCI_COMMAND, 2, COMMAND_WRITABLE);
    config.allow(PCI_CACHE_LINE_SIZE, 1, 0xff);
    config.allow(PCI_LATENCY_TIMER, 1, 0xff);
    config.allow(PCI_INTERRUPT_LINE, 1, 0xff);
  }

  get bars(): readonly PciBar[] {
    return this.#bars;
  }

  connect(host: PciHost): void {
    this.#host = host;
    host.setIntx(this.#intxDriven);
  }

  configRead(offset: number, size: AccessSize): number {
    this.onConfigRead(offset, size);
    let value = this.config.get(offset, size);
    const byte = offset <= PCI_STATUS && offset + size > PCI_STATUS ? PCI_STATUS - offset : -1;
    if (byte >= 0 && this.#intxPending()) value += PCI_STATUS_INTERRUPT * 2 ** (8 * byte);
    return value;
  }

  configWrite(offset: number, size: AccessSize, value: number): void {
    this.config.write(offset, size, value);
    if (offset < PCI_BASE_ADDRESS_0 + 24) this.#updateBars();
    if (this.msix !== undefined && offset + size > this.#msixCapability && offset < this.#msixCapability + 4)
      this.#updateMsix(this.msix);
    this.#updateIntx();
    this.onConfigWrite(offset, size);
  }

  barRead(bar: number, offset: number, size: AccessSize): number {
    if (bar === this.#msixBar && this.msix !== undefined) return this.msix.read(offset, size);
    return this.onBarRead(bar, offset, size);
  }

  barWrite(bar: number, offset: number, size: AccessSize, value: number): void {
    if (bar === this.#msixBar && this.msix !== undefined) this.msix.write(offset, size, value);
    else this.onBarWrite(bar, offset, size, value);
  }

  reset(): void {
    this.config.reset();
    this.msix?.reset();
    this.#intxRequested = false;
    this.onBusReset();
    this.#updateBars();
    this.#updateIntx();
  }

  protected abstract onBarRead(bar: number, offset: number, size: AccessSize): number;
  protected abstract onBarWrite(bar: number, offset: number, size: AccessSize, value: number): void;
  /** Before a configuration read, to bring registers up to date. */
  protected onConfigRead(_offset: number, _size: AccessSize): void {}
  /** After a configuration write. */
  protected onConfigWrite(_offset: number, _size: AccessSize): void {}
  protected onBusReset(): void {}
  /** MSI-X was enabled or disabled. */
  protected onMsixChanged(): void {}

  /** Declares a BAR. `size` is a power of two; a mem64 BAR takes registers `index` and `index + 1`. */
  protected addBar(index: number, kind: BarKind, size: number, prefetch = false): void {
    const last = kind === "mem64" ? 4 : 5;
    const taken = this.#bars.some((b) => b.index === index || (b.kind === "mem64" && b.index + 1 === index));
    if (index < 0 || index > last || taken || Math.log2(size) % 1 !== 0)
      throw new VirtkitError(
        "ERR_VIRTKIT_PCI_BAR",
        `${this.name}: BAR ${index} (${kind}, ${size} bytes) is not possible`,
      );
    const register = PCI_BASE_ADDRESS_0 + 4 * index;
    const mask = 2 ** 32 - size;
    const space = kind === "io" ? PCI_BASE_ADDRESS_SPACE_IO : kind === "mem64" ? PCI_BASE_ADDRESS_MEM_TYPE_64 : 0;
    this.config.set(register, 4, space | (prefetch && kind !== "io" ? PCI_BASE_ADDRESS_MEM_PREFETCH : 0));
    this.config.allow(register, 4, mask);
    if (kind === "mem64") this.config.allow(register + 4, 4, ALL_ONES);
    this.#bars.push({ index, kind, size, address: undefined, register, mask });
  }

  /** Adds a capability of `length` bytes at the head of the list and returns where it is. */
  protected addCapability(id: number, length: number): number {
    const offset = this.#nextCapability;
    this.#nextCapability += Math.ceil(length / 4) * 4;
    if (this.#nextCapability > 256)
      throw new VirtkitError("ERR_VIRTKIT_PCI_CAPABILITY", `${this.name}: no room for another capability`);
    this.config.set(offset, 1, id);
    this.config.set(offset + 1, 1, this.config.get(PCI_CAPABILITY_LIST, 1));
    this.config.set(PCI_CAPABILITY_LIST, 1, offset);
    this.config.set(PCI_STATUS, 2, PCI_STATUS_CAP_LIST);
    return offset;
  }

  /** Adds MSI-X with `vectors` (1..2048) entries in a BAR of its own. */
  protected addMsix(bar: number, vectors: number): void {
    if (!Number.isInteger(vectors) || vectors < 1 || vectors > MSIX_MAX_VECTORS)
      throw new VirtkitError(
        "ERR_VIRTKIT_PCI_VECTORS",
        `${this.name}: vectors must be 0..${MSIX_MAX_VECTORS}, not ${vectors}`,
      );
    const table = new MsixTable(vectors, (address, data) => this.#host?.sendMsi(address, data));
    this.addBar(bar, "mem32", table.barSize);
    const offset = this.addCapability(PCI_CAP_ID_MSIX, PCI_CAP_MSIX_SIZEOF);
    this.config.set(offset + PCI_MSIX_FLAGS, 2, vectors - 1);
    this.config.allow(offset + PCI_MSIX_FLAGS, 2, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    this.config.set(offset + PCI_MSIX_TABLE, 4, bar);
    this.config.set(offset + PCI_MSIX_PBA, 4, table.pbaOffset + bar);
    this.msix = table;
    this.#msixBar = bar;
    this.#msixCapability = offset;
  }

  /** The subclass is complete: what the registers hold now is what a bus reset restores. */
  protected seal(): void {
    this.config.seal();
  }

  /** What the function wants of its INTx pin; whether the pin follows is up to MSI-X and the command register. */
  protected requestIntx(asserted: boolean): void {
    this.#intxRequested = asserted;
    this.#updateIntx();
  }

  /** The Interrupt Status bit: set whether INTx is disabled or not, but not while MSI-X is in use. */
  #intxPending(): boolean {
    return this.#intxRequested && this.msix?.enabled !== true;
  }

  #updateIntx(): void {
    const disabled = (this.config.get(PCI_COMMAND, 2) & PCI_COMMAND_INTX_DISABLE) !== 0;
    const driven = this.#intxPending() && !disabled;
    if (driven === this.#intxDriven) return;
    this.#intxDriven = driven;
    this.#host?.setIntx(driven);
  }

  #updateMsix(msix: MsixTable): void {
    const flags = this.config.get(this.#msixCapability + PCI_MSIX_FLAGS, 2);
    const was = msix.enabled;
    msix.configure((flags & PCI_MSIX_FLAGS_ENABLE) !== 0, (flags & PCI_MSIX_FLAGS_MASKALL) !== 0);
    if (was !== msix.enabled) this.onMsixChanged();
  }

  #updateBars(): void {
    let changed = false;
    for (const bar of this.#bars) {
      const address = this.#decode(bar);
      changed ||= address !== bar.address;
      bar.address = address;
    }
    if (changed) this.#host?.barsChanged();
  }

  #decode(bar: Bar): number | undefined {
    const enable = bar.kind === "io" ? PCI_COMMAND_IO : PCI_COMMAND_MEMORY;
    if ((this.config.get(PCI_COMMAND, 2) & enable) === 0) return undefined;
    const value = this.config.get(bar.register, 4);
    const low = value - (value % bar.size);
    // All ones is a driver that asks for the size, not a place.
    if (low === bar.mask) return undefined;
    const address = bar.kind === "mem64" ? this.config.get(bar.register + 4, 4) * 2 ** 32 + low : low;
    return address === 0 || !Number.isSafeInteger(address + bar.size) ? undefined : address;
  }
}
