import type { Environment } from "../common/environment.ts";
import { VirtkitError } from "../common/error.ts";
import { FeatureSet } from "../common/feature-set.ts";
import type { GuestMemory } from "../memory/guest-memory.ts";
import {
  VIRTIO_F_ANY_LAYOUT,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_NOTIFY_ON_EMPTY,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_RING_RESET,
  VIRTIO_F_SUSPEND,
  VIRTIO_F_VERSION_1,
} from "../spec/features.ts";
import type { Tracer } from "../trace/types.ts";
import {
  ChainBatch,
  createDeviceQueue,
  INITIAL_QUEUE_STATE,
  type QueueConfig,
  type QueueFault,
  type QueueFeatures,
  type QueueState,
} from "../virtqueue/index.ts";
import { ConfigSpace } from "./config-space.ts";
import { RunningQueue } from "./running-queue.ts";
import { checkSharedMemory, type SharedMemoryRegion } from "./shared-memory.ts";
import { queueStart, TracedQueue } from "./traced-queue.ts";
import type { TransportPort } from "./transport-port.ts";

/** The features that every device here can offer, because `virtqueue/` and this core implement them. */
export const RING_FEATURES = FeatureSet.of(
  VIRTIO_F_VERSION_1,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_RING_RESET,
  VIRTIO_F_SUSPEND,
);

/** Ring features offered unless the caller chooses others: those that drivers in the field use well. */
export const DEFAULT_RING_FEATURES = RING_FEATURES.without(
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_SUSPEND,
);

/** Feature bits that only the legacy interface shows: a modern driver must not see them (VIRTIO 1.4 §6.3). */
export const LEGACY_FEATURES = FeatureSet.of(VIRTIO_F_NOTIFY_ON_EMPTY, VIRTIO_F_ANY_LAYOUT);

/** Chains that are taken from a queue in one go. */
const BATCH_CHAINS = 128;
/** Chains that one kick may work through, about, before other work gets its turn. */
const CHAINS_PER_TURN = 16 * BATCH_CHAINS;
/** Descriptors that count as much as a chain: a table may have 65536. */
const DESCRIPTORS_PER_CHAIN = 64;
/** Milliseconds between two log lines on a broken device: a hostile driver may reset and break it in a loop. */
const LOG_PERIOD = 5000;

/** What a concrete device tells the core of itself. */
export interface DeviceDescription {
  /** For messages: the device's id or type. */
  readonly name: string;
  /** Device type, VIRTIO_ID_*. */
  readonly deviceId: number;
  /** Largest size of each queue, in order; its length is the number of queues. */
  readonly queueSizes: readonly number[];
  /** Feature bits of the device type that it offers. */
  readonly features: FeatureSet;
  /** Those of them that the legacy interface does not show; none unless said. */
  readonly modernOnly?: FeatureSet;
  /** Ring features it offers; {@link DEFAULT_RING_FEATURES} unless said. */
  readonly ringFeatures?: FeatureSet;
  /** Bytes of the device-specific configuration; 0 for none. */
  readonly configSize: number;
  /** Shared memory regions; none unless said. */
  readonly sharedMemory?: readonly SharedMemoryRegion[];
  readonly environment: Environment;
}

/**
 * A device, whatever carries it: features, configuration, running queues. Strict transports (PCI, MMIO) drive it
 * through a `StatusMachine`; vhost-user starts and stops rings one by one. A concrete device extends this class and
 * overrides the `on...` methods; it never sees a transport.
 *
 * Reset and stop are immediate: I/O that is still in flight is disowned (see {@link RunningQueue.live}). A transport
 * that can wait calls {@link drain} first; a device may give a back end guest memory to keep only where
 * `memory.fixed` says so and then must finish such I/O in {@link onDrain}.
 */
export abstract class DeviceCore {
  readonly name: string;
  readonly deviceId: number;
  readonly queueSizes: readonly number[];
  readonly config: ConfigSpace;
  readonly sharedMemory: readonly SharedMemoryRegion[];
  protected readonly environment: Environment;
  /** Rules that a driver broke, by count; the first is also logged. */
  faults = 0;
  /** Whom to tell what happens here. Set before the device is attached, as a queue is traced or not from its start on. */
  tracer: Tracer | undefined;
  #offered: FeatureSet;
  readonly #modernOnly: FeatureSet;
  #legacyOnly = LEGACY_FEATURES;
  #negotiated = FeatureSet.EMPTY;
  #port: TransportPort | undefined;
  readonly #queues: (RunningQueue | undefined)[];
  readonly #batches: ChainBatch[] = [];
  #broken: string | undefined;
  #quietUntil = Number.NEGATIVE_INFINITY;
  #servicing = 0;
  #suspended = false;

