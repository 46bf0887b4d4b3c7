import type { Environment } from "../../common/environment.ts";
import { FEATURE_BITS, FeatureSet } from "../../common/feature-set.ts";
import type { DeviceCore } from "../../device/core.ts";
import {
  QUEUE_DESC_HIGH,
  QUEUE_DESC_LOW,
  QUEUE_DEVICE_HIGH,
  QUEUE_DEVICE_LOW,
  QUEUE_DRIVER_HIGH,
  QUEUE_DRIVER_LOW,
} from "../../device/queue-registers.ts";
import { StatusMachine } from "../../device/status-machine.ts";
import type { DriverTransport } from "../../driver/transport.ts";
import type { GuestMemory } from "../../memory/guest-memory.ts";
import type { QueueConfig } from "../../virtqueue/index.ts";
import { waitUntil } from "../wait.ts";

export interface LoopbackOptions {
  readonly memory: GuestMemory;
  readonly environment: Environment;
  /**
   * When kicks and interrupts reach the other side: "deferred" in a later turn of the event loop, several for one queue as one;
   * "direct" as a call. Direct calls nest no deeper than there are queues, because each side's service loop takes a notification
   * that comes from inside itself as a request to look again. Deferred unless said.
   */
  readonly delivery?: "deferred" | "direct";
}

/** A device and its driver in one process, joined by calls; the same registers and rules as any strict transport. */
export class LoopbackTransport implements DriverTransport {
  readonly name: string;
  readonly deviceId: number;
  readonly memory: GuestMemory;
  readonly #machine: StatusMachine;
  readonly #environment: Environment;
  readonly #direct: boolean;
  readonly #interrupts: ((() => void) | undefined)[] = [];
  readonly #pendingKicks = new Set<number>();
  readonly #pendingInterrupts = new Set<number>();
  #pendingConfig = false;
  #scheduled = false;
  #configListener: (() => void) | undefined;

  constructor(device: DeviceCore, options: LoopbackOptions) {
    this.name = `loopback ${device.name}`;
    this.deviceId = device.deviceId;
    this.memory = options.memory;
    this.#environment = options.environment;
    this.#direct = options.delivery === "direct";
    this.#machine = new StatusMachine(device, {
      memory: options.memory,
      queueInterrupt: (index) => this.#interrupt(index),
      configInterrupt: () => this.#configInterrupt(),
      deviceReset: () => this.#forget(),
      queueReset: (index) => this.#forgetQueue(index),
    });
  }

  getStatus(): number {
    return this.#machine.status;
  }

  setStatus(status: number): void {
    this.#machine.writeStatus(status);
  }

  async reset(): Promise<void> {
    const machine = this.#machine;
    machine.writeStatus(0);
    await waitUntil(this.#environment, () => machine.status === 0, `${this.name}: the reset`);
  }

  deviceFeatures(): FeatureSet {
    const machine = this.#machine;
    const words = new Uint32Array(FEATURE_BITS / 32);
    for (let i = 0; i < words.length; i++) {
      machine.deviceFeatureSelect = i;
      words[i] = machine.deviceFeature;
    }
    return FeatureSet.fromWords(words);
  }

  setDriverFeatures(features: FeatureSet): void {
    for (let i = 0; i < FEATURE_BITS / 32; i++) {
      this.#machine.driverFeatureSelect = i;
      this.#machine.writeDriverFeature(features.word(i));
    }
  }

  readConfig(offset: number, size: 1 | 2 | 4): number {
    return this.#machine.device.config.read(offset, size);
  }

  writeConfig(offset: number, size: 1 | 2 | 4, value: number): void {
    this.#machine.device.config.write(offset, size, value);
  }

  configGeneration(): number {
    return this.#machine.device.config.generation;
  }

  queueMaxSize(index: number): number {
    const { queues } = this.#machine;
    queues.select = index;
    return queues.maxSize;
  }

  enableQueue(index: number, config: QueueConfig, interrupt: () => void): void {
    const { queues } = this.#machine;
    this.#interrupts[index] = interrupt;
    queues.select = index;
    queues.writeSize(config.size);
    queues.writeAddress(QUEUE_DESC_LOW, config.desc % 2 ** 32);
    queues.writeAddress(QUEUE_DESC_HIGH, Math.floor(config.desc / 2 ** 32));
    queues.writeAddress(QUEUE_DRIVER_LOW, config.driver % 2 ** 32);
    queues.writeAddress(QUEUE_DRIVER_HIGH, Math.floor(config.driver / 2 ** 32));
    queues.writeAddress(QUEUE_DEVICE_LOW, config.device % 2 ** 32);
    queues.writeAddress(QUEUE_DEVICE_HIGH, Math.floor(config.device / 2 ** 32));
    queues.writeEnable(1);
  }

  async resetQueue(index: number): Promise<void> {
    const { queues } = this.#machine;
    const enabled = () => {
      queues.select = index;
      return queues.enabled;
    };
    queues.select = index;
    queues.writeReset(1);
    await waitUntil(this.#environment, () => !enabled(), `${this.name}: the reset of queue ${index}`);
  }

  notify(index: number, _data: number): void {
    if (this.#direct) this.#machine.kick(index);
    else {
      this.#pendingKicks.add(index);
      this.#schedule();
    }
  }

  onConfigChange(listener: () => void): void {
    this.#configListener = listener;
  }

  close(): void {
    this.#configListener = undefined;
    this.#forget();
  }

  #interrupt(index: number): void {
    this.#machine.device.tracer?.emit({ kind: "interrupt", queue: index, by: "call" });
    if (this.#direct) this.#interrupts[index]?.();
    else {
      this.#pendingInterrupts.add(index);
      this.#schedule();
    }
  }

  #configInterrupt(): void {
    this.#machine.device.tracer?.emit({ kind: "interrupt", by: "call" });
    if (this.#direct) this.#configListener?.();
    else {
      this.#pendingConfig = true;
      this.#schedule();
    }
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    this.#environment.defer(() => this.#deliver());
  }

  #deliver(): void {
    this.#scheduled = false;
    if (this.#pendingConfig) {
      this.#pendingConfig = false;
      this.#configListener?.();
    }
    for (const index of take(this.#pendingKicks)) this.#machine.kick(index);
    for (const index of take(this.#pendingInterrupts)) this.#interrupts[index]?.();
  }

  #forget(): void {
    this.#pendingKicks.clear();
    this.#pendingInterrupts.clear();
    this.#pendingConfig = false;
    this.#interrupts.length = 0;
  }

  #forgetQueue(index: number): void {
    this.#pendingKicks.delete(index);
    this.#pendingInterrupts.delete(index);
    this.#interrupts[index] = undefined;
  }
}

function take(pending: Set<number>): number[] {
  const taken = [...pending];
  pending.clear();
  return taken;
}
