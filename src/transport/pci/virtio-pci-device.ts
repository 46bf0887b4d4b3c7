import { VirtkitError } from "../../common/error.ts";
import type { DeviceCore } from "../../device/core.ts";
import type { SharedMemoryRegion } from "../../device/shared-memory.ts";
import { StatusMachine } from "../../device/status-machine.ts";
import type { GuestMemory } from "../../memory/guest-memory.ts";
import {
  PCI_CAP_ID_VNDR,
  VIRTIO_MSI_NO_VECTOR,
  VIRTIO_PCI_CAP_BAR,
  VIRTIO_PCI_CAP_CFG_TYPE,
  VIRTIO_PCI_CAP_COMMON_CFG,
  VIRTIO_PCI_CAP_DEVICE_CFG,
  VIRTIO_PCI_CAP_ID,
  VIRTIO_PCI_CAP_ISR_CFG,
  VIRTIO_PCI_CAP_LEN,
  VIRTIO_PCI_CAP_LENGTH,
  VIRTIO_PCI_CAP_NOTIFY_CFG,
  VIRTIO_PCI_CAP_OFFSET,
  VIRTIO_PCI_CAP_PCI_CFG,
  VIRTIO_PCI_CAP_SHARED_MEMORY_CFG,
  VIRTIO_PCI_CAP_SIZE,
  VIRTIO_PCI_CAP64_LENGTH_HI,
  VIRTIO_PCI_CAP64_OFFSET_HI,
  VIRTIO_PCI_CAP64_SIZE,
  VIRTIO_PCI_CFG_CAP_DATA,
  VIRTIO_PCI_DEVICE_ID_MODERN_BASE,
  VIRTIO_PCI_DEVICE_ID_TRANSITIONAL,
  VIRTIO_PCI_ISR_CONFIG,
  VIRTIO_PCI_ISR_QUEUE,
  VIRTIO_PCI_NOTIFY_CAP_MULT,
  VIRTIO_PCI_VENDOR_ID,
} from "../../spec/pci.ts";
import type { InterruptEvent } from "../../trace/types.ts";
import { classCodeOf } from "./class-codes.ts";
import { CommonConfig, VectorMap } from "./common-config.ts";
import { PciEndpoint, type PciIdentity } from "./endpoint.ts";
import type { AccessSize, BarKind } from "./function.ts";
import {
  LEGACY_BAR,
  type ModernLayout,
  MSIX_BAR,
  modernLayout,
  NOTIFY_IO_BAR,
  SHARED_MEMORY_BAR,
  type StructurePlace,
} from "./layout.ts";
import { LegacyHeader } from "./legacy-header.ts";
import { SharedMemoryBar } from "./shared-memory-bar.ts";

export interface VirtioPciOptions {
  /** Guest memory that the device's queues lie in. */
  readonly memory: GuestMemory;
  /** MSI-X vectors, 0..2048; 0 for INTx only. One for each queue and one for the configuration unless said. */
  readonly vectors?: number;
  /** PCI class and subclass; QEMU's for the device type unless said. */
  readonly classCode?: number;
  /** Unless said 1, as for QEMU's modern devices. */
  readonly revision?: number;
  /** Unless said 0x1af4 and 0x1100, as for QEMU's modern devices. */
  readonly subsystemVendorId?: number;
  readonly subsystemId?: number;
  /** Kind of the BAR with the virtio structures; "mem64" (prefetchable) unless said. */
  readonly modernBar?: BarKind;
  /** A second doorbell in an I/O BAR, which drivers should prefer (QEMU's modern-pio-notify). Off unless said. */
  readonly ioNotify?: boolean;
  /** A page for each queue's doorbell (QEMU's page-per-vq). Off unless said. */
  readonly pagePerQueue?: boolean;
  /** The legacy interface in I/O BAR 0; the device is transitional, or a legacy one without {@link modern}. Off unless said. */
  readonly legacy?: boolean;
  /** The modern structures; on unless said. */
  readonly modern?: boolean;
  /** PCI device id with a legacy interface, 0x1000..0x103f; that of the table of VIRTIO 1.4 §4.1.2.1 unless said. */
  readonly legacyDeviceId?: number;
}

/** Sizes of what follows struct virtio_pci_cap in the capabilities that have more. */
const EXTRA = 4;
const NO_WINDOW = -1;

/**
 * virtio-pci: a {@link DeviceCore} behind the five virtio structures (VIRTIO 1.4 §4.1.4), the legacy interface, or both, laid out as by
 * QEMU's proxies. Knows no concrete device.
 */
