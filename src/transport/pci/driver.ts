import type { Environment } from "../../common/environment.ts";
import { VirtkitError } from "../../common/error.ts";
import { FEATURE_BITS, FeatureSet } from "../../common/feature-set.ts";
import type { DriverTransport, FoundSharedMemory } from "../../driver/transport.ts";
import type { GuestMemory } from "../../memory/guest-memory.ts";
import { VIRTIO_F_NOTIF_CONFIG_DATA, VIRTIO_F_NOTIFICATION_DATA } from "../../spec/features.ts";
import {
  PCI_DEVICE_ID,
  PCI_HEADER_TYPE,
  PCI_SUBSYSTEM_ID,
  PCI_VENDOR_ID,
  VIRTIO_PCI_COMMON_CFGGENERATION,
  VIRTIO_PCI_COMMON_DF,
  VIRTIO_PCI_COMMON_DFSELECT,
  VIRTIO_PCI_COMMON_GF,
  VIRTIO_PCI_COMMON_GFSELECT,
  VIRTIO_PCI_COMMON_MSIX,
  VIRTIO_PCI_COMMON_NUMQ,
  VIRTIO_PCI_COMMON_Q_AVAILLO,
  VIRTIO_PCI_COMMON_Q_DESCLO,
  VIRTIO_PCI_COMMON_Q_ENABLE,
  VIRTIO_PCI_COMMON_Q_MSIX,
  VIRTIO_PCI_COMMON_Q_NDATA,
  VIRTIO_PCI_COMMON_Q_NOFF,
  VIRTIO_PCI_COMMON_Q_RESET,
  VIRTIO_PCI_COMMON_Q_SELECT,
  VIRTIO_PCI_COMMON_Q_SIZE,
  VIRTIO_PCI_COMMON_Q_USEDLO,
  VIRTIO_PCI_COMMON_STATUS,
  VIRTIO_PCI_DEVICE_ID_MODERN_BASE,
  VIRTIO_PCI_DEVICE_ID_TRANSITIONAL,
  VIRTIO_PCI_DEVICE_ID_TRANSITIONAL_FIRST,
  VIRTIO_PCI_VENDOR_ID,
} from "../../spec/pci.ts";
import { VIRTIO_CONFIG_S_DRIVER_OK } from "../../spec/status.ts";
import type { QueueConfig } from "../../virtqueue/index.ts";
import { waitUntil } from "../wait.ts";
import type { PciAccess } from "./access.ts";
import { devfn } from "./bus.ts";
import { BarAllocator, DriverFunction } from "./driver-function.ts";
import { DriverInterrupts, type InterruptMode } from "./driver-interrupts.ts";
import { openLegacy } from "./driver-legacy.ts";
import { findStructures, type ModernStructures, type Registers } from "./driver-structures.ts";

export interface PciScanOptions {
  /** Memory that the devices on this bus reach. */
  readonly memory: GuestMemory;
  readonly environment: Environment;
  /** False for INTx even where there is MSI-X. */
  readonly msix?: boolean;
  /** True to reach all registers through the PCI configuration access capability. */
  readonly window?: boolean;
  /** True to use the legacy interface where there is one, even if there is a modern one too. */
  readonly legacy?: boolean;
}

/** A virtio device on a PCI bus, driven through one of its interfaces. */
export interface PciDriverTransport extends DriverTransport {
  /** How interrupts come, once a queue is set up. */
  readonly interruptMode: InterruptMode | undefined;
}

const LAST_ID = 0x107f;

/**
 * Scans bus 0 for virtio devices, places their BARs where nobody did, and opens them: through the modern interface, or the legacy
 * one where there is no other. Each scan returns what is new since the last one.
 */
export class PciScanner {
  readonly #access: PciAccess;
  readonly #options: PciScanOptions;
  readonly #allocator = new BarAllocator();
  readonly #known = new Set<number>();

  constructor(access: PciAccess, options: PciScanOptions) {
    this.#access = access;
    this.#options = options;
  }

