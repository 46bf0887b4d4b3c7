import type { Environment } from "../../common/environment.ts";
import { hex, VirtkitError } from "../../common/error.ts";
import { FEATURE_BITS, FeatureSet } from "../../common/feature-set.ts";
import type { DriverTransport, FoundSharedMemory } from "../../driver/transport.ts";
import type { GuestMemory } from "../../memory/guest-memory.ts";
import { VIRTIO_F_NOTIFICATION_DATA } from "../../spec/features.ts";
import {
  VIRTIO_MMIO_CONFIG,
  VIRTIO_MMIO_CONFIG_GENERATION,
  VIRTIO_MMIO_DEVICE_FEATURES,
  VIRTIO_MMIO_DEVICE_FEATURES_SEL,
  VIRTIO_MMIO_DEVICE_ID,
  VIRTIO_MMIO_DRIVER_FEATURES,
  VIRTIO_MMIO_DRIVER_FEATURES_SEL,
  VIRTIO_MMIO_GUEST_PAGE_SIZE,
  VIRTIO_MMIO_INT_CONFIG,
  VIRTIO_MMIO_INT_VRING,
  VIRTIO_MMIO_INTERRUPT_ACK,
  VIRTIO_MMIO_INTERRUPT_STATUS,
  VIRTIO_MMIO_MAGIC,
  VIRTIO_MMIO_MAGIC_VALUE,
  VIRTIO_MMIO_QUEUE_ALIGN,
  VIRTIO_MMIO_QUEUE_DESC_LOW,
  VIRTIO_MMIO_QUEUE_DEVICE_LOW,
  VIRTIO_MMIO_QUEUE_DRIVER_LOW,
  VIRTIO_MMIO_QUEUE_NOTIFY,
  VIRTIO_MMIO_QUEUE_PFN,
  VIRTIO_MMIO_QUEUE_READY,
  VIRTIO_MMIO_QUEUE_RESET,
  VIRTIO_MMIO_QUEUE_SEL,
  VIRTIO_MMIO_QUEUE_SIZE,
  VIRTIO_MMIO_QUEUE_SIZE_MAX,
  VIRTIO_MMIO_SHM_BASE_HIGH,
  VIRTIO_MMIO_SHM_BASE_LOW,
  VIRTIO_MMIO_SHM_LEN_HIGH,
  VIRTIO_MMIO_SHM_LEN_LOW,
  VIRTIO_MMIO_SHM_SEL,
  VIRTIO_MMIO_STATUS,
  VIRTIO_MMIO_VERSION,
} from "../../spec/mmio.ts";
import { VIRTQ_LEGACY_ALIGN } from "../../spec/ring.ts";
import { VIRTIO_CONFIG_S_NEEDS_RESET } from "../../spec/status.ts";
import type { QueueConfig } from "../../virtqueue/index.ts";
import { waitUntil } from "../wait.ts";
import type { MmioAccess } from "./access.ts";

export interface MmioDriverOptions {
  /** Memory that the device reaches. */
  readonly memory: GuestMemory;
  readonly environment: Environment;
  /** For messages, e.g. the block's address; "0" unless said. */
  readonly name?: string;
  /** False to refuse devices of version 1, which only have the legacy interface. */
  readonly legacy?: boolean;
}

const ALL_ONES = 0xffffffff;
const PAGE = VIRTQ_LEGACY_ALIGN;

/**
 * Looks at a register block (VIRTIO 1.4 §4.2.3.1): the transport to drive it with, or undefined for a placeholder without a device.
 * @throws ERR_VIRTKIT_MMIO when there is no virtio-mmio device of version 2, or of 1 unless that is refused
 */
export function openMmio(access: MmioAccess, options: MmioDriverOptions): VirtioMmioTransport | undefined {
  const name = options.name ?? "0";
  const magic = access.read(VIRTIO_MMIO_MAGIC_VALUE, 4);
  if (magic !== VIRTIO_MMIO_MAGIC)
    throw new VirtkitError(
      "ERR_VIRTKIT_MMIO",
      `mmio ${name}: the magic value is ${hex(magic)}, this is no virtio-mmio`,
    );
  const version = access.read(VIRTIO_MMIO_VERSION, 4);
  if (version !== 1 && version !== 2)
    throw new VirtkitError("ERR_VIRTKIT_MMIO", `mmio ${name}: version ${version} is not known; there are 1 and 2`);
  if (version === 1 && options.legacy === false)
    throw new VirtkitError("ERR_VIRTKIT_MMIO", `mmio ${name}: a legacy device; allow it with the option 'legacy'`);
  const deviceId = access.read(VIRTIO_MMIO_DEVICE_ID, 4);
  return deviceId === 0 ? undefined : new VirtioMmioTransport(access, deviceId, version === 1, options);
}

