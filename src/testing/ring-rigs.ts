import { GuestMemory } from "../memory/guest-memory.ts";
import { MemoryRegion } from "../memory/memory-region.ts";
import { VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE } from "../spec/ring.ts";
import {
  ChainBatch,
  createDeviceQueue,
  type DeviceQueue,
  packedLayout,
  type QueueFeatures,
  splitLayout,
} from "../virtqueue/index.ts";
import {
  type RawDescriptor,
  RawPackedRing,
  RawSplitRing,
  writePackedDescriptor,
  writeSplitDescriptor,
} from "./raw-ring.ts";
import { NO_FEATURES } from "./ring-contract.ts";

/** A queue of ours on a small memory, with a raw ring on the other side of it. */

const NEXT = VIRTQ_DESC_F_NEXT;
const WRITE = VIRTQ_DESC_F_WRITE;
const INDIRECT = VIRTQ_DESC_F_INDIRECT;
export const SIZE = 8;
export const END = 0x10000;
/** First address of the read-only region. */
export const ROM = 0x10000;
export const TABLE = 0x4000;
export const BUFFER = 0x8000;

/** Ordinary memory up to END, then a read-only region without a gap, then nothing. */
export function memoryWithRom(): { memory: GuestMemory; view: DataView } {
  const ram = new ArrayBuffer(END);
  const memory = new GuestMemory([
    new MemoryRegion(0, ram),
    new MemoryRegion(ROM, new ArrayBuffer(0x1000), { readOnly: true }),
  ]);
  return { memory, view: new DataView(ram) };
}

export interface DeviceRig {
  readonly queue: DeviceQueue;
  readonly view: DataView;
  readonly batch: ChainBatch;
}

export interface SplitRig extends DeviceRig {
  readonly ring: RawSplitRing;
}

export interface PackedRig extends DeviceRig {
  readonly ring: RawPackedRing;
}

export const readable = (length = 16, address: number | bigint = BUFFER): RawDescriptor => ({
  address,
  length,
  flags: 0,
});
export const writable = (length = 16, address: number | bigint = BUFFER): RawDescriptor => ({
  address,
  length,
  flags: WRITE,
});

export function splitRig(features: Partial<QueueFeatures> = { indirect: true }): SplitRig {
  const { memory, view } = memoryWithRom();
  const place = splitLayout(0, SIZE);
  const queue = createDeviceQueue(memory, place, { ...NO_FEATURES, ...features });
  return { queue, view, batch: new ChainBatch(SIZE), ring: new RawSplitRing(view, place) };
}

export function packedRig(features: Partial<QueueFeatures> = { indirect: true }): PackedRig {
  const { memory, view } = memoryWithRom();
  const place = packedLayout(0, SIZE);
  const queue = createDeviceQueue(memory, place, { ...NO_FEATURES, packed: true, ...features });
  return { queue, view, batch: new ChainBatch(SIZE), ring: new RawPackedRing(view, place) };
}

/** Descriptors from `at` on, linked, and the head offered. */
export function offerSplit({ ring }: SplitRig, chain: RawDescriptor[], at = 0): void {
  chain.forEach((d, i) => {
    const more = i + 1 < chain.length;
    ring.writeDescriptor(at + i, more ? { ...d, flags: d.flags | NEXT, next: at + i + 1 } : d);
  });
  ring.offer(at);
}

/** The same in a packed ring, in the first lap. */
export function offerPacked({ ring }: PackedRig, chain: RawDescriptor[], at = 0, id = at): void {
  chain.forEach((d, i) => {
    const more = i + 1 < chain.length ? NEXT : 0;
    ring.writeDescriptor(at + i, { id, ...d, flags: d.flags | more | RawPackedRing.available(true) });
  });
}

export function splitTable({ view }: DeviceRig, entries: RawDescriptor[], address = TABLE): RawDescriptor {
  entries.forEach((d, i) => {
    const more = i + 1 < entries.length && d.next === undefined;
    writeSplitDescriptor(view, address + i * 16, more ? { ...d, flags: d.flags | NEXT, next: i + 1 } : d);
  });
  return { address, length: entries.length * 16, flags: INDIRECT };
}

export function packedTable({ view }: DeviceRig, entries: RawDescriptor[], address = TABLE): RawDescriptor {
  entries.forEach((d, i) => {
    writePackedDescriptor(view, address + i * 16, d);
  });
  return { address, length: entries.length * 16, flags: INDIRECT };
}