  scan(): PciDriverTransport[] {
    const found: PciDriverTransport[] = [];
    for (let device = 0; device < 32; device++) {
      for (let fn = 0; fn < 8; fn++) {
        const pci = new DriverFunction(this.#access, device, fn);
        const present = this.#look(pci, found);
        if (fn === 0 && (!present || (pci.read(PCI_HEADER_TYPE, 1) & 0x80) === 0)) break;
      }
    }
    return found;
  }

  /** Another device may come into this slot; the next scan looks at it. */
  forget(device: number, fn = 0): void {
    this.#known.delete(devfn(device, fn));
  }

  #look(pci: DriverFunction, found: PciDriverTransport[]): boolean {
    const slot = devfn(pci.device, pci.fn);
    const vendor = pci.read(PCI_VENDOR_ID, 2);
    if (vendor === 0xffff) this.#known.delete(slot);
    else if (!this.#known.has(slot)) {
      this.#known.add(slot);
      const transport = vendor === VIRTIO_PCI_VENDOR_ID ? probe(pci, this.#allocator, this.#options) : undefined;
      if (transport !== undefined) found.push(transport);
    }
    return vendor !== 0xffff;
  }
}

function probe(pci: DriverFunction, allocator: BarAllocator, options: PciScanOptions): PciDriverTransport | undefined {
  const id = pci.read(PCI_DEVICE_ID, 2);
  if (id < VIRTIO_PCI_DEVICE_ID_TRANSITIONAL_FIRST || id > LAST_ID) return undefined;
  const deviceId = deviceTypeOf(pci, id);
  const bars = pci.assignBars(allocator);
  const legacy = () =>
    openLegacy(pci, bars, { ...options, deviceId, transitionalId: id < VIRTIO_PCI_DEVICE_ID_MODERN_BASE });
  const structures = findStructures(pci, bars, options.window ?? false);
  const old = structures === undefined || options.legacy === true ? legacy() : undefined;
  if (old !== undefined) return old;
  if (structures === undefined) {
    options.environment.log.log(
      "warn",
      `pci ${pci.name}: a virtio device with neither a modern nor a legacy interface`,
    );
    return undefined;
  }
  const registers = {
    vectors: structures.common,
    configVector: VIRTIO_PCI_COMMON_MSIX,
    queueVector: VIRTIO_PCI_COMMON_Q_MSIX,
    readIsr: () => structures.isr.read(0, 1),
  };
  const interrupts = new DriverInterrupts(pci, bars, registers, options.msix ?? true);
  return new VirtioPciTransport(pci, deviceId, structures, interrupts, options);
}

/** A transitional id stands for a type (driver: PCI Device Discovery #2); one that is in no table has it in the subsystem id. */
function deviceTypeOf(pci: DriverFunction, id: number): number {
  if (id >= VIRTIO_PCI_DEVICE_ID_MODERN_BASE) return id - VIRTIO_PCI_DEVICE_ID_MODERN_BASE;
  for (const [type, transitional] of VIRTIO_PCI_DEVICE_ID_TRANSITIONAL) if (transitional === id) return type;
  return pci.read(PCI_SUBSYSTEM_ID, 2);
}

/** The driver's side of modern virtio-pci. Made by {@link PciScanner}. */
export class VirtioPciTransport implements PciDriverTransport {
  readonly name: string;
  readonly deviceId: number;
  readonly memory: GuestMemory;
  readonly notifyConfigData = true;
  readonly #environment: Environment;
  readonly #common: Registers;
  readonly #structures: ModernStructures;
  readonly #interrupts: DriverInterrupts;
  /** Offset of each enabled queue's doorbell in the notification structure. */
  readonly #doorbells: number[] = [];
  /** What names each enabled queue in a notification: its index, or what the device wants there. */
  readonly #names: number[] = [];
  #notificationData = false;
  #notifyConfigData = false;
  #interruptsReady = false;

  constructor(
    pci: DriverFunction,
    deviceId: number,
    structures: ModernStructures,
    interrupts: DriverInterrupts,
    options: PciScanOptions,
  ) {
    this.name = `pci ${pci.name}`;
    this.deviceId = deviceId;
    this.memory = options.memory;
    this.#environment = options.environment;
    this.#common = structures.common;
    this.#structures = structures;
    this.#interrupts = interrupts;
  }

  get interruptMode(): InterruptMode | undefined {
    return this.#interrupts.mode;
  }

  getStatus(): number {
    return this.#common.read(VIRTIO_PCI_COMMON_STATUS, 1);
  }

  setStatus(status: number): void {
    // A device without queues has interrupts too, for its configuration.
    if ((status & VIRTIO_CONFIG_S_DRIVER_OK) !== 0) this.#setUpInterrupts();
    this.#common.write(VIRTIO_PCI_COMMON_STATUS, 1, status);
  }

