import {
  VIRTIO_BLK_LIFETIME_EST_TYP_A,
  VIRTIO_BLK_LIFETIME_EST_TYP_B,
  VIRTIO_BLK_LIFETIME_PRE_EOL_INFO,
} from "../../spec/blk.ts";

/** struct virtio_blk_lifetime; see VIRTIO 1.4 §5.2.6 for what the numbers mean. */
export interface BlkLifetime {
  readonly preEolInfo: number;
  readonly estimateTypeA: number;
  readonly estimateTypeB: number;
}

export function decodeLifetime(bytes: Uint8Array): BlkLifetime {
  const field = (at: number): number => (bytes[at] as number) + (bytes[at + 1] as number) * 256;
  return {
    preEolInfo: field(VIRTIO_BLK_LIFETIME_PRE_EOL_INFO),
    estimateTypeA: field(VIRTIO_BLK_LIFETIME_EST_TYP_A),
    estimateTypeB: field(VIRTIO_BLK_LIFETIME_EST_TYP_B),
  };
}
