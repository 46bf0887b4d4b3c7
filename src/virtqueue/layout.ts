import { VirtkitError } from "../common/error.ts";
import {
  VIRTQ_AVAIL_ALIGN,
  VIRTQ_DESC_ALIGN,
  VIRTQ_EVENT_SUPPRESS_ALIGN,
  VIRTQ_EVENT_SUPPRESS_SIZE,
  VIRTQ_LEGACY_ALIGN,
  VIRTQ_PACKED_DESC_ALIGN,
  VIRTQ_PACKED_DESC_SIZE,
  VIRTQ_USED_ALIGN,
  virtqAvailBytes,
  virtqDescTableBytes,
  virtqUsedBytes,
} from "../spec/ring.ts";
import { sizeFault } from "./geometry.ts";
import type { QueueConfig } from "./types.ts";

/** A queue's parts in one stretch of memory. */
export interface QueueLayout extends QueueConfig {
  /** Bytes from the first address to the end of the last part. */
  readonly bytes: number;
}

/** What the first address of a queue's memory has to be a multiple of. */
export const QUEUE_ALIGN = Math.max(VIRTQ_DESC_ALIGN, VIRTQ_PACKED_DESC_ALIGN);

const alignUp = (value: number, align: number): number => Math.ceil(value / align) * align;

function checked(layout: QueueLayout, packed: boolean, align: number): QueueLayout {
  const bad = sizeFault(layout.size, packed);
  if (bad !== undefined) throw new VirtkitError("ERR_VIRTKIT_QUEUE_SIZE", bad.reason);
  if (!(layout.desc >= 0) || layout.desc % align !== 0)
    throw new VirtkitError("ERR_VIRTKIT_QUEUE_ADDRESS", `a queue's memory must start at a multiple of ${align}`);
  return layout;
}

/**
 * A split queue's parts one behind the other from `address` (a multiple of 16) on (VIRTIO 1.4 §2.7).
 * @throws ERR_VIRTKIT_QUEUE_SIZE, ERR_VIRTKIT_QUEUE_ADDRESS
 */
export function splitLayout(address: number, size: number): QueueLayout {
  const driver = alignUp(address + virtqDescTableBytes(size), VIRTQ_AVAIL_ALIGN);
  const device = alignUp(driver + virtqAvailBytes(size), VIRTQ_USED_ALIGN);
  const bytes = device + virtqUsedBytes(size) - address;
  return checked({ size, desc: address, driver, device, bytes }, false, QUEUE_ALIGN);
}

/**
 * A packed queue's parts one behind the other from `address` (a multiple of 16) on (VIRTIO 1.4 §2.8.10.1).
 * @throws ERR_VIRTKIT_QUEUE_SIZE, ERR_VIRTKIT_QUEUE_ADDRESS
 */
export function packedLayout(address: number, size: number): QueueLayout {
  const driver = alignUp(address + VIRTQ_PACKED_DESC_SIZE * size, VIRTQ_EVENT_SUPPRESS_ALIGN);
  const device = driver + VIRTQ_EVENT_SUPPRESS_SIZE;
  const bytes = device + VIRTQ_EVENT_SUPPRESS_SIZE - address;
  return checked({ size, desc: address, driver, device, bytes }, true, QUEUE_ALIGN);
}

/**
 * The one layout of the legacy interface: the used ring starts on a boundary of `align` bytes (VIRTIO 1.4 §2.7.2).
 * @param address the queue's first byte: page frame number times page size
 * @param align a power of two; 4096 for PCI, chosen by the driver for MMIO
 * @throws ERR_VIRTKIT_QUEUE_SIZE, ERR_VIRTKIT_QUEUE_ADDRESS
 */
export function legacySplitLayout(address: number, size: number, align = VIRTQ_LEGACY_ALIGN): QueueLayout {
  const driver = address + virtqDescTableBytes(size);
  const device = alignUp(driver + virtqAvailBytes(size), align);
  const bytes = device - address + alignUp(virtqUsedBytes(size), align);
  return checked({ size, desc: address, driver, device, bytes }, false, QUEUE_ALIGN);
}
