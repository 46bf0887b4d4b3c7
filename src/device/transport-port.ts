import type { GuestMemory } from "../memory/guest-memory.ts";

/**
 * What a transport (loopback, PCI, MMIO, vhost-user) gives the device that it carries. The device calls these from its own thread, from
 * inside a kick or in a turn of its own.
 */
export interface TransportPort {
  readonly memory: GuestMemory;
  /** Sends a used buffer notification for a queue. */
  notifyQueue(index: number): void;
  /** The configuration changed: the transport sends a configuration change notification once the driver is running. */
  notifyConfig(): void;
  /** The device is broken: DEVICE_NEEDS_RESET (VIRTIO 1.4 §2.1.2), or what the transport has in its place. */
  notifyNeedsReset(reason: string): void;
}