export class VirtioPciDevice extends PciEndpoint {
  readonly device: DeviceCore;
  readonly #machine: StatusMachine;
  readonly #layout: ModernLayout;
  readonly #common: CommonConfig;
  readonly #vectors: VectorMap;
  readonly #legacy: LegacyHeader | undefined;
  readonly #modern: boolean;
  #sharedMemory: SharedMemoryBar | undefined;
  /** Offset of the PCI configuration access capability. */
  readonly #window: number;
  readonly #doorbellBar: number;
  readonly #doorbellStart: number;
  readonly #doorbellEnd: number;
  /** log2 of the multiplier, or -1 when the value written names the queue. */
  readonly #doorbellShift: number;
  #isr = 0;

  constructor(device: DeviceCore, options: VirtioPciOptions) {
    super(device.name, identityOf(device, options));
    const queues = device.queueSizes.length;
    const vectors = options.vectors ?? queues + 1;
    const kind = options.modernBar ?? "mem64";
    const layout = modernLayout(kind, queues, device.config.size, options.pagePerQueue ?? false);
    this.device = device;
    this.#layout = layout;
    this.#vectors = new VectorMap(vectors, queues);
    this.#doorbellBar = (options.modern ?? true) ? layout.notify.bar : -1;
    this.#doorbellStart = layout.notify.offset;
    this.#doorbellEnd = layout.notify.offset + layout.notify.length;
    this.#doorbellShift = layout.notifyMultiplier === 0 ? -1 : Math.log2(layout.notifyMultiplier);
    this.#machine = new StatusMachine(device, {
      memory: options.memory,
      queueInterrupt: (index) => this.#queueInterrupt(index),
      configInterrupt: () => this.#interrupt(VIRTIO_PCI_ISR_CONFIG, this.#vectors.config),
      deviceReset: () => this.#deviceReset(),
      queueReset: (index) => {
        this.#vectors.queues[index] = VIRTIO_MSI_NO_VECTOR;
      },
    });
    this.#common = new CommonConfig(this.#machine, this.#vectors);
    if (options.legacy === true) {
      this.addBar(LEGACY_BAR, "io", LegacyHeader.barSize(device.config.size, vectors > 0));
      this.#legacy = new LegacyHeader(this.#machine, this.#vectors, {
        msixEnabled: () => this.msix?.enabled === true,
        readIsr: () => this.#readIsr(),
      });
    }
    this.#modern = options.modern ?? true;
    if (this.#modern) this.addBar(layout.bar, kind, layout.barSize, true);
    this.#window = this.#modern ? this.#addStructures(options.ioNotify ?? false) : NO_WINDOW;
    if (this.#modern && device.sharedMemory.length > 0) this.#addSharedMemory(device.sharedMemory);
    if (vectors > 0) this.addMsix(MSIX_BAR, vectors);
    this.seal();
  }

  /** Status, features and queues as the driver programmed them, to look at. */
  get registers(): StatusMachine {
    return this.#machine;
  }

  /** Capabilities go to the head of the list, so what is added last is what a driver sees first. */
  #addStructures(ioNotify: boolean): number {
    const { common, isr, device, notify, notifyMultiplier } = this.#layout;
    this.#addStructure(VIRTIO_PCI_CAP_COMMON_CFG, common);
    this.#addStructure(VIRTIO_PCI_CAP_ISR_CFG, isr);
    if (this.device.config.size > 0) this.#addStructure(VIRTIO_PCI_CAP_DEVICE_CFG, device);
    const doorbell = this.#addStructure(VIRTIO_PCI_CAP_NOTIFY_CFG, notify, EXTRA);
    this.config.set(doorbell + VIRTIO_PCI_NOTIFY_CAP_MULT, 4, notifyMultiplier);
    if (ioNotify) {
      this.addBar(NOTIFY_IO_BAR, "io", 4);
      this.#addStructure(VIRTIO_PCI_CAP_NOTIFY_CFG, { bar: NOTIFY_IO_BAR, offset: 0, length: 4 }, EXTRA);
    }
    const window = this.#addStructure(VIRTIO_PCI_CAP_PCI_CFG, { bar: 0, offset: 0, length: 0 }, EXTRA);
    this.config.allow(window + VIRTIO_PCI_CAP_BAR, 1, 0xff);
    for (const at of [VIRTIO_PCI_CAP_OFFSET, VIRTIO_PCI_CAP_LENGTH, VIRTIO_PCI_CFG_CAP_DATA])
      this.config.allow(window + at, 4, 0xffffffff);
    return window;
  }

  #addSharedMemory(regions: readonly SharedMemoryRegion[]): void {
    const memory = new SharedMemoryBar(regions);
    this.addBar(SHARED_MEMORY_BAR, "mem64", memory.size, true);
    for (const { id, offset, length } of memory.places) {
      const place = { bar: SHARED_MEMORY_BAR, offset: offset % 2 ** 32, length: length % 2 ** 32 };
      const at = this.#addStructure(
        VIRTIO_PCI_CAP_SHARED_MEMORY_CFG,
        place,
        VIRTIO_PCI_CAP64_SIZE - VIRTIO_PCI_CAP_SIZE,
      );
      this.config.set(at + VIRTIO_PCI_CAP_ID, 1, id);
      this.config.set(at + VIRTIO_PCI_CAP64_OFFSET_HI, 4, Math.floor(offset / 2 ** 32));
      this.config.set(at + VIRTIO_PCI_CAP64_LENGTH_HI, 4, Math.floor(length / 2 ** 32));
    }
    this.#sharedMemory = memory;
  }

  #addStructure(type: number, place: StructurePlace, extra = 0): number {
    const offset = this.addCapability(PCI_CAP_ID_VNDR, VIRTIO_PCI_CAP_SIZE + extra);
    this.config.set(offset + VIRTIO_PCI_CAP_LEN, 1, VIRTIO_PCI_CAP_SIZE + extra);
    this.config.set(offset + VIRTIO_PCI_CAP_CFG_TYPE, 1, type);
    this.config.set(offset + VIRTIO_PCI_CAP_BAR, 1, place.bar);
    this.config.set(offset + VIRTIO_PCI_CAP_OFFSET, 4, place.offset);
    this.config.set(offset + VIRTIO_PCI_CAP_LENGTH, 4, place.length);
    return offset;
  }

  override barWrite(bar: number, offset: number, size: AccessSize, value: number): void {
    // The doorbell first: it is written for every batch of requests, everything else only at set-up.
    if (bar === this.#doorbellBar && offset >= this.#doorbellStart && offset < this.#doorbellEnd) {
      const shift = this.#doorbellShift;
      // With NOTIFICATION_DATA the queue's index is in the low half too; the rest only hints at what the ring says.
      this.#machine.kick(shift < 0 ? value & 0xffff : (offset - this.#doorbellStart) >>> shift);
      return;
    }
    super.barWrite(bar, offset, size, value);
  }

  protected override onBarWrite(bar: number, offset: number, size: AccessSize, value: number): void {
    if (bar === LEGACY_BAR) this.#legacy?.write(offset, size, value);
    else if (bar === SHARED_MEMORY_BAR && this.#sharedMemory !== undefined)
      this.#sharedMemory.write(offset, size, value);
    if (!this.#modern) return;
    const { common, device } = this.#layout;
    if (inside(common, bar, offset)) this.#common.write(offset - common.offset, size, value);
    else if (inside(device, bar, offset)) this.device.config.write(offset - device.offset, size, value);
    else if (bar === NOTIFY_IO_BAR && this.#sharedMemory === undefined) this.#machine.kick(value & 0xffff);
  }

  protected override onBarRead(bar: number, offset: number, size: AccessSize): number {
    if (bar === LEGACY_BAR) return this.#legacy?.read(offset, size) ?? 0;
    if (bar === SHARED_MEMORY_BAR) return this.#sharedMemory?.read(offset, size) ?? 0;
    if (!this.#modern) return 0;
    const { common, device, isr } = this.#layout;
    if (inside(common, bar, offset)) return this.#common.read(offset - common.offset, size);
    if (inside(device, bar, offset)) return this.device.config.read(offset - device.offset, size);
    if (inside(isr, bar, offset) && offset === isr.offset) return this.#readIsr();
    return 0;
  }

  protected override onConfigRead(offset: number, size: AccessSize): void {
    const length = this.#windowAccess(offset, size);
    if (length === 0) return;
    const { bar, at } = this.#windowTarget();
    this.config.set(this.#window + VIRTIO_PCI_CFG_CAP_DATA, length, this.barRead(bar, at, length));
  }

  protected override onConfigWrite(offset: number, size: AccessSize): void {
    const length = this.#windowAccess(offset, size);
    if (length === 0) return;
    const { bar, at } = this.#windowTarget();
    this.barWrite(bar, at, length, this.config.get(this.#window + VIRTIO_PCI_CFG_CAP_DATA, length));
  }

  protected override onBusReset(): void {
    this.#machine.reset();
  }

  protected override onMsixChanged(): void {
    this.requestIntx(this.#isr !== 0);
  }

  /** Bytes of the access that a touch of pci_cfg_data makes; 0 for none (VIRTIO 1.4 §4.1.4.9). */
  #windowAccess(offset: number, size: AccessSize): AccessSize | 0 {
    const data = this.#window + VIRTIO_PCI_CFG_CAP_DATA;
    if (this.#window === NO_WINDOW) return 0;
    if (offset + size <= data || offset >= data + 4) return 0;
    const length = this.config.get(this.#window + VIRTIO_PCI_CAP_LENGTH, 4);
    return length === 1 || length === 2 || length === 4 ? length : 0;
  }

  #windowTarget(): { bar: number; at: number } {
    return {
      bar: this.config.get(this.#window + VIRTIO_PCI_CAP_BAR, 1),
      at: this.config.get(this.#window + VIRTIO_PCI_CAP_OFFSET, 4),
    };
  }

  #queueInterrupt(index: number): void {
    this.#interrupt(VIRTIO_PCI_ISR_QUEUE, this.#vectors.queues[index] ?? VIRTIO_MSI_NO_VECTOR, index);
  }

  #interrupt(cause: number, vector: number, queue?: number): void {
    const msix = this.msix;
    // A configuration change shows in the ISR status either way, a queue only without MSI-X (device: ISR status capability #2, #3).
    const useMsix = msix?.enabled === true;
    if (!useMsix || cause === VIRTIO_PCI_ISR_CONFIG) this.#isr |= cause;
    this.device.tracer?.emit(interruptEvent(queue, useMsix, vector));
    if (!useMsix) this.requestIntx(true);
    else if (vector !== VIRTIO_MSI_NO_VECTOR) msix.notify(vector);
  }

  #readIsr(): number {
    const isr = this.#isr;
    this.#isr = 0;
    this.requestIntx(false);
    return isr;
  }

  #deviceReset(): void {
    for (const vector of this.#vectors.queues) this.msix?.forget(vector);
    this.msix?.forget(this.#vectors.config);
    this.#vectors.reset();
    this.#isr = 0;
    this.requestIntx(false);
  }
}

/** An interrupt as traces show it. */
function interruptEvent(queue: number | undefined, useMsix: boolean, vector: number): InterruptEvent {
  const what = queue === undefined ? {} : { queue };
  if (!useMsix) return { kind: "interrupt", ...what, by: "intx" };
  if (vector === VIRTIO_MSI_NO_VECTOR) return { kind: "interrupt", ...what, by: "none" };
  return { kind: "interrupt", ...what, by: "msix", vector };
}

function identityOf(device: DeviceCore, options: VirtioPciOptions): PciIdentity {
  const legacy = options.legacy === true;
  if (!legacy && options.modern === false)
    throw new VirtkitError("ERR_VIRTKIT_PCI_LEGACY", `${device.name}: neither legacy nor modern; switch one on`);
  const legacyId = options.legacyDeviceId ?? VIRTIO_PCI_DEVICE_ID_TRANSITIONAL.get(device.deviceId);
  if (legacy && legacyId === undefined)
    throw new VirtkitError(
      "ERR_VIRTKIT_PCI_LEGACY",
      `${device.name}: device type ${device.deviceId} has no legacy interface; leave it modern`,
    );
  return {
    vendorId: VIRTIO_PCI_VENDOR_ID,
    deviceId: legacy && legacyId !== undefined ? legacyId : VIRTIO_PCI_DEVICE_ID_MODERN_BASE + device.deviceId,
    classCode: options.classCode ?? classCodeOf(device.deviceId),
    // A legacy driver takes revision 0 only, and finds the device type in the subsystem id.
    revision: options.revision ?? (legacy ? 0 : 1),
    subsystemVendorId: options.subsystemVendorId ?? VIRTIO_PCI_VENDOR_ID,
    subsystemId: options.subsystemId ?? (legacy ? device.deviceId : 0x1100),
  };
}

function inside(place: StructurePlace, bar: number, offset: number): boolean {
  return bar === place.bar && offset >= place.offset && offset < place.offset + place.length;
}
