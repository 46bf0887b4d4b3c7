import { FeatureSet } from "../common/feature-set.ts";
import { statusNames } from "../common/status-names.ts";
import type { GuestMemory } from "../memory/guest-memory.ts";
import { VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET, VIRTIO_F_SUSPEND, VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FAILED,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_CONFIG_S_NEEDS_RESET,
  VIRTIO_CONFIG_S_SUSPEND,
} from "../spec/status.ts";
import type { DeviceCore } from "./core.ts";
import { QueueRegisters } from "./queue-registers.ts";
import type { TransportPort } from "./transport-port.ts";

/** What a strict transport does for its status machine. */
export interface StatusHooks {
  readonly memory: GuestMemory;
  /** What a driver writes to for an available buffer notification, as traces call it; "notify" unless said. */
  readonly doorbell?: string;
  /** Sends a used buffer notification. Only called while the driver is up. */
  queueInterrupt(index: number): void;
  /** Sends a configuration change notification. Only called while the driver is up. */
  configInterrupt(): void;
  /** A device reset is done: the transport's own registers (vectors, interrupt status) go back to their start values. */
  deviceReset(): void;
  /** A queue reset is done: likewise for this queue. */
  queueReset(index: number): void;
}

/** Bits that a driver sets for good; SUSPEND has rules of its own, NEEDS_RESET is the device's. */
const DRIVER_BITS =
  VIRTIO_CONFIG_S_ACKNOWLEDGE |
  VIRTIO_CONFIG_S_DRIVER |
  VIRTIO_CONFIG_S_FEATURES_OK |
  VIRTIO_CONFIG_S_DRIVER_OK |
  VIRTIO_CONFIG_S_FAILED;

/**
 * The registers that PCI, MMIO and the loopback transport have in common: device status, feature windows, queues. All values are
 * unsigned, and every one of them may come from a hostile driver.
 *
 * What a driver does against the rules, and what becomes of it:
 * - a bit is left out of a later write (a driver that writes 2 after 1): the bit stays set, as nothing was undone;
 * - ACKNOWLEDGE or DRIVER is skipped, or several bits come at once: accepted, as QEMU does; they only inform;
 * - FEATURES_OK with features that the device refuses: the bit stays clear, the driver may write others and try again;
 * - DRIVER_OK without FEATURES_OK: the device does not go live and needs a reset;
 * - DRIVER_OK is cleared while the device is live: the driver believes that the device stopped and will use the memory
 *   for other things, so every queue stops, and the device needs a reset;
 * - SUSPEND without VIRTIO_F_SUSPEND, or before DRIVER_OK: ignored;
 * - features written after FEATURES_OK, the geometry of an enabled queue, 0 written to queue_enable: ignored, counted.
 *
 * The legacy interface (VIRTIO 1.4 §3.1.2) is another set of registers over the same machine. The first write to it, before
 * FEATURES_OK, takes it into use until the next reset. There is no FEATURES_OK then: features are in force from DRIVER_OK on, or from
 * the first kick, as drivers of old used the device before they said that they were ready.
 */
export class StatusMachine implements TransportPort {
  readonly memory: GuestMemory;
  readonly device: DeviceCore;
  readonly queues: QueueRegisters;
  /** Windows on the feature bits: which 32 bits the registers show. */
  deviceFeatureSelect = 0;
  driverFeatureSelect = 0;
  readonly #hooks: StatusHooks;
  readonly #doorbell: string;
  readonly #driverFeatures = new Uint32Array(4);
  #status = 0;
  #resetting = false;
  #legacy = false;
  /** A legacy driver uses the device before DRIVER_OK. */
  #early = false;
  /** A suspension is under way: SUSPEND was written, chains in flight are being finished. */
  #suspending = false;
  /** Device resets so far: a suspension that ends after one has nothing to do any more. */
  #epoch = 0;
  /** The device broke while it was suspended and may not say so yet. */
  #configDue = false;

  constructor(device: DeviceCore, hooks: StatusHooks) {
    this.device = device;
    this.memory = hooks.memory;
    this.#hooks = hooks;
    this.#doorbell = hooks.doorbell ?? "notify";
    this.queues = new QueueRegisters(device, {
      packed: () => device.features.has(VIRTIO_F_RING_PACKED),
      resettable: () => device.features.has(VIRTIO_F_RING_RESET),
      live: () => this.live,
      wasReset: (index) => hooks.queueReset(index),
    });
    device.attach(this);
  }

  get status(): number {
    return this.#status;
  }

