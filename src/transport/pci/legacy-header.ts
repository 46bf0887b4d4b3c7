import type { StatusMachine } from "../../device/status-machine.ts";
import {
  VIRTIO_MSI_CONFIG_VECTOR,
  VIRTIO_MSI_NO_VECTOR,
  VIRTIO_MSI_QUEUE_VECTOR,
  VIRTIO_PCI_GUEST_FEATURES,
  VIRTIO_PCI_HOST_FEATURES,
  VIRTIO_PCI_ISR,
  VIRTIO_PCI_LEGACY_CONFIG,
  VIRTIO_PCI_LEGACY_CONFIG_MSIX,
  VIRTIO_PCI_LEGACY_PAGE,
  VIRTIO_PCI_QUEUE_NOTIFY,
  VIRTIO_PCI_QUEUE_NUM,
  VIRTIO_PCI_QUEUE_PFN,
  VIRTIO_PCI_QUEUE_SEL,
  VIRTIO_PCI_STATUS,
} from "../../spec/pci.ts";
import { VIRTQ_LEGACY_ALIGN } from "../../spec/ring.ts";
import { tracedQueue, type VectorMap } from "./common-config.ts";
import type { AccessSize } from "./function.ts";
import { type Field, RegisterFields } from "./register-fields.ts";

/** What the header needs of the function around it. */
export interface LegacyHeaderHooks {
  /** MSI-X is enabled now (present is not enough). */
  msixEnabled(): boolean;
  readIsr(): number;
}

/**
 * The legacy interface of virtio-pci (VIRTIO 1.4 §4.1.4.10): a header in I/O BAR 0, the device's configuration behind it, at 20 or,
 * while MSI-X is enabled, at 24. It shows the same status machine as the modern structures; whoever writes first decides.
 * Configuration is little-endian, as guests of this kind are.
 */
export class LegacyHeader {
  readonly #machine: StatusMachine;
  readonly #hooks: LegacyHeaderHooks;
  readonly #header: RegisterFields;
  readonly #vectors: RegisterFields;

  constructor(machine: StatusMachine, vectors: VectorMap, hooks: LegacyHeaderHooks) {
    this.#machine = machine;
    this.#hooks = hooks;
    this.#header = new RegisterFields(machine.device, VIRTIO_PCI_LEGACY_CONFIG, headerFields(machine, hooks));
    this.#vectors = new RegisterFields(machine.device, VIRTIO_PCI_LEGACY_CONFIG_MSIX, vectorFields(machine, vectors));
  }

  /** Bytes that the BAR needs for a configuration of `configSize` bytes: a power of two. */
  static barSize(configSize: number, msix: boolean): number {
    const header = msix ? VIRTIO_PCI_LEGACY_CONFIG_MSIX : VIRTIO_PCI_LEGACY_CONFIG;
    return 2 ** Math.ceil(Math.log2(header + configSize));
  }

  read(offset: number, size: AccessSize): number {
    if (offset < VIRTIO_PCI_LEGACY_CONFIG) return this.#header.read(offset, size);
    if (offset < this.#config) return this.#vectors.read(offset, size);
    return this.#machine.device.config.read(offset - this.#config, size);
  }

  write(offset: number, size: AccessSize, value: number): void {
    // The doorbell first: it is written for every batch of requests, everything else only at set-up.
    if (offset === VIRTIO_PCI_QUEUE_NOTIFY) this.#machine.legacyKick(value & 0xffff);
    else if (offset < VIRTIO_PCI_LEGACY_CONFIG) this.#header.write(offset, size, value);
    else if (offset < this.#config) this.#vectors.write(offset, size, value);
    else this.#machine.device.config.write(offset - this.#config, size, value);
  }

  get #config(): number {
    return this.#hooks.msixEnabled() ? VIRTIO_PCI_LEGACY_CONFIG_MSIX : VIRTIO_PCI_LEGACY_CONFIG;
  }
}

function headerFields(machine: StatusMachine, hooks: LegacyHeaderHooks): Field[] {
  const { queues } = machine;
  return [
    { offset: VIRTIO_PCI_HOST_FEATURES, size: 4, read: () => machine.device.legacyFeatures.word(0) },
    {
      offset: VIRTIO_PCI_GUEST_FEATURES,
      size: 4,
      read: () => (machine.legacy ? machine.legacyDriverFeatures : 0),
      write: (value) => machine.writeLegacyFeatures(value),
    },
    {
      offset: VIRTIO_PCI_QUEUE_PFN,
      size: 4,
      read: () => queues.page,
      write: (value) => {
        if (machine.useLegacy()) queues.writePage(value, VIRTIO_PCI_LEGACY_PAGE, VIRTQ_LEGACY_ALIGN);
      },
      trace: tracedQueue(queues, "QUEUE_PFN"),
    },
    // There is no way to choose the size.
    { offset: VIRTIO_PCI_QUEUE_NUM, size: 2, read: () => queues.size },
    {
      offset: VIRTIO_PCI_QUEUE_SEL,
      size: 2,
      read: () => queues.select,
      write: (value) => {
        queues.select = value;
      },
    },
    {
      offset: VIRTIO_PCI_QUEUE_NOTIFY,
      size: 2,
      read: () => 0,
      write: (value) => machine.legacyKick(value),
    },
    {
      offset: VIRTIO_PCI_STATUS,
      size: 1,
      read: () => machine.status,
      write: (value) => machine.writeLegacyStatus(value),
    },
    { offset: VIRTIO_PCI_ISR, size: 1, read: () => hooks.readIsr() },
  ];
}

function vectorFields(machine: StatusMachine, vectors: VectorMap): Field[] {
  const { queues } = machine;
  return [
    {
      offset: VIRTIO_MSI_CONFIG_VECTOR,
      size: 2,
      read: () => vectors.config,
      write: (value) => {
        vectors.config = vectors.valid(value);
      },
    },
    {
      offset: VIRTIO_MSI_QUEUE_VECTOR,
      size: 2,
      read: () => vectors.queues[queues.select] ?? VIRTIO_MSI_NO_VECTOR,
      write: (value) => {
        if (queues.select < queues.count) vectors.queues[queues.select] = vectors.valid(value);
      },
      trace: tracedQueue(queues, "QUEUE_VECTOR"),
    },
  ];
}
