import {
  VIRTIO_BALLOON_S_AVAIL,
  VIRTIO_BALLOON_S_CACHES,
  VIRTIO_BALLOON_S_HTLB_PGALLOC,
  VIRTIO_BALLOON_S_HTLB_PGFAIL,
  VIRTIO_BALLOON_S_MAJFLT,
  VIRTIO_BALLOON_S_MEMFREE,
  VIRTIO_BALLOON_S_MEMTOT,
  VIRTIO_BALLOON_S_MINFLT,
  VIRTIO_BALLOON_S_SWAP_IN,
  VIRTIO_BALLOON_S_SWAP_OUT,
  VIRTIO_BALLOON_STAT_SIZE,
} from "../../spec/balloon.ts";
import type { ChainReader } from "../../virtqueue/index.ts";

/** Names that QEMU gives the statistics in its "guest-stats", by tag. Bytes, or counts of events. */
const NAMES = new Map([
  [VIRTIO_BALLOON_S_SWAP_IN, "stat-swap-in"],
  [VIRTIO_BALLOON_S_SWAP_OUT, "stat-swap-out"],
  [VIRTIO_BALLOON_S_MAJFLT, "stat-major-faults"],
  [VIRTIO_BALLOON_S_MINFLT, "stat-minor-faults"],
  [VIRTIO_BALLOON_S_MEMFREE, "stat-free-memory"],
  [VIRTIO_BALLOON_S_MEMTOT, "stat-total-memory"],
  [VIRTIO_BALLOON_S_AVAIL, "stat-available-memory"],
  [VIRTIO_BALLOON_S_CACHES, "stat-disk-caches"],
  [VIRTIO_BALLOON_S_HTLB_PGALLOC, "stat-htlb-pgalloc"],
  [VIRTIO_BALLOON_S_HTLB_PGFAIL, "stat-htlb-pgfail"],
] as const);

export type BalloonStatName = typeof NAMES extends Map<number, infer Name> ? Name : never;
/** What the guest said of itself; it chooses what it tells. */
export type BalloonStats = Readonly<Partial<Record<BalloonStatName, number>>>;

/** Entries that are looked at in a buffer. */
const MAX_ENTRIES = 64;

/** Any order, unknown tags left out (device: Memory Balloon Device / Device Operation / Memory Statistics #1, #2). */
export function readStats(reader: ChainReader): BalloonStats {
  const stats: Partial<Record<BalloonStatName, number>> = {};
  for (let i = 0; i < MAX_ENTRIES && reader.remaining >= VIRTIO_BALLOON_STAT_SIZE; i++) {
    const name = NAMES.get(reader.u16() as 0);
    const value = reader.u64();
    if (name !== undefined) stats[name] = value;
  }
  return stats;
}