  async reset(): Promise<void> {
    this.setStatus(0);
    await waitUntil(this.#environment, () => this.getStatus() === 0, `${this.name}: the reset`);
    this.#interruptsReady = false;
    this.#doorbells.length = 0;
  }

  deviceFeatures(): FeatureSet {
    const words = new Uint32Array(FEATURE_BITS / 32);
    for (let i = 0; i < words.length; i++) {
      this.#common.write(VIRTIO_PCI_COMMON_DFSELECT, 4, i);
      words[i] = this.#common.read(VIRTIO_PCI_COMMON_DF, 4);
    }
    return FeatureSet.fromWords(words);
  }

  setDriverFeatures(features: FeatureSet): void {
    for (let i = 0; i < FEATURE_BITS / 32; i++) {
      this.#common.write(VIRTIO_PCI_COMMON_GFSELECT, 4, i);
      this.#common.write(VIRTIO_PCI_COMMON_GF, 4, features.word(i));
    }
    this.#notificationData = features.has(VIRTIO_F_NOTIFICATION_DATA);
    this.#notifyConfigData = features.has(VIRTIO_F_NOTIF_CONFIG_DATA);
  }

  readConfig(offset: number, size: 1 | 2 | 4): number {
    return this.#structures.device?.read(offset, size) ?? 0;
  }

  writeConfig(offset: number, size: 1 | 2 | 4, value: number): void {
    this.#structures.device?.write(offset, size, value);
  }

  configGeneration(): number {
    return this.#common.read(VIRTIO_PCI_COMMON_CFGGENERATION, 1);
  }

  queueMaxSize(index: number): number {
    this.#select(index);
    return this.#common.read(VIRTIO_PCI_COMMON_Q_SIZE, 2);
  }

  enableQueue(index: number, config: QueueConfig, interrupt: () => void): void {
    const common = this.#common;
    this.#setUpInterrupts();
    this.#select(index);
    const doorbell = common.read(VIRTIO_PCI_COMMON_Q_NOFF, 2) * this.#structures.notifyMultiplier;
    const width = this.#notificationData ? 4 : 2;
    if (common.read(VIRTIO_PCI_COMMON_Q_ENABLE, 2) !== 0 || doorbell + width > this.#structures.notifyLength)
      throw new VirtkitError("ERR_VIRTKIT_QUEUE", `${this.name}: queue ${index} cannot be set up`);
    this.#doorbells[index] = doorbell;
    this.#names[index] = this.#notifyConfigData ? common.read(VIRTIO_PCI_COMMON_Q_NDATA, 2) : index;
    common.write(VIRTIO_PCI_COMMON_Q_SIZE, 2, config.size);
    this.#writeAddress(VIRTIO_PCI_COMMON_Q_DESCLO, config.desc);
    this.#writeAddress(VIRTIO_PCI_COMMON_Q_AVAILLO, config.driver);
    this.#writeAddress(VIRTIO_PCI_COMMON_Q_USEDLO, config.device);
    this.#interrupts.attach(index, interrupt);
    common.write(VIRTIO_PCI_COMMON_Q_ENABLE, 2, 1);
  }

  async resetQueue(index: number): Promise<void> {
    const common = this.#common;
    this.#select(index);
    common.write(VIRTIO_PCI_COMMON_Q_RESET, 2, 1);
    const done = () => {
      this.#select(index);
      return common.read(VIRTIO_PCI_COMMON_Q_RESET, 2) === 0;
    };
    await waitUntil(this.#environment, done, `${this.name}: the reset of queue ${index}`);
    this.#select(index);
    if (common.read(VIRTIO_PCI_COMMON_Q_ENABLE, 2) !== 0)
      throw new VirtkitError("ERR_VIRTKIT_QUEUE", `${this.name}: queue ${index} was not reset`);
    this.#interrupts.detach(index);
  }

  notify(index: number, data: number): void {
    const doorbell = this.#doorbells[index];
    if (doorbell === undefined) return;
    const name = this.#names[index] ?? index;
    if (this.#notificationData) this.#structures.notify.write(doorbell, 4, name + data * 65536);
    else this.#structures.notify.write(doorbell, 2, name);
  }

  sharedMemory(id: number): FoundSharedMemory | undefined {
    return this.#structures.sharedMemory.find((region) => region.id === id);
  }

  onConfigChange(listener: () => void): void {
    this.#interrupts.onConfig(listener);
  }

  close(): void {
    this.#interrupts.close();
  }

  #setUpInterrupts(): void {
    if (this.#interruptsReady) return;
    this.#interrupts.setUp(this.#common.read(VIRTIO_PCI_COMMON_NUMQ, 2));
    this.#interruptsReady = true;
  }

  #select(index: number): void {
    this.#common.write(VIRTIO_PCI_COMMON_Q_SELECT, 2, index);
  }

  #writeAddress(register: number, address: number): void {
    this.#common.write(register, 4, address % 2 ** 32);
    this.#common.write(register + 4, 4, Math.floor(address / 2 ** 32));
  }
}
