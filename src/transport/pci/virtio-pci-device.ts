import type { DeviceCore } from "../../device/core.ts";
import { StatusMachine } from "../../device/status-machine.ts";
import type { GuestMemory } from "../../memory/guest-memory.ts";
import {
  PCI_CAP_ID_VNDR,
  VIRTIO_MSI_NO_VECTOR,
  VIRTIO_PCI_CAP_BAR,
  VIRTIO_PCI_CAP_CFG_TYPE,
  VIRTIO_PCI_CAP_COMMON_CFG,
  VIRTIO_PCI_CAP_DEVICE_CFG,
  VIRTIO_PCI_CAP_ISR_CFG,
  VIRTIO_PCI_CAP_LEN,
  VIRTIO_PCI_CAP_LENGTH,
  VIRTIO_PCI_CAP_NOTIFY_CFG,
  VIRTIO_PCI_CAP_OFFSET,
  VIRTIO_PCI_CAP_PCI_CFG,
  VIRTIO_PCI_CAP_SIZE,
  VIRTIO_PCI_CFG_CAP_DATA,
  VIRTIO_PCI_DEVICE_ID_MODERN_BASE,
  VIRTIO_PCI_ISR_CONFIG,
  VIRTIO_PCI_ISR_QUEUE,
  VIRTIO_PCI_NOTIFY_CAP_MULT,
  VIRTIO_PCI_VENDOR_ID,
} from "../../spec/pci.ts";
import { classCodeOf } from "./class-codes.ts";
import { CommonConfig, VectorMap } from "./common-config.ts";
import { PciEndpoint } from "./endpoint.ts";
import type { AccessSize, BarKind } from "./function.ts";
import { type ModernLayout, MSIX_BAR, modernLayout, NOTIFY_IO_BAR, type StructurePlace } from "./layout.ts";

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
}

/** Sizes of what follows struct virtio_pci_cap in the capabilities that have more. */
const EXTRA = 4;

/**
 * virtio-pci, modern (non-transitional): a {@link DeviceCore} behind the five virtio structures (VIRTIO 1.4 §4.1.4), laid out as by
 * QEMU's proxies. Knows no concrete device.
 */
export class VirtioPciDevice extends PciEndpoint {
  readonly device: DeviceCore;
  readonly #machine: StatusMachine;
  readonly #layout: ModernLayout;
  readonly #common: CommonConfig;
  readonly #vectors: VectorMap;
  /** Offset of the PCI configuration access capability. */
  readonly #window: number;
  readonly #doorbellBar: number;
  readonly #doorbellStart: number;
  readonly #doorbellEnd: number;
  /** log2 of the multiplier, or -1 when the value written names the queue. */
  readonly #doorbellShift: number;
  #isr = 0;

  constructor(device: DeviceCore, options: VirtioPciOptions) {
    super(device.name, {
      vendorId: VIRTIO_PCI_VENDOR_ID,
      deviceId: VIRTIO_PCI_DEVICE_ID_MODERN_BASE + device.deviceId,
      classCode: options.classCode ?? classCodeOf(device.deviceId),
      revision: options.revision ?? 1,
      subsystemVendorId: options.subsystemVendorId ?? VIRTIO_PCI_VENDOR_ID,
      subsystemId: options.subsystemId ?? 0x1100,
    });
    const queues = device.queueSizes.length;
    const vectors = options.vectors ?? queues + 1;
    const kind = options.modernBar ?? "mem64";
    const layout = modernLayout(kind, queues, device.config.size, options.pagePerQueue ?? false);
    this.device = device;
    this.#layout = layout;
    this.#vectors = new VectorMap(vectors, queues);
    this.#doorbellBar = layout.notify.bar;
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
    this.addBar(layout.bar, kind, layout.barSize, true);
    this.#window = this.#addStructures(options.ioNotify ?? false);
    if (vectors > 0) this.addMsix(MSIX_BAR, vectors);
    this.seal();
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
    const { common, device } = this.#layout;
    if (inside(common, bar, offset)) this.#common.write(offset - common.offset, size, value);
    else if (inside(device, bar, offset)) this.device.config.write(offset - device.offset, size, value);
    else if (bar === NOTIFY_IO_BAR) this.#machine.kick(value & 0xffff);
  }

  protected override onBarRead(bar: number, offset: number, size: AccessSize): number {
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
    this.#interrupt(VIRTIO_PCI_ISR_QUEUE, this.#vectors.queues[index] ?? VIRTIO_MSI_NO_VECTOR);
  }

  #interrupt(cause: number, vector: number): void {
    const msix = this.msix;
    // A configuration change shows in the ISR status either way, a queue only without MSI-X (device: ISR status capability #2, #3).
    const useMsix = msix?.enabled === true;
    if (!useMsix || cause === VIRTIO_PCI_ISR_CONFIG) this.#isr |= cause;
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

function inside(place: StructurePlace, bar: number, offset: number): boolean {
  return bar === place.bar && offset >= place.offset && offset < place.offset + place.length;
}
