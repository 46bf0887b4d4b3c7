/** Virtqueue layout: split (VIRTIO 1.4 §2.7), packed (§2.8). All fields little-endian. */

/** Largest size of a queue (§2.7, §2.8). */
export const VIRTQUEUE_MAX_SIZE = 32768;

// Split descriptor: le64 addr, le32 len, le16 flags, le16 next (§2.7.5).
export const VIRTQ_DESC_SIZE = 16;
export const VIRTQ_DESC_ADDR = 0;
export const VIRTQ_DESC_LEN = 8;
export const VIRTQ_DESC_FLAGS = 12;
export const VIRTQ_DESC_NEXT = 14;

/** The chain continues in the `next` field. */
export const VIRTQ_DESC_F_NEXT = 1;
/** The buffer is device-writable (otherwise device-readable). */
export const VIRTQ_DESC_F_WRITE = 2;
/** The buffer holds a table of descriptors. */
export const VIRTQ_DESC_F_INDIRECT = 4;

// Available ring: le16 flags, le16 idx, le16 ring[size], le16 used_event (§2.7.6).
export const VIRTQ_AVAIL_FLAGS = 0;
export const VIRTQ_AVAIL_IDX = 2;
export const VIRTQ_AVAIL_RING = 4;
export const VIRTQ_AVAIL_F_NO_INTERRUPT = 1;

// Used ring: le16 flags, le16 idx, { le32 id, le32 len } ring[size], le16 avail_event (§2.7.8).
export const VIRTQ_USED_FLAGS = 0;
export const VIRTQ_USED_IDX = 2;
export const VIRTQ_USED_RING = 4;
export const VIRTQ_USED_ELEM_SIZE = 8;
export const VIRTQ_USED_F_NO_NOTIFY = 1;

/** Alignment of the parts of a split queue (§2.7). */
export const VIRTQ_DESC_ALIGN = 16;
export const VIRTQ_AVAIL_ALIGN = 2;
export const VIRTQ_USED_ALIGN = 4;
/** Alignment of the used ring in the legacy layout when nothing else was agreed (§2.7.2). */
export const VIRTQ_LEGACY_ALIGN = 4096;

// Packed descriptor: le64 addr, le32 len, le16 id, le16 flags (§2.8.13).
export const VIRTQ_PACKED_DESC_SIZE = 16;
export const VIRTQ_PACKED_DESC_ADDR = 0;
export const VIRTQ_PACKED_DESC_LEN = 8;
export const VIRTQ_PACKED_DESC_ID = 12;
export const VIRTQ_PACKED_DESC_FLAGS = 14;
export const VIRTQ_PACKED_DESC_F_AVAIL = 1 << 7;
export const VIRTQ_PACKED_DESC_F_USED = 1 << 15;

// Event suppression structure of a packed queue: le16 desc, le16 flags (§2.8.14).
export const VIRTQ_EVENT_SUPPRESS_SIZE = 4;
export const VIRTQ_EVENT_SUPPRESS_DESC = 0;
export const VIRTQ_EVENT_SUPPRESS_FLAGS = 2;
export const VIRTQ_PACKED_DESC_ALIGN = 16;
export const VIRTQ_EVENT_SUPPRESS_ALIGN = 4;
export const RING_EVENT_FLAGS_ENABLE = 0;
export const RING_EVENT_FLAGS_DISABLE = 1;
/** Only with VIRTIO_F_EVENT_IDX. */
export const RING_EVENT_FLAGS_DESC = 2;
/** Bit of the wrap counter in the desc field of an event suppression structure. */
export const RING_EVENT_WRAP_SHIFT = 15;

/** Largest number of bytes a descriptor chain may describe (§2.7.5: "MUST NOT ... longer than 2^32 bytes"). */
export const VIRTQ_CHAIN_MAX_BYTES = 2 ** 32;

/** Bytes of the descriptor table of a split queue of `size` entries. */
export const virtqDescTableBytes = (size: number): number => VIRTQ_DESC_SIZE * size;
/** Bytes of the available ring, used_event included. */
export const virtqAvailBytes = (size: number): number => 6 + 2 * size;
/** Bytes of the used ring, avail_event included. */
export const virtqUsedBytes = (size: number): number => 6 + VIRTQ_USED_ELEM_SIZE * size;
