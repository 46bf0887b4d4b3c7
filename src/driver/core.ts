import type { Environment } from "../common/environment.ts";
import { VirtkitError } from "../common/error.ts";
import { FeatureSet } from "../common/feature-set.ts";
import { statusNames } from "../common/status-names.ts";
import {
  VIRTIO_F_NOTIF_CONFIG_DATA,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_RING_RESET,
  VIRTIO_F_SUSPEND,
  VIRTIO_F_VERSION_1,
} from "../spec/features.ts";
import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FAILED,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_CONFIG_S_NEEDS_RESET,
  VIRTIO_CONFIG_S_SUSPEND,
} from "../spec/status.ts";
import type { Tracer } from "../trace/types.ts";
import type { QueueFault } from "../virtqueue/index.ts";
import type { DmaAllocator } from "./dma.ts";
import { DRIVER_RING_FEATURES, type DriverFeature, driverQueueFeatures, negotiate } from "./features.ts";
import { queueStart } from "./traced-queue.ts";
import type { DriverTransport } from "./transport.ts";
import { VirtQueue, type VirtQueueHost, type VirtQueueOptions } from "./virtqueue.ts";

/** What a driver is given. */
export interface DriverContext {
  readonly transport: DriverTransport;
  /** Memory for rings and buffers, part of the transport's memory. */
  readonly dma: DmaAllocator;
  readonly environment: Environment;
  /** Ring features that may be accepted; all that are implemented unless said. */
  readonly ringFeatures?: FeatureSet;
  /** Entries a queue gets at most; the device's own maximum unless said. */
  readonly maxQueueSize?: number;
  /** Whom to tell what the driver does. */
  readonly tracer?: Tracer;
}

/** What a driver declares of itself. */
export interface DriverDescription {
  /** For messages. */
  readonly name: string;
  /** Device types that it drives, VIRTIO_ID_*. */
  readonly deviceIds: readonly number[];
  /** Feature bits of the device type that it understands. Ring features are the core's business. */
  readonly features: readonly DriverFeature[];
}

export type DriverState =
  /** Not started. */
  | "down"
  | "starting"
  /** DRIVER_OK is set. */
  | "ready"
  /** From the write of SUSPEND on, until the device runs again. */
  | "suspended"
  /** The device, or a queue, broke; a new start is under way or, if that failed, was given up. */
  | "needs-reset"
  /** Bring-up failed; FAILED is set. */
  | "failed"
  | "removed";

/** How long a device may take to suspend itself or to go on, in milliseconds. */
const SUSPEND_TIMEOUT = 30_000;
/** Restarts in a row after DEVICE_NEEDS_RESET, without any buffer used in between, before the driver gives up. */
const MAX_RESTARTS = 3;

/**
 * Base of all drivers. Bring-up and reset are written here once, in the order of VIRTIO 1.4 §3.1.1, and the transport
 * is private, so no driver can skip a step: it overrides the `on...` methods, which are called at the right moments.
 *
 *     reset, ACKNOWLEDGE, DRIVER, read features, onValidate, write features, FEATURES_OK and look again,
 *     onSetUp (queues, configuration), DRIVER_OK, held-back kicks, onReady
 */
export abstract class VirtioDriver {
  readonly name: string;
  protected readonly dma: DmaAllocator;
  protected readonly environment: Environment;
  protected readonly tracer: Tracer | undefined;
  readonly #description: DriverDescription;
  readonly #transport: DriverTransport;
  readonly #ringFeatures: FeatureSet;
  readonly #maxQueueSize: number;
  readonly #queues: VirtQueue[] = [];
  readonly #heldKicks = new Map<number, number>();
  #features = FeatureSet.EMPTY;
  #state: DriverState = "down";
  /** True from FEATURES_OK on: the configuration may be written, queues may be set up. */
  #configurable = false;
  #restarts = 0;
  /** The configuration changed while the device was suspended. */
  #configPending = false;
  #tail: Promise<void> = Promise.resolve();

