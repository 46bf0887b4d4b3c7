import type { Environment } from "../../common/environment.ts";
import { VirtkitError } from "../../common/error.ts";
import { FeatureSet } from "../../common/feature-set.ts";
import type { DriverTransport } from "../../driver/transport.ts";
import type { GuestMemory } from "../../memory/guest-memory.ts";
import {
  PCI_REVISION_ID,
  VIRTIO_MSI_CONFIG_VECTOR,
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
import { VIRTIO_CONFIG_S_DRIVER_OK } from "../../spec/status.ts";
import type { QueueConfig } from "../../virtqueue/index.ts";
import { waitUntil } from "../wait.ts";
import type { DriverFunction, FoundBar } from "./driver-function.ts";
import { DriverInterrupts, type InterruptMode } from "./driver-interrupts.ts";
import type { Registers } from "./driver-structures.ts";
import { LEGACY_BAR } from "./layout.ts";

/** What a legacy transport is made from. */
export interface LegacyProbe {
  readonly memory: GuestMemory;
  readonly environment: Environment;
  readonly msix?: boolean;
  /** Device type. */
  readonly deviceId: number;
  /** The PCI device id is one of those with a legacy interface. */
  readonly transitionalId: boolean;
}

const MAX_PAGE = 0xffffffff;
/** More queues than any device has; where counting them stops. */
const MAX_QUEUES = 2048;

/** The legacy interface of a function (VIRTIO 1.4 §4.1.5.1.1.1), or undefined when it has none. */
export function openLegacy(
  pci: DriverFunction,
  bars: readonly (FoundBar | undefined)[],
  probe: LegacyProbe,
): VirtioLegacyPciTransport | undefined {
  const bar = bars[LEGACY_BAR];
  if (!probe.transitionalId || bar?.kind !== "io" || bar.size < VIRTIO_PCI_LEGACY_CONFIG) return undefined;
  if (pci.read(PCI_REVISION_ID, 1) !== 0) return undefined;
  const { access } = pci;
  const header: Registers = {
    read: (offset, size) => access.ioRead(bar.address + offset, size),
    write: (offset, size, value) => access.ioWrite(bar.address + offset, size, value),
  };
  const registers = {
    vectors: header,
    configVector: VIRTIO_MSI_CONFIG_VECTOR,
    queueVector: VIRTIO_MSI_QUEUE_VECTOR,
    readIsr: () => header.read(VIRTIO_PCI_ISR, 1),
  };
  const interrupts = new DriverInterrupts(pci, bars, registers, probe.msix ?? true);
  return new VirtioLegacyPciTransport(`pci ${pci.name} (legacy)`, header, interrupts, probe);
}

/** The driver's side of legacy virtio-pci. Made by `PciScanner`. */
export class VirtioLegacyPciTransport implements DriverTransport {
  readonly name: string;
  readonly deviceId: number;
  readonly memory: GuestMemory;
  readonly legacy = true;
  readonly fixedQueueSize = true;
  readonly #environment: Environment;
  readonly #header: Registers;
  readonly #interrupts: DriverInterrupts;
  #interruptsReady = false;

  constructor(name: string, header: Registers, interrupts: DriverInterrupts, probe: LegacyProbe) {
    this.name = name;
    this.deviceId = probe.deviceId;
    this.memory = probe.memory;
    this.#environment = probe.environment;
    this.#header = header;
    this.#interrupts = interrupts;
  }

  get interruptMode(): InterruptMode | undefined {
    return this.#interrupts.mode;
  }

  getStatus(): number {
    return this.#header.read(VIRTIO_PCI_STATUS, 1);
  }

  setStatus(status: number): void {
    // A device without queues has interrupts too, for its configuration.
    if ((status & VIRTIO_CONFIG_S_DRIVER_OK) !== 0) this.#setUpInterrupts();
    this.#header.write(VIRTIO_PCI_STATUS, 1, status);
  }

  async reset(): Promise<void> {
    this.setStatus(0);
    await waitUntil(this.#environment, () => this.getStatus() === 0, `${this.name}: the reset`);
    this.#interruptsReady = false;
  }

  deviceFeatures(): FeatureSet {
    return FeatureSet.fromWords([this.#header.read(VIRTIO_PCI_HOST_FEATURES, 4)]);
  }

  setDriverFeatures(features: FeatureSet): void {
    this.#header.write(VIRTIO_PCI_GUEST_FEATURES, 4, features.word(0));
  }

  readConfig(offset: number, size: 1 | 2 | 4): number {
    return this.#header.read(this.#config + offset, size);
  }

  writeConfig(offset: number, size: 1 | 2 | 4, value: number): void {
    this.#header.write(this.#config + offset, size, value);
  }

  configGeneration(): number {
    return 0;
  }

  queueMaxSize(index: number): number {
    this.#select(index);
    return this.#header.read(VIRTIO_PCI_QUEUE_NUM, 2);
  }

  enableQueue(index: number, config: QueueConfig, interrupt: () => void): void {
    this.#setUpInterrupts();
    const page = config.desc / VIRTIO_PCI_LEGACY_PAGE;
    const size = this.queueMaxSize(index);
    const inUse = this.#header.read(VIRTIO_PCI_QUEUE_PFN, 4) !== 0;
    if (inUse || size !== config.size || !Number.isInteger(page) || page > MAX_PAGE)
      throw new VirtkitError("ERR_VIRTKIT_QUEUE", `${this.name}: queue ${index} cannot be set up`);
    this.#header.write(VIRTIO_PCI_QUEUE_PFN, 4, page);
    this.#interrupts.attach(index, interrupt);
  }

  async resetQueue(index: number): Promise<void> {
    throw new VirtkitError("ERR_VIRTKIT_QUEUE", `${this.name}: queue ${index} cannot be reset by itself`);
  }

  notify(index: number, _data: number): void {
    this.#header.write(VIRTIO_PCI_QUEUE_NOTIFY, 2, index);
  }

  onConfigChange(listener: () => void): void {
    this.#interrupts.onConfig(listener);
  }

  close(): void {
    this.#interrupts.close();
  }

  get #config(): number {
    return this.#interrupts.msix ? VIRTIO_PCI_LEGACY_CONFIG_MSIX : VIRTIO_PCI_LEGACY_CONFIG;
  }

  #setUpInterrupts(): void {
    if (this.#interruptsReady) return;
    let queues = 0;
    while (queues < MAX_QUEUES && this.queueMaxSize(queues) !== 0) queues++;
    this.#interrupts.setUp(queues);
    this.#interruptsReady = true;
  }

  #select(index: number): void {
    this.#header.write(VIRTIO_PCI_QUEUE_SEL, 2, index);
  }
}
