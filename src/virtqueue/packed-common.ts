import type { GuestMemory } from "../memory/guest-memory.ts";
import {
  RING_EVENT_FLAGS_DESC,
  RING_EVENT_FLAGS_DISABLE,
  RING_EVENT_WRAP_SHIFT,
  VIRTQ_PACKED_DESC_SIZE,
} from "../spec/ring.ts";

const fence = new Int32Array(1);

/**
 * Orders the plain loads before it with the plain loads behind it on every machine: a sequentially consistent store keeps
 * the first ones in front of it, the load behind it keeps the later ones back. A packed ring has no one index whose
 * load would do that for a whole batch.
 */
export function loadFence(): void {
  Atomics.store(fence, 0, 0);
  Atomics.load(fence, 0);
}

/**
 * Whether an event suppression structure (its 32 bits) asks for a notification now that `moved` slots up to `index` were
 * made available or used (VIRTIO 1.4 §2.8.10). Flags that mean nothing notify: a spurious notification is harmless.
 * @param wrap the wrap counter at `index`
 */
export function eventCrossed(
  word: number,
  eventIdx: boolean,
  index: number,
  wrap: boolean,
  moved: number,
  size: number,
): boolean {
  const flags = (word >>> 16) & 3;
  if (flags === RING_EVENT_FLAGS_DISABLE) return false;
  if (flags !== RING_EVENT_FLAGS_DESC || !eventIdx) return true;
  let event = word & 0x7fff;
  if (((word >>> RING_EVENT_WRAP_SHIFT) & 1) !== (wrap ? 1 : 0)) event -= size;
  return ((index - event - 1) & 0xffff) < moved;
}

/** Marks `count` descriptors of the ring at `address` written, from slot `from` on and round its end. */
export function markSlots(memory: GuestMemory, address: number, from: number, count: number, size: number): void {
  const head = Math.min(count, size - from);
  memory.markWritten(address + from * VIRTQ_PACKED_DESC_SIZE, head * VIRTQ_PACKED_DESC_SIZE);
  if (head < count) memory.markWritten(address, (count - head) * VIRTQ_PACKED_DESC_SIZE);
}
