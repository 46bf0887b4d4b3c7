import type { FeatureSet } from "../common/feature-set.ts";
import type { DeviceCore } from "../device/core.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import { MemoryRegion } from "../memory/memory-region.ts";
import { VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE } from "../spec/ring.ts";
import { RawSplitRing, writeSplitDescriptor } from "./raw-ring.ts";

/** A buffer of a chain. */
export interface RawPiece {
  readonly address: number;
  readonly length: number;
}

/** Rings take the first region; tests use the others. They are neighbours, so a buffer may run from one into the next. */
export const RAW_DATA = 0x40000;
export const RAW_DATA_BYTES = 0x20000;
const RING_REGION = 0x40000;
const RING_BYTES = 0x8000;
const TABLES = 0x30000;

/** A device with hand-written split rings in front of it, and neither transport nor driver. */
export class RawDevice {
  readonly memory: GuestMemory;
  readonly device: DeviceCore;
  readonly rings: RawSplitRing[] = [];
  /** Queues that the device sent used buffer notifications for. */
  readonly notified: number[] = [];
  /** Called at each of them. */
  onNotify: ((index: number) => void) | undefined;
  configChanges = 0;
  needsReset: string | undefined;
  readonly #nextDescriptor: number[] = [];
  #tables = 0;

  /**
   * Starts every queue of the device with `size` entries; with `forced` also when it refuses the features, as a legacy transport has
   * to.
   */
  constructor(
    device: DeviceCore,
    features: FeatureSet,
    options: { size?: number; fixed?: boolean; forced?: boolean } = {},
  ) {
    const { size = 64, fixed = true, forced = false } = options;
    this.device = device;
    this.memory = new GuestMemory(
      [
        new MemoryRegion(0, new ArrayBuffer(RING_REGION)),
        new MemoryRegion(RAW_DATA, new ArrayBuffer(RAW_DATA_BYTES / 2)),
        new MemoryRegion(RAW_DATA + RAW_DATA_BYTES / 2, new ArrayBuffer(RAW_DATA_BYTES / 2)),
      ],
      { fixed },
    );
    device.attach({
      memory: this.memory,
      notifyQueue: (index) => {
        this.notified.push(index);
        this.onNotify?.(index);
      },
      notifyConfig: () => this.configChanges++,
      notifyNeedsReset: (reason) => {
        this.needsReset = reason;
      },
    });
    if (!device.setFeatures(features) && !forced) throw new Error("the device refuses the features");
    device.driverReady(true);
    for (let i = 0; i < device.queueSizes.length && i < 5; i++) this.#startQueue(i, size);
  }

  /** All bytes of the data regions, in order. */
  bytes(): Uint8Array {
    const all = new Uint8Array(RAW_DATA_BYTES);
    this.memory.read(RAW_DATA, all);
    return all;
  }

  /** Offers a chain without a kick. Returns its head. */
  offer(queue: number, out: readonly RawPiece[], in_: readonly RawPiece[], indirect = false): number {
    const ring = this.rings[queue] as RawSplitRing;
    const pieces = [...out, ...in_];
    const flags = (i: number): number =>
      (i >= out.length ? VIRTQ_DESC_F_WRITE : 0) | (i < pieces.length - 1 ? VIRTQ_DESC_F_NEXT : 0);
    const base = this.#nextDescriptor[queue] as number;
    const { size } = ring.place;
    if (indirect) {
      const table = TABLES + (this.#tables++ % 32) * 0x800;
      for (const [i, piece] of pieces.entries())
        writeSplitDescriptor(ring.view, table + i * 16, { ...piece, flags: flags(i), next: i + 1 });
      ring.writeDescriptor(base, { address: table, length: pieces.length * 16, flags: VIRTQ_DESC_F_INDIRECT });
      this.#nextDescriptor[queue] = (base + 1) % size;
    } else {
      for (const [i, piece] of pieces.entries())
        ring.writeDescriptor((base + i) % size, { ...piece, flags: flags(i), next: (base + i + 1) % size });
      this.#nextDescriptor[queue] = (base + pieces.length) % size;
    }
    ring.offer(base);
    return base;
  }

  kick(queue: number): void {
    this.device.kick(queue);
  }

  /** Used elements of a queue so far. */
  used(queue: number): { id: number; length: number }[] {
    const ring = this.rings[queue] as RawSplitRing;
    return Array.from({ length: ring.usedIdx }, (_, i) => ring.readUsed(i));
  }

  #startQueue(index: number, size: number): void {
    const base = index * RING_BYTES;
    const place = { size, desc: base, driver: base + 0x4000, device: base + 0x6000 };
    const view = (this.memory.regions[0] as MemoryRegion).view;
    this.rings[index] = new RawSplitRing(view, place);
    this.#nextDescriptor[index] = 0;
    const fault = this.device.startQueue(index, place);
    if (fault !== undefined) throw new Error(fault.reason);
  }
}

/** Cuts `length` bytes at `address` into pieces at these offsets. */
export function cut(address: number, length: number, at: readonly number[]): RawPiece[] {
  const borders = [0, ...[...new Set(at)].filter((n) => n > 0 && n < length).sort((a, b) => a - b), length];
  return borders.slice(1).map((end, i) => ({
    address: address + (borders[i] as number),
    length: end - (borders[i] as number),
  }));
}
