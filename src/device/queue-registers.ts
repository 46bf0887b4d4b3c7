import { legacySplitLayout, QUEUE_ALIGN, type QueueConfig } from "../virtqueue/index.ts";
import type { DeviceCore } from "./core.ts";

/** Halves of the three addresses of a queue, in the order of the registers. */
export const QUEUE_DESC_LOW = 0;
export const QUEUE_DESC_HIGH = 1;
export const QUEUE_DRIVER_LOW = 2;
export const QUEUE_DRIVER_HIGH = 3;
export const QUEUE_DEVICE_LOW = 4;
export const QUEUE_DEVICE_HIGH = 5;
const HALVES = 6;

const isPowerOfTwo = (n: number): boolean => n >= 1 && Number.isInteger(Math.log2(n));

/** What the queue registers ask of the status machine around them. */
interface QueueRules {
  /** VIRTIO_F_RING_PACKED is in force. */
  packed(): boolean;
  /** VIRTIO_F_RING_RESET is in force. */
  resettable(): boolean;
  live(): boolean;
  wasReset(index: number): void;
}

/**
 * The registers of all queues, seen through `select`. Geometry is latched when a queue is enabled and never looked at again
 * until the queue is reset; writes in between change nothing (CVE-2026-5747).
 */
export class QueueRegisters {
  /** The queue that the registers refer to; may be one that does not exist. */
  select = 0;
  readonly #device: DeviceCore;
  readonly #rules: QueueRules;
  /** 0: not written, the maximum holds. */
  readonly #size: Uint16Array;
  readonly #addresses: Uint32Array;
  readonly #enabled: (QueueConfig | undefined)[];
  readonly #resetting: Uint8Array;
  /** Page frame numbers as a legacy driver wrote them; 0 where there is none. */
  readonly #pages: Uint32Array;
  /** Device resets so far: a queue reset that ends after one has nothing to do any more. */
  #epoch = 0;

  constructor(device: DeviceCore, rules: QueueRules) {
    const count = device.queueSizes.length;
    this.#device = device;
    this.#rules = rules;
    this.#size = new Uint16Array(count);
    this.#addresses = new Uint32Array(count * HALVES);
    this.#enabled = new Array(count).fill(undefined);
    this.#resetting = new Uint8Array(count);
    this.#pages = new Uint32Array(count);
  }

  get count(): number {
    return this.#size.length;
  }

  /** Largest size of the selected queue; 0 when there is none. A power of two unless the packed format was agreed. */
  get maxSize(): number {
    const most = this.#device.queueSizes[this.select] ?? 0;
    return most === 0 || this.#rules.packed() ? most : 2 ** Math.floor(Math.log2(most));
  }

  get size(): number {
    const written = this.#size[this.select] ?? 0;
    return written === 0 ? this.maxSize : written;
  }