  /** DRIVER_OK is set, nothing is broken, no reset is under way: queues run. */
  get live(): boolean {
    return this.#up && (this.#status & VIRTIO_CONFIG_S_NEEDS_RESET) === 0;
  }

  /** The driver uses the legacy interface. */
  get legacy(): boolean {
    return this.#legacy;
  }

  /**
   * Called for what a driver does to a legacy register, before it takes effect. False while another interface is in use, or a
   * reset under way: the write is to be ignored.
   */
  useLegacy(): boolean {
    if (this.#resetting) return false;
    if (this.#legacy) return true;
    if ((this.#status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0) {
      this.device.driverFault("the driver wrote to the legacy interface while it uses the modern one", false);
      return false;
    }
    this.#legacy = true;
    return true;
  }

  /** A driver's write to the status register of a legacy interface. */
  writeLegacyStatus(value: number): void {
    if ((value & 0xff) === 0 || this.useLegacy()) this.writeStatus(value);
  }

  /** What the driver wrote, as far as it is offered. */
  get legacyDriverFeatures(): number {
    return this.#driverFeatures[0] as number;
  }

  /** A driver's features through the legacy interface; bits that are not offered there are left out. */
  writeLegacyFeatures(value: number): void {
    if (!this.useLegacy()) return;
    this.#driverFeatures.fill(0);
    this.#driverFeatures[0] = this.device.legacyFeatures.intersect(FeatureSet.fromWords([value])).word(0);
    if (!this.#up) return;
    this.#latchLegacyFeatures();
    this.queues.restart();
  }

  /** An available buffer notification through the legacy interface. */
  legacyKick(index: number): void {
    this.device.tracer?.emit({ kind: "kick", queue: index, register: "QUEUE_NOTIFY" });
    if (!this.#up && this.useLegacy() && index < this.queues.count) this.#goEarly();
    if (this.live) this.device.kick(index);
  }

  /** A driver's write to the device status register; 0 resets the device. */
  writeStatus(value: number): void {
    const bits = value & 0xff;
    this.device.tracer?.emit({ kind: "status", value: bits, names: statusNames(bits) });
    if (bits === 0) {
      this.reset();
      return;
    }
    // A driver must wait until it reads 0; until then the device is not its own.
    if (this.#resetting) return;
    if (this.#isSuspend(bits)) {
      this.#suspend();
      return;
    }
    if ((this.#status & VIRTIO_CONFIG_S_DRIVER_OK) !== 0 && (bits & VIRTIO_CONFIG_S_DRIVER_OK) === 0) {
      this.queues.stop();
      this.device.driverFault("the driver cleared DRIVER_OK without a reset", true);
    }
    const set = bits & DRIVER_BITS & ~this.#status;
    this.#status |= set & ~(VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
    if ((set & VIRTIO_CONFIG_S_FEATURES_OK) !== 0 && !this.#legacy && this.#latchFeatures())
      this.#status |= VIRTIO_CONFIG_S_FEATURES_OK;
    if ((set & VIRTIO_CONFIG_S_DRIVER_OK) === 0) return;
    if ((this.#status & VIRTIO_CONFIG_S_SUSPEND) !== 0) this.#resume();
    else this.#goLive();
  }

  /**
   * Resets the device. The status reads 0 at once, unless a back end still works on guest memory: then when it has let
   * go of it (device: Common configuration structure layout #6).
   */
  reset(): void {
    if (this.#resetting) return;
    this.#resetting = true;
    this.queues.stop();
    if (!this.device.busy()) {
      this.#finishReset();
      return;
    }
    const finish = () => this.#finishReset();
    this.device.drain().then(finish, finish);
  }

  /** The 32 offered bits that `deviceFeatureSelect` chooses; 0 past the last. */
  get deviceFeature(): number {
    return this.device.offeredFeatures.word(this.deviceFeatureSelect);
  }

  get driverFeature(): number {
    return this.#driverFeatures[this.driverFeatureSelect] ?? 0;
  }

  writeDriverFeature(value: number): void {
    if ((this.#status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0)
      this.device.driverFault("the driver wrote features after FEATURES_OK", false);
    else if (this.driverFeatureSelect < this.#driverFeatures.length)
      this.#driverFeatures[this.driverFeatureSelect] = value;
  }

  /** An available buffer notification: the doorbell's short way. */
  kick(index: number): void {
    this.device.tracer?.emit({ kind: "kick", queue: index, register: this.#doorbell });
    if (this.live) this.device.kick(index);
  }

  notifyQueue(index: number): void {
    if (this.#up) this.#hooks.queueInterrupt(index);
  }

  notifyConfig(): void {
    if (this.#up) this.#hooks.configInterrupt();
    else if ((this.#status & VIRTIO_CONFIG_S_SUSPEND) !== 0) this.#configDue = true;
  }

  notifyNeedsReset(_reason: string): void {
    if (this.#resetting) return;
    this.#status |= VIRTIO_CONFIG_S_NEEDS_RESET;
    this.notifyConfig();
  }

  #latchFeatures(): boolean {
    const features = FeatureSet.fromWords(this.#driverFeatures);
    // The legacy interface is another transport; here a driver that leaves VERSION_1 out would get other rings than it builds.
    if (!features.has(VIRTIO_F_VERSION_1)) {
      this.device.driverFault("the driver did not accept VIRTIO_F_VERSION_1", false);
      return false;
    }
    return this.device.setFeatures(features);
  }

  /** True for a write that asks a live device to suspend itself (device: Device Suspend #1). */
  #isSuspend(bits: number): boolean {
    const live = this.live && (this.#status & VIRTIO_CONFIG_S_DRIVER_OK) !== 0;
    return live && (bits & VIRTIO_CONFIG_S_SUSPEND) !== 0 && this.device.features.has(VIRTIO_F_SUSPEND);
  }

  /** Takes no more chains, lets those in flight become used, and then shows SUSPEND in place of DRIVER_OK (VIRTIO 1.4 §3.4). */
  #suspend(): void {
    if (this.#suspending) return;
    this.#suspending = true;
    this.device.suspend();
    const epoch = this.#epoch;
    const ifStill = (then: () => void) => () => {
      if (epoch === this.#epoch && !this.#resetting) then();
    };
    this.device.drain().then(
      ifStill(() => this.#finishSuspend()),
      ifStill(() => this.device.driverFault("the device could not be suspended", true)),
    );
  }

  #finishSuspend(): void {
    this.#suspending = false;
    if ((this.#status & VIRTIO_CONFIG_S_NEEDS_RESET) !== 0) return;
    this.device.freeze();
    this.#status = (this.#status & ~VIRTIO_CONFIG_S_DRIVER_OK) | VIRTIO_CONFIG_S_SUSPEND;
  }

  #resume(): void {
    if ((this.#status & VIRTIO_CONFIG_S_NEEDS_RESET) === 0) {
      this.#status = (this.#status & ~VIRTIO_CONFIG_S_SUSPEND) | VIRTIO_CONFIG_S_DRIVER_OK;
      this.device.resume();
      this.queues.start();
    } else if (this.#configDue) this.#hooks.configInterrupt();
    this.#configDue = false;
  }

  #goLive(): void {
    if ((this.#status & VIRTIO_CONFIG_S_NEEDS_RESET) !== 0) return;
    if (this.#early) {
      this.#status |= VIRTIO_CONFIG_S_DRIVER_OK;
      return;
    }
    if (this.#legacy) this.#latchLegacyFeatures();
    else if ((this.#status & VIRTIO_CONFIG_S_FEATURES_OK) === 0) {
      this.device.driverFault("the driver set DRIVER_OK without FEATURES_OK", true);
      return;
    }
    this.#status |= VIRTIO_CONFIG_S_DRIVER_OK;
    this.device.driverReady(true);
    this.queues.start();
  }

  /** The driver is up, or believes so: notifications go to it. */
  get #up(): boolean {
    return ((this.#status & VIRTIO_CONFIG_S_DRIVER_OK) !== 0 || this.#early) && !this.#resetting;
  }

  #goEarly(): void {
    if ((this.#status & VIRTIO_CONFIG_S_NEEDS_RESET) !== 0) return;
    this.#latchLegacyFeatures();
    this.#early = true;
    this.device.driverReady(true);
    this.queues.start();
  }

  // There is no way to refuse: a driver that leaves out what a bit requires gets nothing at all.
  #latchLegacyFeatures(): void {
    if (this.device.setFeatures(FeatureSet.fromWords(this.#driverFeatures))) return;
    this.device.driverFault("the device does not accept the driver's legacy features", false);
    this.device.setFeatures(FeatureSet.EMPTY);
  }

  #finishReset(): void {
    const wasUp = VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_SUSPEND;
    if ((this.#status & wasUp) !== 0 || this.#early) this.device.driverReady(false);
    this.#epoch++;
    this.#suspending = false;
    this.#configDue = false;
    this.#legacy = false;
    this.#early = false;
    this.device.reset();
    this.#status = 0;
    this.deviceFeatureSelect = 0;
    this.driverFeatureSelect = 0;
    this.#driverFeatures.fill(0);
    this.queues.reset();
    this.#resetting = false;
    this.#hooks.deviceReset();
  }
}