/** The driver's side of virtio-mmio, both versions. Made by {@link openMmio}. */
export class VirtioMmioTransport implements DriverTransport {
  readonly name: string;
  readonly deviceId: number;
  readonly memory: GuestMemory;
  readonly legacy: boolean;
  readonly #access: MmioAccess;
  readonly #environment: Environment;
  readonly #detach: () => void;
  readonly #interrupts: ((() => void) | undefined)[] = [];
  #configListener: (() => void) | undefined;
  #notificationData = false;

  constructor(access: MmioAccess, deviceId: number, legacy: boolean, options: MmioDriverOptions) {
    this.name = `mmio ${options.name ?? "0"}`;
    this.deviceId = deviceId;
    this.memory = options.memory;
    this.legacy = legacy;
    this.#access = access;
    this.#environment = options.environment;
    if (legacy) access.write(VIRTIO_MMIO_GUEST_PAGE_SIZE, 4, PAGE);
    this.#detach = access.onIrq(() => this.#interrupt());
  }

  getStatus(): number {
    return this.#access.read(VIRTIO_MMIO_STATUS, 4);
  }

  setStatus(status: number): void {
    this.#access.write(VIRTIO_MMIO_STATUS, 4, status);
  }

  async reset(): Promise<void> {
    this.#interrupts.forEach((interrupt, index) => {
      if (interrupt !== undefined) this.#stopQueue(index);
    });
    this.setStatus(0);
    await waitUntil(this.#environment, () => this.getStatus() === 0, `${this.name}: the reset`);
    this.#interrupts.length = 0;
  }

  deviceFeatures(): FeatureSet {
    const words = new Uint32Array(this.#featureWords);
    for (let i = 0; i < words.length; i++) {
      this.#access.write(VIRTIO_MMIO_DEVICE_FEATURES_SEL, 4, i);
      words[i] = this.#access.read(VIRTIO_MMIO_DEVICE_FEATURES, 4);
    }
    return FeatureSet.fromWords(words);
  }

  setDriverFeatures(features: FeatureSet): void {
    for (let i = 0; i < this.#featureWords; i++) {
      this.#access.write(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 4, i);
      this.#access.write(VIRTIO_MMIO_DRIVER_FEATURES, 4, features.word(i));
    }
    this.#notificationData = features.has(VIRTIO_F_NOTIFICATION_DATA);
  }

  readConfig(offset: number, size: 1 | 2 | 4): number {
    return this.#access.read(VIRTIO_MMIO_CONFIG + offset, size);
  }

  writeConfig(offset: number, size: 1 | 2 | 4, value: number): void {
    this.#access.write(VIRTIO_MMIO_CONFIG + offset, size, value);
  }

  configGeneration(): number {
    return this.legacy ? 0 : this.#access.read(VIRTIO_MMIO_CONFIG_GENERATION, 4);
  }

  queueMaxSize(index: number): number {
    this.#access.write(VIRTIO_MMIO_QUEUE_SEL, 4, index);
    return this.#access.read(VIRTIO_MMIO_QUEUE_SIZE_MAX, 4);
  }

  enableQueue(index: number, config: QueueConfig, interrupt: () => void): void {
    const access = this.#access;
    access.write(VIRTIO_MMIO_QUEUE_SEL, 4, index);
    const inUse = access.read(this.legacy ? VIRTIO_MMIO_QUEUE_PFN : VIRTIO_MMIO_QUEUE_READY, 4);
    const page = config.desc / PAGE;
    if (inUse !== 0 || (this.legacy && (!Number.isInteger(page) || page > ALL_ONES)))
      throw new VirtkitError("ERR_VIRTKIT_QUEUE", `${this.name}: queue ${index} cannot be set up`);
    this.#interrupts[index] = interrupt;
    access.write(VIRTIO_MMIO_QUEUE_SIZE, 4, config.size);
    if (this.legacy) {
      access.write(VIRTIO_MMIO_QUEUE_ALIGN, 4, PAGE);
      access.write(VIRTIO_MMIO_QUEUE_PFN, 4, page);
      return;
    }
    this.#writeAddress(VIRTIO_MMIO_QUEUE_DESC_LOW, config.desc);
    this.#writeAddress(VIRTIO_MMIO_QUEUE_DRIVER_LOW, config.driver);
    this.#writeAddress(VIRTIO_MMIO_QUEUE_DEVICE_LOW, config.device);
    access.write(VIRTIO_MMIO_QUEUE_READY, 4, 1);
  }

  async resetQueue(index: number): Promise<void> {
    const access = this.#access;
    access.write(VIRTIO_MMIO_QUEUE_SEL, 4, index);
    access.write(VIRTIO_MMIO_QUEUE_RESET, 4, 1);
    const done = () => {
      access.write(VIRTIO_MMIO_QUEUE_SEL, 4, index);
      return access.read(VIRTIO_MMIO_QUEUE_RESET, 4) === 0;
    };
    await waitUntil(this.#environment, done, `${this.name}: the reset of queue ${index}`);
    access.write(VIRTIO_MMIO_QUEUE_SEL, 4, index);
    if (access.read(VIRTIO_MMIO_QUEUE_READY, 4) !== 0)
      throw new VirtkitError("ERR_VIRTKIT_QUEUE", `${this.name}: queue ${index} was not reset`);
    this.#interrupts[index] = undefined;
  }

  notify(index: number, data: number): void {
    this.#access.write(VIRTIO_MMIO_QUEUE_NOTIFY, 4, this.#notificationData ? index + data * 65536 : index);
  }

  onConfigChange(listener: () => void): void {
    this.#configListener = listener;
  }

  sharedMemory(id: number): FoundSharedMemory | undefined {
    const access = this.#access;
    if (this.legacy) return undefined;
    access.write(VIRTIO_MMIO_SHM_SEL, 4, id);
    const read = (low: number, high: number) => access.read(low, 4) + access.read(high, 4) * 2 ** 32;
    const length = read(VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_SHM_LEN_HIGH);
    const address = read(VIRTIO_MMIO_SHM_BASE_LOW, VIRTIO_MMIO_SHM_BASE_HIGH);
    return Number.isSafeInteger(address + length) ? { id, address, length } : undefined;
  }

  close(): void {
    this.#detach();
    this.#interrupts.length = 0;
    this.#configListener = undefined;
  }

  get #featureWords(): number {
    return this.legacy ? 1 : FEATURE_BITS / 32;
  }

  /** The device may still work on guest memory when this returns; the reset that follows waits for it. */
  #stopQueue(index: number): void {
    const register = this.legacy ? VIRTIO_MMIO_QUEUE_PFN : VIRTIO_MMIO_QUEUE_READY;
    this.#access.write(VIRTIO_MMIO_QUEUE_SEL, 4, index);
    this.#access.write(register, 4, 0);
    this.#access.read(register, 4);
  }

  /**
   * An interrupt is acknowledged when it was handled (driver: Notifications From The Device #2). What happened after the handlers
   * looked raised no interrupt, and its bit goes with the acknowledgement: so they look again.
   */
  #interrupt(): void {
    const events =
      this.#access.read(VIRTIO_MMIO_INTERRUPT_STATUS, 4) & (VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG);
    if (events === 0) return;
    const queues = (events & VIRTIO_MMIO_INT_VRING) !== 0;
    const config = (events & VIRTIO_MMIO_INT_CONFIG) !== 0;
    // Without a generation nobody could tell whether the configuration changed meanwhile, so there the bit goes first.
    if (config && this.legacy) this.#access.write(VIRTIO_MMIO_INTERRUPT_ACK, 4, VIRTIO_MMIO_INT_CONFIG);
    const generation = config ? this.configGeneration() : 0;
    if (config) this.#configListener?.();
    if (queues) this.#allQueues();
    const left = this.legacy ? events & VIRTIO_MMIO_INT_VRING : events;
    if (left !== 0) this.#access.write(VIRTIO_MMIO_INTERRUPT_ACK, 4, left);
    if (queues) this.#allQueues();
    if (config && !this.legacy && this.#configMoved(generation)) this.#configListener?.();
  }

  #allQueues(): void {
    for (const queue of this.#interrupts) queue?.();
  }

  /** The device told of something else since: another configuration, or that it needs a reset. */
  #configMoved(generation: number): boolean {
    return this.configGeneration() !== generation || (this.getStatus() & VIRTIO_CONFIG_S_NEEDS_RESET) !== 0;
  }

  #writeAddress(low: number, address: number): void {
    this.#access.write(low, 4, address % 2 ** 32);
    this.#access.write(low + 4, 4, Math.floor(address / 2 ** 32));
  }
}