  /** A size the queue cannot have is ignored, as is one for a queue that is enabled. */
  writeSize(value: number): void {
    if (!this.#writable()) return;
    const powerOfTwo = (value & (value - 1)) === 0;
    if (value === 0 || value > this.maxSize || !(powerOfTwo || this.#rules.packed()))
      this.#device.driverFault(`the driver wrote the impossible queue size ${value}`, false);
    else this.#size[this.select] = value;
  }

  /** Half of an address, QUEUE_DESC_LOW and so on. */
  address(half: number): number {
    return this.#addresses[this.select * HALVES + half] ?? 0;
  }

  writeAddress(half: number, value: number): void {
    if (this.#writable()) this.#addresses[this.select * HALVES + half] = value;
  }

  get enabled(): boolean {
    return this.#enabled[this.select] !== undefined;
  }

  /** The latched geometry of queue `index`; undefined while it is not enabled. */
  geometry(index: number): QueueConfig | undefined {
    return this.#enabled[index];
  }

  /** 1 latches the geometry. The queue runs from then on, or from DRIVER_OK on if that is later. */
  writeEnable(value: number): void {
    if (value !== 1) this.#device.driverFault(`the driver wrote ${value} to queue_enable`, false);
    if (value !== 1 || this.maxSize === 0 || !this.#writable()) return;
    this.#enable({
      size: this.size,
      desc: this.#wide(QUEUE_DESC_LOW),
      driver: this.#wide(QUEUE_DRIVER_LOW),
      device: this.#wide(QUEUE_DEVICE_LOW),
    });
  }

  /** Page frame number of the selected queue's memory (legacy interface); 0 while it is not in use. */
  get page(): number {
    return this.#pages[this.select] ?? 0;
  }

  /**
   * Legacy interface: the page at which the selected queue starts enables it, with the one layout that there is; 0 takes it out of
   * use (VIRTIO 1.4 §2.7.2, §4.1.5.1.3.1, §4.2.4). What cannot be a queue leaves the device in need of a reset.
   * @param pageSize bytes of a page; any number, a driver may have chosen it
   * @param align of the used ring; likewise
   */
  writePage(page: number, pageSize: number, align: number): void {
    if (page === 0) {
      this.disable();
      return;
    }
    if (this.maxSize === 0 || !this.#writable()) return;
    const address = page * pageSize;
    if (address === 0 || address % QUEUE_ALIGN !== 0 || !isPowerOfTwo(align) || !isPowerOfTwo(this.size)) {
      this.#device.driverFault(`the driver put queue ${this.select} where no queue can be (page ${page})`, true);
      return;
    }
    const { size, desc, driver, device } = legacySplitLayout(address, this.size, align);
    this.#pages[this.select] = page;
    this.#enable({ size, desc, driver, device });
  }

  /** Takes the selected queue out of use; it stays {@link enabled} while a back end still works on guest memory. */
  disable(): void {
    if (this.enabled && !this.resetting) this.#release(this.select, () => undefined);
  }

  /** True while a reset of the selected queue is under way. */
  get resetting(): boolean {
    return this.#resetting[this.select] === 1;
  }

  /** 1 resets the selected queue (VIRTIO 1.4 §2.6.1); done at once unless a back end still works on guest memory. */
  writeReset(value: number): void {
    const index = this.select;
    if (value !== 1 || !this.enabled || this.resetting) return;
    if (!this.#rules.resettable()) {
      this.#device.driverFault("the driver reset a queue without VIRTIO_F_RING_RESET", false);
      return;
    }
    this.#release(index, () => this.#finishReset(index));
  }

  /** DRIVER_OK: every enabled queue runs. What waits in it already is looked at, whether there was a kick or not. */
  start(): void {
    for (let i = 0; i < this.count && this.#rules.live(); i++)
      if (this.#enabled[i] !== undefined && this.#device.queue(i) === undefined) this.#run(i);
  }

  /** Other features came into force while queues run (a legacy driver may do that): they go on from where they are. */
  restart(): void {
    for (let i = 0; i < this.count && this.#rules.live(); i++) {
      const config = this.#enabled[i];
      if (config === undefined || this.#device.queue(i) === undefined) continue;
      const state = this.#device.stopQueue(i);
      if (this.#device.startQueue(i, config, state) === undefined) this.#device.kick(i);
    }
  }

  /** No queue runs any more; what the driver programmed stays. */
  stop(): void {
    for (let i = 0; i < this.count; i++) this.#device.stopQueue(i);
  }

  /** Start values, after the device was reset. */
  reset(): void {
    this.#epoch++;
    this.select = 0;
    this.#size.fill(0);
    this.#addresses.fill(0);
    this.#enabled.fill(undefined);
    this.#resetting.fill(0);
    this.#pages.fill(0);
  }

  #enable(config: QueueConfig): void {
    this.#enabled[this.select] = config;
    if (this.#rules.live()) this.#run(this.select);
  }

  /** Stops a queue, and takes it out of use once no back end works on guest memory for it any more. */
  #release(index: number, then: () => void): void {
    const done = () => {
      this.#enabled[index] = undefined;
      this.#resetting[index] = 0;
      this.#pages[index] = 0;
      then();
    };
    this.#device.stopQueue(index);
    if (!this.#device.busy(index)) {
      done();
      return;
    }
    this.#resetting[index] = 1;
    const epoch = this.#epoch;
    const finish = () => {
      if (epoch === this.#epoch) done();
    };
    this.#device.drain(index).then(finish, finish);
  }

  #run(index: number): void {
    const config = this.#enabled[index];
    if (config === undefined || this.#resetting[index] === 1) return;
    if (this.#device.startQueue(index, config) === undefined) this.#device.kick(index);
  }

  #finishReset(index: number): void {
    this.#size[index] = 0;
    this.#addresses.fill(0, index * HALVES, (index + 1) * HALVES);
    this.#rules.wasReset(index);
  }

  #writable(): boolean {
    if (this.select >= this.count) return false;
    if (!this.enabled && !this.resetting) return true;
    this.#device.driverFault(`the driver wrote to a register of queue ${this.select} while it is enabled`, false);
    return false;
  }

  // An address past 2^53 loses bits here, and still is no address of guest memory.
  #wide(low: number): number {
    return this.address(low) + this.address(low + 1) * 2 ** 32;
  }
}
