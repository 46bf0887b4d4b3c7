import type { GuestMemory } from "../memory/guest-memory.ts";
import type { MemoryRegion } from "../memory/memory-region.ts";
import {
  VIRTQ_AVAIL_ALIGN,
  VIRTQ_DESC_ALIGN,
  VIRTQ_EVENT_SUPPRESS_ALIGN,
  VIRTQ_EVENT_SUPPRESS_SIZE,
  VIRTQ_PACKED_DESC_SIZE,
  VIRTQ_USED_ALIGN,
  VIRTQUEUE_MAX_SIZE,
  virtqAvailBytes,
  virtqDescTableBytes,
  virtqUsedBytes,
} from "../spec/ring.ts";
import { faultOf, ringAddressFault } from "./fault.ts";
import type { QueueConfig, QueueFault, QueueFeatures } from "./types.ts";

const EVENT_WORD = 2;
/** Stands in while an area is not in guest memory: nothing can be read from it or written to it. */
const NOWHERE: Pick<MemoryRegion, "base" | "u8" | "u16" | "u32"> = {
  base: 0,
  u8: new Uint8Array(0),
  u16: new Uint16Array(0),
  u32: new Uint32Array(0),
};

/** One part of a queue: a latched range of guest-physical addresses and the region that holds it at present. */
export class RingArea {
  readonly name: string;
  readonly address: number;
  readonly bytes: number;
  readonly align: number;
  readonly write: boolean;
  region: Pick<MemoryRegion, "base" | "u8" | "u16" | "u32"> = NOWHERE;
  /** Byte offset in the region. */
  offset = 0;

  constructor(name: string, address: number, bytes: number, align: number, write: boolean) {
    this.name = name;
    this.address = address;
    this.bytes = bytes;
    this.align = align;
    this.write = write;
  }

  /** Finds the region anew. The fault says why there is none. */
  attach(memory: GuestMemory): QueueFault | undefined {
    this.region = NOWHERE;
    if (this.address % this.align !== 0)
      return faultOf(
        "ring-address",
        `the ${this.name} at 0x${this.address.toString(16)} is not aligned to ${this.align}`,
      );
    const i = memory.locate(this.address, this.bytes, this.write);
    const region = memory.regions[i];
    if (region === undefined || region.u8.length === 0) return ringAddressFault(this.name, this.address, this.bytes);
    this.region = region;
    this.offset = this.address - region.base;
    return undefined;
  }
}

/** The three parts of a queue, latched when it starts. */
export class RingAreas {
  readonly desc: RingArea;
  readonly driver: RingArea;
  readonly device: RingArea;
  readonly #memory: GuestMemory;

  constructor(memory: GuestMemory, config: QueueConfig, features: QueueFeatures, side: "device" | "driver") {
    const { size } = config;
    const device = side === "device";
    this.#memory = memory;
    if (features.packed) {
      const event = VIRTQ_EVENT_SUPPRESS_SIZE;
      const align = VIRTQ_EVENT_SUPPRESS_ALIGN;
      this.desc = new RingArea("descriptor ring", config.desc, VIRTQ_PACKED_DESC_SIZE * size, VIRTQ_DESC_ALIGN, device);
      this.driver = new RingArea("driver event suppression", config.driver, event, align, false);
      this.device = new RingArea("device event suppression", config.device, event, align, device);
    } else {
      const spare = features.eventIdx ? 0 : EVENT_WORD;
      const avail = virtqAvailBytes(size) - spare;
      const used = virtqUsedBytes(size) - spare;
      this.desc = new RingArea("descriptor table", config.desc, virtqDescTableBytes(size), VIRTQ_DESC_ALIGN, false);
      this.driver = new RingArea("available ring", config.driver, avail, VIRTQ_AVAIL_ALIGN, false);
      this.device = new RingArea("used ring", config.device, used, VIRTQ_USED_ALIGN, device);
    }
  }

  /** True when a region under the rings was dropped since the last {@link attach}: its views are empty. */
  get lost(): boolean {
    return this.desc.region.u8.length === 0 || this.driver.region.u8.length === 0 || this.device.region.u8.length === 0;
  }

  /** Zeroes all three: the driver hands over empty rings (VIRTIO 1.4 §2.7.10.1, §2.8.13). */
  clear(): void {
    for (const { region, offset, bytes, address } of [this.desc, this.driver, this.device]) {
      region.u8.fill(0, offset, offset + bytes);
      this.#memory.markWritten(address, bytes);
    }
  }

  /** Looks the latched addresses up again. */
  attach(): QueueFault | undefined {
    const memory = this.#memory;
    return this.desc.attach(memory) ?? this.driver.attach(memory) ?? this.device.attach(memory);
  }
}

/** A size no queue of this format can have (VIRTIO 1.4 §2.7, §2.8). */
export function sizeFault(size: number, packed: boolean): QueueFault | undefined {
  const whole = Number.isInteger(size) && size >= 1 && size <= VIRTQUEUE_MAX_SIZE;
  if (whole && (packed || (size & (size - 1)) === 0)) return undefined;
  return faultOf(
    "ring-address",
    packed
      ? `the queue size ${size} is not in 1..${VIRTQUEUE_MAX_SIZE}`
      : `the queue size ${size} is no power of two up to ${VIRTQUEUE_MAX_SIZE}`,
  );
}
