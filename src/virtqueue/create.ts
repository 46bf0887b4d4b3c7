import type { GuestMemory } from "../memory/guest-memory.ts";
import type { IndirectTables } from "./driver-common.ts";
import { PackedDeviceQueue } from "./packed-device.ts";
import { PackedDriverQueue } from "./packed-driver.ts";
import { SplitDeviceQueue } from "./split-device.ts";
import { SplitDriverQueue } from "./split-driver.ts";
import type { DeviceQueue, DriverQueue, QueueConfig, QueueFeatures, QueueState } from "./types.ts";

/**
 * The device's side of a queue as the driver configured it. Where the configuration is wrong (a size the format cannot
 * have, rings that are not in guest memory or not aligned) the queue is returned with its `fault` set.
 *
 * Kicks are on. A queue that is started with a `state` should be drained once, for chains may wait already.
 */
export function createDeviceQueue(
  memory: GuestMemory,
  config: QueueConfig,
  features: QueueFeatures,
  state?: QueueState,
): DeviceQueue {
  return features.packed
    ? new PackedDeviceQueue(memory, config, features, state)
    : new SplitDeviceQueue(memory, config, features, state);
}

/**
 * The driver's side of a queue whose memory is the caller's; the rings are zeroed first. With INDIRECT_DESC and
 * `indirect`, chains of two buffers and more go through a table there and take one descriptor of the ring.
 * Bad geometry sets `fault` at once.
 * @throws ERR_VIRTKIT_INDIRECT when `indirect` is not guest memory
 */
export function createDriverQueue(
  memory: GuestMemory,
  config: QueueConfig,
  features: QueueFeatures,
  indirect?: IndirectTables,
): DriverQueue {
  return features.packed
    ? new PackedDriverQueue(memory, config, features, indirect)
    : new SplitDriverQueue(memory, config, features, indirect);
}
