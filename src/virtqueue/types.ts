import type { ChainBatch } from "./chain-batch.ts";

/** What transports, devices and drivers know of a virtqueue, whatever its format. */

/** Where a queue lies and how large it is: latched when the queue is enabled, never read from the guest again. */
export interface QueueConfig {
  /** Entries: for a split queue a power of two, for a packed one 1..32768. */
  readonly size: number;
  /** Descriptor Area: descriptor table (split) or descriptor ring (packed). Guest-physical. */
  readonly desc: number;
  /** Driver Area: available ring (split) or driver event suppression (packed). */
  readonly driver: number;
  /** Device Area: used ring (split) or device event suppression (packed). */
  readonly device: number;
}

/** The negotiated features that change how a queue works. */
export interface QueueFeatures {
  /** VIRTIO_F_RING_PACKED. */
  readonly packed: boolean;
  /** VIRTIO_F_INDIRECT_DESC. */
  readonly indirect: boolean;
  /** VIRTIO_F_EVENT_IDX. */
  readonly eventIdx: boolean;
  /** VIRTIO_F_IN_ORDER. */
  readonly inOrder: boolean;
  /** VIRTIO_F_NOTIFICATION_DATA: a kick carries the position of the next entry. */
  readonly notificationData: boolean;
  /** VIRTIO_F_VERSION_1 was not negotiated: alignment and framing rules of the legacy interface. */
  readonly legacy: boolean;
  /** VIRTIO_F_NOTIFY_ON_EMPTY (legacy): interrupt when the available ring runs empty, even if suppressed. */
  readonly notifyOnEmpty: boolean;
}

/**
 * How far a device has come in a queue: read out when the queue stops, put back when it starts elsewhere (vhost-user's
 * GET_VRING_BASE, snapshots, migration). For a split queue the positions are the free-running 16-bit indices and the
 * wrap counters are unused (true); for a packed one they are ring positions with their wrap counters.
 */
export interface QueueState {
  readonly availIndex: number;
  readonly availWrap: boolean;
  readonly usedIndex: number;
  readonly usedWrap: boolean;
}

/** The state of a queue that nobody has used yet. */
export const INITIAL_QUEUE_STATE: QueueState = { availIndex: 0, availWrap: true, usedIndex: 0, usedWrap: true };

/** Why a queue is broken for good (until it is reset). `statement` cites the rule that the other side broke. */
export interface QueueFault {
  readonly kind: QueueFaultKind;
  /** One line for a log. */
  readonly reason: string;
}

export type QueueFaultKind =
  /** The ring structures are not in (writable) guest memory or not aligned. */
  | "ring-address"
  /** The peer's index runs further ahead than the ring is long. */
  | "index-jump"
  /** A head or next index is past the table. */
  | "descriptor-index"
  /** A chain with more descriptors than the queue has entries, or a loop. */
  | "chain-length"
  /** A chain of more than 2^32 bytes. */
  | "chain-bytes"
  /** A descriptor's buffer is not (wholly, writably) guest memory. */
  | "buffer-address"
  /** An indirect descriptor that was not negotiated, is nested, has a wrong length, or has flags it must not have. */
  | "indirect"
  /** A device-readable descriptor behind a device-writable one. */
  | "order"
  /** The same head, or buffer id, made available or used twice while in flight; or one that is unknown. */
  | "duplicate"
  /** Flags in no valid combination (packed ring wrap bits included). */
  | "flags"
  /** A used length that is larger than the buffers were. */
  | "used-length";

/** The device's side of one running virtqueue: split or packed. Made by `createDeviceQueue`, dropped by a stop or reset. */
export interface DeviceQueue {
  readonly size: number;
  /** Set once the driver has broken a rule; then every call does nothing and returns 0 or false. */
  readonly fault: QueueFault | undefined;
  /** Chains that were popped and not yet pushed. */
  readonly inFlight: number;
  /**
   * Takes up to `max` available chains, walks and checks each wholly, and appends them to `batch` (which the caller
   * cleared). Returns how many; 0 when nothing is available or the queue is broken. Stops at a malformed chain: those
   * in front of it are still delivered, the fault is set.
   */
  pop(batch: ChainBatch, max: number): number;
  /** Undoes the last `count` pops of this turn (nothing was done with them); they are popped again later. */
  unpop(count: number): void;
  /**
   * Stages a used element: the chain with this head (buffer id) is done and `written` bytes from the start of its
   * device-writable part were written. With IN_ORDER the element is held back until those before it are done.
   * An id that is not in flight is a bug of ours and throws.
   */
  push(id: number, written: number): void;
  /** Publishes what {@link push} staged. True when the driver wants a used buffer notification for it. */
  flush(): boolean;
  /** Asks the driver not to kick (a hint; kicks may still come). */
  disableKicks(): void;
  /** Asks for kicks again, then looks again: true when chains are available already, so the caller must drain once more. */
  enableKicks(): boolean;
  /** True when a chain is available. */
  available(): boolean;
  /** How far the queue has come. Chains in flight count as taken, not as used. */
  state(): QueueState;
}

/** The driver's side of one running virtqueue. The driver's own memory holds rings and buffers; addresses are guest-physical. */
export interface DriverQueue {
  readonly size: number;
  readonly fault: QueueFault | undefined;
  /** Descriptors that are free now. A chain that goes through an indirect table takes one. */
  readonly free: number;
  /** Chains made available and not yet got back. */
  readonly inFlight: number;
  /**
   * Adds one chain: `out` device-readable buffers then `in_` device-writable ones, taken from `sg` from entry `first` on.
   * `token` (0..2^32-1) comes back from {@link get}. Visible to the device only after {@link publish}.
   * Returns false, with nothing changed, when there is no room.
   */
  add(sg: ScatterList, first: number, out: number, in_: number, token: number): boolean;
  /** Makes everything added visible to the device at once. True when the device wants an available buffer notification (kick). */
  publish(): boolean;
  /** The value of the kick: the queue's position for VIRTIO_F_NOTIFICATION_DATA (bits 31:16 of §2.9's layout). */
  kickData(): number;
  /**
   * Takes up to `max` used chains: tokens into `tokens`, bytes written into `lengths` (both caller-owned). Returns how
   * many.
   */
  get(tokens: Uint32Array, lengths: Uint32Array, max: number): number;
  /** Asks the device not to interrupt (a hint). */
  disableCallbacks(): void;
  /** Asks for interrupts again, then looks again: true when used chains wait already. */
  enableCallbacks(): boolean;
  /** Takes back a chain that the device never used (after the queue was reset): its token, or -1 when none is left. */
  detach(): number;
}

/** Scatter list in parallel arrays that the caller owns. */
export interface ScatterList {
  /** Guest-physical address of entry i. */
  readonly address: Float64Array;
  /** Bytes of entry i, 1..2^32-1. */
  readonly length: Uint32Array;
}