  protected constructor(context: DriverContext, description: DriverDescription) {
    this.#transport = context.transport;
    this.#description = description;
    this.#ringFeatures = (context.ringFeatures ?? DRIVER_RING_FEATURES).with(VIRTIO_F_VERSION_1);
    this.#maxQueueSize = context.maxQueueSize ?? Number.POSITIVE_INFINITY;
    this.name = `${description.name} on ${context.transport.name}`;
    this.dma = context.dma;
    this.environment = context.environment;
    this.tracer = context.tracer;
    if (!description.deviceIds.includes(context.transport.deviceId))
      throw new VirtkitError(
        "ERR_VIRTKIT_DEVICE_ID",
        `${description.name} does not drive device type ${context.transport.deviceId} (${context.transport.name})`,
      );
  }

  get state(): DriverState {
    return this.#state;
  }
  /** The negotiated features. */
  get features(): FeatureSet {
    return this.#features;
  }
  /** The queues that are set up, by index; those left out are undefined. */
  get queues(): readonly VirtQueue[] {
    return this.#queues;
  }

  /**
   * Brings the device up.
   * @throws whatever went wrong; FAILED is set then and the device lets go of all memory
   */
  start(): Promise<void> {
    return this.#serially(async () => {
      if (this.#state !== "down" && this.#state !== "failed")
        throw new VirtkitError("ERR_VIRTKIT_DRIVER_STATE", `${this.name} is ${this.#state}; it is started once`);
      this.#restarts = 0;
      await this.#bringUp();
    });
  }

  /** Resets the device and brings it up anew. Buffers that it did not use come back through {@link onUnused}. */
  restart(): Promise<void> {
    return this.#serially(async () => {
      this.#mustNotBeRemoved();
      await this.#takeDown();
      await this.#bringUp();
    });
  }

  /**
   * Suspends the device (VIRTIO 1.4 §3.4); resolves when it is. What is sent until {@link resume} waits, and the configuration cannot
   * be written.
   * @throws ERR_VIRTKIT_FEATURES when VIRTIO_F_SUSPEND was not negotiated, ERR_VIRTKIT_DRIVER_STATE when the driver is not ready, or
   * the device needs a reset instead
   */
  suspend(): Promise<void> {
    return this.#serially(async () => {
      if (!this.#features.has(VIRTIO_F_SUSPEND))
        throw new VirtkitError("ERR_VIRTKIT_FEATURES", `${this.name}: VIRTIO_F_SUSPEND was not negotiated`);
      this.#mustBe("ready", "suspended");
      this.#state = "suspended";
      this.#addStatus(VIRTIO_CONFIG_S_SUSPEND);
      await this.#becomes(VIRTIO_CONFIG_S_SUSPEND, VIRTIO_CONFIG_S_DRIVER_OK);
    });
  }

  /**
   * Lets a suspended device go on, and sends what waited.
   * @throws ERR_VIRTKIT_DRIVER_STATE when the driver is not suspended, or the device needs a reset instead
   */
  resume(): Promise<void> {
    return this.#serially(async () => {
      this.#mustBe("suspended", "resumed");
      this.#addStatus(VIRTIO_CONFIG_S_DRIVER_OK);
      await this.#becomes(VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_SUSPEND);
      this.#state = "ready";
      for (const queue of this.#queues) queue?.kick();
      if (!this.#configPending) return;
      this.#configPending = false;
      this.onConfigChanged();
    });
  }

  /** Resets the device and lets go of it (VIRTIO 1.4 §3.3). The driver is not used again. */
  remove(): Promise<void> {
    return this.#serially(async () => {
      if (this.#state === "removed") return;
      await this.#takeDown();
      this.#state = "removed";
      this.onRemove();
      this.#transport.close();
    });
  }

  /** Resolves when no start, restart or removal is under way. */
  async settled(): Promise<void> {
    await this.#tail;
  }

  // What a concrete driver overrides.

  /**
   * Looks at the offered features and, read-only, at the configuration, before anything is accepted. Throwing refuses
   * the device. Returns what is to be accepted: `features` or a subset of them.
   */
  protected onValidate(features: FeatureSet, _offered: FeatureSet): FeatureSet {
    return features;
  }
  /** Features are settled: set the queues up with {@link setUpQueue}, read the configuration, post first buffers. */
  protected abstract onSetUp(): void | Promise<void>;
  /** DRIVER_OK is set. */
  protected onReady(): void | Promise<void> {}
  /** Used buffer notification. The default hands each used chain to {@link onUsed}, or to the transfer's Promise. */
  protected onInterrupt(queue: VirtQueue): void {
    queue.service();
  }
  /** The device used the chain that was added with `token`, and wrote `written` bytes. */
  protected onUsed(_queue: VirtQueue, _token: number, _written: number): void {}
  /** The device gave a chain back unused, after a reset of the queue or the device. */
  protected onUnused(_queue: VirtQueue, _token: number): void {}
  protected onConfigChanged(): void {}
  /**
   * The device (DEVICE_NEEDS_RESET) or a queue is broken. False leaves it so; true (the default) resets the device and brings it
   * up anew.
   */
  protected onNeedsReset(_reason: string): boolean {
    return true;
  }
  /** The device was reset and the queues are gone: give back what {@link onSetUp} allocated. */
  protected onTearDown(): void {}
  protected onRemove(): void {}

  // What a concrete driver uses.

  /** Largest size of queue `index`; 0 when the device does not have it. */
  protected queueMaxSize(index: number): number {
    return this.#transport.queueMaxSize(index);
  }

  /**
   * Makes queue `index` and enables it. Only from {@link onSetUp} on.
   * @throws ERR_VIRTKIT_QUEUE when the device has no such queue
   */
  protected setUpQueue(index: number, options: VirtQueueOptions = {}): VirtQueue {
    if (!this.#configurable)
      throw new VirtkitError("ERR_VIRTKIT_DRIVER_STATE", `${this.name}: queues are set up in onSetUp`);
    if (this.#queues[index]?.live)
      throw new VirtkitError("ERR_VIRTKIT_QUEUE", `${this.name}: queue ${index} is set up already`);
    const queue = this.#queues[index] ?? new VirtQueue(index, this.#queueHost());
    this.#openQueue(queue, options);
    this.#queues[index] = queue;
    return queue;
  }

  /**
   * Resets one queue and enables it again, with another size if one is given (VIRTIO 1.4 §2.6.1). Buffers that the
   * device did not use come back through {@link onUnused}.
   * @throws ERR_VIRTKIT_FEATURES when VIRTIO_F_RING_RESET was not negotiated
   */
  protected async resetQueue(queue: VirtQueue, options: VirtQueueOptions = { size: queue.size }): Promise<void> {
    if (!this.#features.has(VIRTIO_F_RING_RESET))
      throw new VirtkitError("ERR_VIRTKIT_FEATURES", `${this.name}: VIRTIO_F_RING_RESET was not negotiated`);
    await this.#transport.resetQueue(queue.index);
    this.#closeQueue(queue);
    this.#openQueue(queue, options);
  }

  /** Little-endian field of the device-specific configuration. Fields over 32 bits are read in one generation. */
  protected readConfig(offset: number, size: 1 | 2 | 4 | 8): number {
    const transport = this.#transport;
    if (size !== 8) return transport.readConfig(offset, size);
    return this.readConfigFields(() => transport.readConfig(offset, 4) + transport.readConfig(offset + 4, 4) * 2 ** 32);
  }

  /**
   * Reads several fields that belong together: again and again until none changed meanwhile (VIRTIO 1.4 §2.5.1), which the legacy
   * interface only shows by two looks that agree (§2.5.4).
   */
  protected readConfigFields<T>(read: () => T): T {
    const legacy = this.#transport.legacy === true;
    let last: string | undefined;
    for (let tries = 0; tries < 1000; tries++) {
      const before = this.#transport.configGeneration();
      const value = read();
      const seen = legacy ? JSON.stringify(value) : undefined;
      if (legacy ? seen === last : this.#transport.configGeneration() === before) return value;
      last = seen;
    }
    throw new VirtkitError("ERR_VIRTKIT_CONFIG", `${this.name}: the configuration does not stop changing`);
  }

  /** Writes a field; from {@link onSetUp} on (driver: Device Initialization #2), and not while the device is suspended. */
  protected writeConfig(offset: number, size: 1 | 2 | 4, value: number): void {
    if (!this.#configurable)
      throw new VirtkitError("ERR_VIRTKIT_DRIVER_STATE", `${this.name}: the configuration is written from onSetUp on`);
    if (this.#state === "suspended")
      throw new VirtkitError("ERR_VIRTKIT_DRIVER_STATE", `${this.name}: the device is suspended; resume it first`);
    this.tracer?.emit({ kind: "config", by: "driver", offset, length: size });
    this.#transport.writeConfig(offset, size, value);
  }

  async #bringUp(): Promise<void> {
    this.#state = "starting";
    const transport = this.#transport;
    try {
      transport.onConfigChange(() => this.#configInterrupt());
      await this.#reset();
      this.#addStatus(VIRTIO_CONFIG_S_ACKNOWLEDGE);
      this.#addStatus(VIRTIO_CONFIG_S_DRIVER);
      this.#negotiate();
      await this.onSetUp();
      // Ready first: the device may use what waits in its queues, and say so, while the bit is being written.
      this.#state = "ready";
      this.#addStatus(VIRTIO_CONFIG_S_DRIVER_OK);
      this.#sendHeldKicks();
      await this.onReady();
    } catch (error) {
      await this.#giveUp();
      throw error;
    }
  }

  #negotiate(): void {
    const transport = this.#transport;
    const offered = transport.deviceFeatures();
    const legacy = transport.legacy === true;
    const unknown = transport.notifyConfigData === true ? [] : [VIRTIO_F_NOTIF_CONFIG_DATA];
    const rings = this.#ringFeatures.without(...unknown);
    const possible = negotiate(this.#description.features, rings, offered, legacy);
    const chosen = this.onValidate(possible, offered);
    if (!chosen.isSubsetOf(possible))
      throw new VirtkitError(
        "ERR_VIRTKIT_FEATURES",
        `${this.name}: onValidate added features (${chosen.minus(possible)}); it may only take some away`,
      );
    transport.setDriverFeatures(chosen);
    if (!legacy) this.#addStatus(VIRTIO_CONFIG_S_FEATURES_OK);
    if (!legacy && (transport.getStatus() & VIRTIO_CONFIG_S_FEATURES_OK) === 0)
      throw new VirtkitError("ERR_VIRTKIT_FEATURES", `${this.name}: the device does not accept the features ${chosen}`);
    this.tracer?.emit({ kind: "features", features: chosen.toString(), accepted: true });
    this.#features = chosen;
    this.#configurable = true;
  }

  /** Reset, then everything that the device had comes back. */
  async #takeDown(): Promise<void> {
    const wasUp = this.#configurable;
    this.#configurable = false;
    this.#heldKicks.clear();
    this.#configPending = false;
    if (this.#state !== "down") await this.#reset();
    this.#state = "down";
    for (const queue of this.#queues) if (queue !== undefined) this.#closeQueue(queue);
    this.#queues.length = 0;
    this.#features = FeatureSet.EMPTY;
    if (wasUp) this.onTearDown();
  }

  async #giveUp(): Promise<void> {
    try {
      await this.#takeDown();
      this.#addStatus(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_FAILED);
    } catch (error) {
      this.environment.log.log("warn", `${this.name}: the device does not let itself be reset: ${String(error)}`);
    }
    this.#state = "failed";
  }

  #openQueue(queue: VirtQueue, options: VirtQueueOptions): void {
    const most = this.#transport.queueMaxSize(queue.index);
    if (most === 0) throw new VirtkitError("ERR_VIRTKIT_QUEUE", `${this.name}: the device has no queue ${queue.index}`);
    let entries = this.#transport.fixedQueueSize ? most : Math.min(options.size ?? most, most, this.#maxQueueSize);
    if (!(Number.isInteger(entries) && entries > 0))
      throw new VirtkitError("ERR_VIRTKIT_QUEUE", `${this.name}: queue ${queue.index} cannot have ${entries} entries`);
    if (!this.#features.has(VIRTIO_F_RING_PACKED)) entries = 2 ** Math.floor(Math.log2(entries));
    const features = driverQueueFeatures(this.#features);
    const config = queue.open(entries, features, options.indirectEntries);
    this.tracer?.emit(queueStart(queue.index, config, features.packed));
    try {
      this.#transport.enableQueue(queue.index, config, () => {
        this.tracer?.emit({ kind: "interrupt", queue: queue.index });
        if (queue.live && this.#isUp) this.onInterrupt(queue);
      });
    } catch (error) {
      this.#closeQueue(queue);
      throw error;
    }
  }

  #closeQueue(queue: VirtQueue): void {
    if (queue.live) this.tracer?.emit({ kind: "queue", queue: queue.index, state: "stop" });
    queue.close();
  }

  #queueHost(): VirtQueueHost {
    return {
      environment: this.environment,
      dma: this.dma,
      isSuspended: () => this.#state === "suspended",
      tracer: this.tracer,
      notify: (index: number, data: number) => {
        // The driver MUST NOT send any buffer available notifications before DRIVER_OK (driver: Device Initialization #5).
        if (this.#state === "ready") this.#kick(index, data);
        else this.#heldKicks.set(index, data);
      },
      queueFault: (queue: VirtQueue, fault: QueueFault) => this.#broken(`queue ${queue.index}: ${fault.reason}`),
      used: (queue: VirtQueue, token: number, written: number) => {
        this.#restarts = 0;
        this.onUsed(queue, token, written);
      },
      unused: (queue: VirtQueue, token: number) => this.onUnused(queue, token),
    };
  }

  /** DRIVER_OK was set, and the queues are there. */
  get #isUp(): boolean {
    return this.#state === "ready" || this.#state === "suspended" || this.#state === "needs-reset";
  }

  /** Reads the status again and again until the device shows `set` and not `clear`. */
  async #becomes(set: number, clear: number): Promise<void> {
    const { environment } = this;
    const end = environment.now() + SUSPEND_TIMEOUT;
    for (;;) {
      const status = this.#transport.getStatus();
      if ((status & VIRTIO_CONFIG_S_NEEDS_RESET) !== 0) {
        this.#broken("the device needs a reset");
        throw new VirtkitError("ERR_VIRTKIT_DRIVER_STATE", `${this.name}: the device needs a reset`);
      }
      if ((status & (set | clear)) === set) return;
      if (environment.now() > end)
        throw new VirtkitError("ERR_VIRTKIT_TIMEOUT", `${this.name}: the device status stays ${status}`);
      await new Promise<void>((resolve) => environment.defer(resolve));
    }
  }

  #sendHeldKicks(): void {
    for (const [index, data] of [...this.#heldKicks]) this.#kick(index, data);
    this.#heldKicks.clear();
  }

  #kick(index: number, data: number): void {
    this.tracer?.emit({ kind: "kick", queue: index });
    this.#transport.notify(index, data);
  }

  #configInterrupt(): void {
    this.tracer?.emit({ kind: "interrupt" });
    if (this.#state !== "ready" && this.#state !== "suspended") return;
    if ((this.#transport.getStatus() & VIRTIO_CONFIG_S_NEEDS_RESET) !== 0) this.#broken("the device needs a reset");
    else if (this.#state === "suspended") this.#configPending = true;
    else this.onConfigChanged();
  }

  #broken(reason: string): void {
    if (this.#state !== "ready" && this.#state !== "suspended") return;
    this.#state = "needs-reset";
    this.tracer?.emit({ kind: "fault", reason, fatal: true });
    this.environment.log.log("warn", `${this.name}: ${reason}`);
    if (!this.onNeedsReset(reason)) return;
    void this.#serially(async () => {
      if (this.#state !== "needs-reset") return;
      if (++this.#restarts > MAX_RESTARTS) {
        this.environment.log.log("error", `${this.name}: still broken after ${MAX_RESTARTS} resets; giving up`);
        await this.#giveUp();
        return;
      }
      await this.#takeDown();
      await this.#bringUp();
    }).catch((error: unknown) => {
      this.environment.log.log("error", `${this.name}: no new start after a reset: ${String(error)}`);
    });
  }

  #addStatus(bit: number): void {
    const status = this.#transport.getStatus() | bit;
    this.tracer?.emit({ kind: "status", value: status, names: statusNames(status) });
    this.#transport.setStatus(status);
  }

  async #reset(): Promise<void> {
    this.tracer?.emit({ kind: "status", value: 0, names: "" });
    await this.#transport.reset();
  }

  #mustBe(state: DriverState, what: string): void {
    if (this.#state !== state)
      throw new VirtkitError(
        "ERR_VIRTKIT_DRIVER_STATE",
        `${this.name} is ${this.#state}; it is ${what} when it is ${state}`,
      );
  }

  #mustNotBeRemoved(): void {
    if (this.#state === "removed")
      throw new VirtkitError("ERR_VIRTKIT_DRIVER_STATE", `${this.name} was removed; probe the device again`);
  }

  /** One after the other, whatever came of the one before. */
  #serially(operation: () => Promise<void>): Promise<void> {
    const result = this.#tail.then(operation);
    this.#tail = result.catch(() => undefined);
    return result;
  }
}
