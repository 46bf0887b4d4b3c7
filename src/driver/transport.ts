import type { FeatureSet } from "../common/feature-set.ts";
import type { GuestMemory } from "../memory/guest-memory.ts";
import type { QueueConfig } from "../virtqueue/index.ts";

/** A shared memory region as a driver finds it (VIRTIO 1.4 §2.10). */
export interface FoundSharedMemory {
  readonly id: number;
  /** In the driver's physical address space. */
  readonly address: number;
  /** Bytes. */
  readonly length: number;
}

/**
 * A device as its driver sees it, whatever carries it: what Linux calls `virtio_config_ops`. A transport's driver side
 * (loopback, PCI, MMIO, vhost-user) implements it; `VirtioDriver` alone calls it, in the order of VIRTIO 1.4 §3.1.1.
 */
export interface DriverTransport {
  /** For messages, e.g. "pci 00:04.0". */
  readonly name: string;
  /** Device type, VIRTIO_ID_*. */
  readonly deviceId: number;
  /** Memory that driver and device share; addresses handed to the device are addresses in it. */
  readonly memory: GuestMemory;
  /** The legacy interface: no VERSION_1 and no FEATURES_OK, one layout for queues, no configuration generation. */
  readonly legacy?: boolean;
  /** It carries out VIRTIO_F_NOTIF_CONFIG_DATA (modern virtio-pci); without this a driver does not accept the bit. */
  readonly notifyConfigData?: boolean;
  /** Queues have the device's size and no other (legacy virtio-pci). */
  readonly fixedQueueSize?: boolean;
  getStatus(): number;
  setStatus(status: number): void;
  /** Writes status 0 and waits until the device reads back 0 (device: Device Reset #1). */
  reset(): Promise<void>;
  deviceFeatures(): FeatureSet;
  setDriverFeatures(features: FeatureSet): void;
  /** Little-endian read of 1, 2 or 4 bytes of the device-specific configuration. */
  readConfig(offset: number, size: 1 | 2 | 4): number;
  writeConfig(offset: number, size: 1 | 2 | 4, value: number): void;
  configGeneration(): number;
  /** Largest size of queue `index`; 0 when there is no such queue. */
  queueMaxSize(index: number): number;
  /** Programs and enables a queue; `interrupt` is called for each of its used buffer notifications. */
  enableQueue(index: number, config: QueueConfig, interrupt: () => void): void;
  /** Resets one queue (VIRTIO_F_RING_RESET); resolves when the device has let go of it. */
  resetQueue(index: number): Promise<void>;
  /** Available buffer notification. `data` is the 16 high bits for VIRTIO_F_NOTIFICATION_DATA, else ignored. */
  notify(index: number, data: number): void;
  /** One listener for configuration change notifications. */
  onConfigChange(listener: () => void): void;
  /** Where a shared memory region of the device is; undefined when there is none with this id. */
  sharedMemory?(id: number): FoundSharedMemory | undefined;
  /** Lets go of interrupts and mappings. The device was reset before. */
  close(): void;
}