  protected constructor(description: DeviceDescription) {
    this.name = description.name;
    this.deviceId = description.deviceId;
    this.queueSizes = description.queueSizes;
    this.environment = description.environment;
    this.sharedMemory = checkSharedMemory(description.name, description.sharedMemory ?? []);
    this.#offered = description.features
      .union(description.ringFeatures ?? DEFAULT_RING_FEATURES)
      .with(VIRTIO_F_VERSION_1);
    this.#modernOnly = description.modernOnly ?? FeatureSet.EMPTY;
    this.#queues = new Array(description.queueSizes.length).fill(undefined);
    this.config = new ConfigSpace(description.configSize, {
      changed: () => {
        this.tracer?.emit({ kind: "config", by: "device" });
        this.#port?.notifyConfig();
      },
      written: (offset, length) => {
        this.tracer?.emit({ kind: "config", by: "driver", offset, length });
        this.onConfigWritten(offset, length);
      },
    });
  }

  /** Every feature bit that the device offers. */
  get offeredFeatures(): FeatureSet {
    return this.#offered;
  }

  /** What the legacy interface offers: the low 32 bits but for those that are not for it, and {@link LEGACY_FEATURES}. */
  get legacyFeatures(): FeatureSet {
    return FeatureSet.fromWords([this.#offered.word(0)])
      .minus(this.#modernOnly)
      .union(this.#legacyOnly);
  }

  /** The features in force, from {@link setFeatures} on. */
  get features(): FeatureSet {
    return this.#negotiated;
  }

  /** Why the device needs a reset, or undefined while it is sound. */
  get broken(): string | undefined {
    return this.#broken;
  }

  get memory(): GuestMemory {
    return this.#attached().memory;
  }

  /** Plugs the device into its transport. Once, before anything else. */
  attach(port: TransportPort): void {
    if (this.#port !== undefined)
      throw new VirtkitError(
        "ERR_VIRTKIT_ATTACHED",
        `${this.name} is attached already; make a device for each transport`,
      );
    this.#port = port;
  }

  /**
   * Offers other features from now on (a transport property such as `packed=on`, or QEMU's `mrg_rxbuf=off`). Only before a driver
   * negotiates.
   */
  setOfferedFeatures(features: FeatureSet): void {
    this.#offered = features;
  }

  /** Which of {@link LEGACY_FEATURES} the legacy interface offers; both unless said. Only before a driver negotiates. */
  setLegacyFeatures(features: FeatureSet): void {
    this.#legacyOnly = features.intersect(LEGACY_FEATURES);
  }

  /**
   * The driver's choice. False when the device does not accept it: a bit that was not offered, or a bit without one that
   * it requires (device: Feature Bits #2). The old choice then stays in force.
   */
  setFeatures(features: FeatureSet): boolean {
    const legacy = features.has(VIRTIO_F_VERSION_1) ? FeatureSet.EMPTY : this.#legacyOnly;
    const accepted = features.isSubsetOf(this.#offered.union(legacy)) && this.acceptsFeatures(features);
    this.tracer?.emit({ kind: "features", features: features.toString(), accepted });
    if (!accepted) return false;
    this.#negotiated = features;
    this.onFeatures(features);
    return true;
  }

  /**
   * Starts queue `index` with the geometry that the driver programmed, from `state` on. Returns the fault when the driver gave
   * bad addresses (the device then needs a reset), undefined when the queue runs.
   */
  startQueue(index: number, config: QueueConfig, state: QueueState = INITIAL_QUEUE_STATE): QueueFault | undefined {
    if (this.#queues[index] !== undefined) this.stopQueue(index);
    const features = queueFeatures(this.#negotiated);
    const ring = createDeviceQueue(this.memory, config, features, state);
    this.tracer?.emit(queueStart(index, config, features.packed));
    const queue = this.tracer === undefined ? ring : new TracedQueue(ring, index, this.tracer);
    const running = new RunningQueue(index, queue, () => this.#attached().notifyQueue(index));
    if (queue.fault !== undefined) {
      running.live = false;
      this.#queueFault(running);
      return queue.fault;
    }
    this.#queues[index] = running;
    if (this.#suspended) running.suspend();
    this.onQueueStart(running);
    return undefined;
  }

  /** Stops a queue at once; I/O in flight is disowned. Returns how far it came; the start state if it did not run. */
  stopQueue(index: number): QueueState {
    const running = this.#queues[index];
    if (running === undefined) return INITIAL_QUEUE_STATE;
    const state = running.queue.state();
    running.live = false;
    this.#queues[index] = undefined;
    this.tracer?.emit({ kind: "queue", queue: index, state: "stop" });
    this.onQueueStop(running);
    return state;
  }

  /**
   * True while a back end still works on guest memory itself, for queue `index` (for any queue without an index), even after
   * the queue was stopped. A strict transport holds a reset open as long, see {@link drain}.
   */
  busy(index?: number): boolean {
    return this.isBusy(index);
  }

  /** Resolves when no I/O is in flight on queue `index` (on any queue without an index). New kicks are still taken. */
  async drain(index?: number): Promise<void> {
    await this.onDrain(index);
  }

  /** The first half of a suspension (VIRTIO 1.4 §3.4): no more chains are taken; those in flight still become used. */
  suspend(): void {
    if (this.#suspended) return;
    this.#suspended = true;
    for (const running of this.#queues) running?.suspend();
  }

  /** The second half: from now on no ring is touched, and the driver sees no change of the configuration. */
  freeze(): void {
    for (const running of this.#queues) running?.freeze();
    this.config.hold();
  }

  /** Goes on where {@link suspend} left off. What finished or changed meanwhile is told now. */
  resume(): void {
    if (!this.#suspended) return;
    this.#suspended = false;
    this.config.release();
    for (const running of this.#queues) running?.resume();
    for (let i = 0; i < this.#queues.length; i++) this.kick(i);
  }

  /** The queue as it runs now, or undefined. */
  queue(index: number): RunningQueue | undefined {
    return this.#queues[index];
  }

  /** Back to the state after power-up: no queue runs, nothing is negotiated, the configuration has its start values. */
  reset(): void {
    for (let i = 0; i < this.#queues.length; i++) this.stopQueue(i);
    this.#negotiated = FeatureSet.EMPTY;
    this.#broken = undefined;
    this.#suspended = false;
    this.config.forget();
    this.onReset();
  }

  /**
   * An available buffer notification arrived. One for a queue that does not run, or does not exist, is ignored, and so is
   * every one while the device needs a reset.
   */
  kick(index: number): void {
    const running = this.#queues[index];
    if (running !== undefined && running.queue.fault === undefined && this.#broken === undefined) this.onKick(running);
  }

  /** The transport says that the driver is up (DRIVER_OK), or with false that it is going away. */
  driverReady(_ready: boolean): void {}

  /** A transport saw the driver break a rule of the registers: counted; if `fatal`, the device needs a reset. */
  driverFault(reason: string, fatal: boolean): void {
    if (fatal) {
      this.fail(reason);
      return;
    }
    this.tracer?.emit({ kind: "fault", reason, fatal });
    if (this.faults++ === 0) this.environment.log.log("warn", `${this.name}: ${reason}; ignored`);
  }

  /**
   * Lets go of everything outside (back ends are closed by whoever opened them). Resolves when no back end works on guest memory any
   * more. The device is not used again.
   */
  async close(): Promise<void> {
    for (let i = 0; i < this.#queues.length; i++) this.stopQueue(i);
    if (this.#port !== undefined && this.busy()) await this.drain();
    this.reset();
  }

  // What a concrete device overrides.

  /** Whether this subset of the offered features makes sense (each bit with those it requires). */
  protected acceptsFeatures(_features: FeatureSet): boolean {
    return true;
  }
  protected onFeatures(_features: FeatureSet): void {}
  protected onQueueStart(_queue: RunningQueue): void {}
  protected onQueueStop(_queue: RunningQueue): void {}
  protected onReset(): void {}
  protected async onDrain(_index?: number): Promise<void> {}
  /** See {@link busy}. Only a device that hands guest memory to a back end overrides it, together with {@link onDrain}. */
  protected isBusy(_index?: number): boolean {
    return false;
  }
  /** The driver wrote configuration bytes that were declared writable. */
  protected onConfigWritten(_offset: number, _length: number): void {}
  /** A kick. The default works the queue off through {@link onChains}. */
  protected onKick(queue: RunningQueue): void {
    this.service(queue);
  }
  /**
   * Chains were taken from the queue, already checked. Each has to be pushed, now or later; the core publishes and notifies
   * after each batch. Only called by {@link service}. Returns false when the device cannot take more now: it put the rest
   * back with `unpop` and calls {@link service} itself once it can go on.
   */
  protected onChains(_queue: RunningQueue, _batch: ChainBatch): boolean {
    return true;
  }

  /**
   * Works a queue off: suppress kicks, take and handle batches, publish, ask for kicks again and look again, because a
   * driver that added a chain between our last look and the re-arming did not kick for it (VIRTIO 1.4 §2.7.7.2).
   * Bounded: a driver that adds as fast as we take must not keep the thread, so the rest is left for a later turn.
   *
   * A driver in the same process may kick from inside our notification, and a back end may complete inside its submit.
   * Such a call finds the queue in service and makes the loop below look again.
   */
  protected service(running: RunningQueue): void {
    running.again = true;
    if (running.inService) return;
    const { queue } = running;
    const batch = this.#batches[this.#servicing] ?? this.#newBatch();
    this.#servicing++;
    running.inService = true;
    let budget = CHAINS_PER_TURN;
    try {
      do {
        queue.disableKicks();
        for (;;) {
          batch.clear();
          if (queue.pop(batch, BATCH_CHAINS) === 0) break;
          running.again = false;
          const goOn = this.onChains(running, batch);
          if (!running.live) return;
          running.publish();
          // A driver may suspend the device from inside the notification.
          if (running.queue !== queue) return;
          if (!(goOn || running.again) || this.#broken !== undefined) return;
          budget -= batch.count + (batch.segments + batch.walked) / DESCRIPTORS_PER_CHAIN;
          if (budget <= 0) {
            this.environment.defer(() => this.#resume(running));
            return;
          }
        }
      } while (queue.enableKicks());
    } finally {
      this.#servicing--;
      running.inService = false;
    }
    if (queue.fault !== undefined) this.#queueFault(running);
  }

  /**
   * The device cannot go on: DEVICE_NEEDS_RESET, told once until the next reset. Logged at most once in 5 seconds, counted
   * always.
   */
  protected fail(reason: string): void {
    this.faults++;
    this.tracer?.emit({ kind: "fault", reason, fatal: true });
    if (this.#broken !== undefined) return;
    this.#broken = reason;
    const now = this.environment.now();
    if (now >= this.#quietUntil) {
      this.#quietUntil = now + LOG_PERIOD;
      this.environment.log.log("warn", `${this.name}: ${reason}; the device needs a reset (fault ${this.faults})`);
    }
    this.#port?.notifyNeedsReset(reason);
  }

  /** After using a queue outside {@link service}: passes its fault on, if it has one. True when the queue is sound. */
  protected checkQueue(running: RunningQueue): boolean {
    if (running.queue.fault === undefined) return true;
    this.#queueFault(running);
    return false;
  }

  #resume(running: RunningQueue): void {
    if (running.live && running.queue.fault === undefined && this.#broken === undefined) this.service(running);
  }

  #queueFault(running: RunningQueue): void {
    if (running.faultReported) return;
    running.faultReported = true;
    this.fail(`queue ${running.index}: ${running.queue.fault?.reason ?? "broken"}`);
  }

  // A device may be re-entered (a back end that finishes inside submit may kick another queue), so each depth has its batch.
  #newBatch(): ChainBatch {
    const batch = new ChainBatch(BATCH_CHAINS);
    this.#batches.push(batch);
    return batch;
  }

  #attached(): TransportPort {
    if (this.#port === undefined)
      throw new VirtkitError("ERR_VIRTKIT_NOT_ATTACHED", `${this.name} has no transport; attach it to one first`);
    return this.#port;
  }
}

function queueFeatures(features: FeatureSet): QueueFeatures {
  return {
    packed: features.has(VIRTIO_F_RING_PACKED),
    indirect: features.has(VIRTIO_F_INDIRECT_DESC),
    eventIdx: features.has(VIRTIO_F_EVENT_IDX),
    inOrder: features.has(VIRTIO_F_IN_ORDER),
    notificationData: features.has(VIRTIO_F_NOTIFICATION_DATA),
    legacy: !features.has(VIRTIO_F_VERSION_1),
    notifyOnEmpty: features.has(VIRTIO_F_NOTIFY_ON_EMPTY),
  };
}
