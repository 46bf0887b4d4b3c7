import {
  VIRTIO_BLK_F_BLK_SIZE,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_GEOMETRY,
  VIRTIO_BLK_F_LIFETIME,
  VIRTIO_BLK_F_MQ,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_F_SECURE_ERASE,
  VIRTIO_BLK_F_SEG_MAX,
  VIRTIO_BLK_F_SIZE_MAX,
  VIRTIO_BLK_F_TOPOLOGY,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_F_ZONED,
} from "../../spec/blk.ts";
import { VIRTIO_F_VERSION_1 } from "../../spec/features.ts";
import type { DriverFeature } from "../features.ts";

/** What the driver accepts where it is offered. */
export const BLK_FEATURES: readonly DriverFeature[] = [
  { bit: VIRTIO_BLK_F_SIZE_MAX },
  { bit: VIRTIO_BLK_F_SEG_MAX },
  { bit: VIRTIO_BLK_F_GEOMETRY },
  { bit: VIRTIO_BLK_F_RO },
  { bit: VIRTIO_BLK_F_BLK_SIZE },
  { bit: VIRTIO_BLK_F_FLUSH },
  { bit: VIRTIO_BLK_F_TOPOLOGY },
  { bit: VIRTIO_BLK_F_CONFIG_WCE, requires: [VIRTIO_BLK_F_FLUSH] },
  { bit: VIRTIO_BLK_F_MQ },
  { bit: VIRTIO_BLK_F_DISCARD },
  { bit: VIRTIO_BLK_F_WRITE_ZEROES },
  { bit: VIRTIO_BLK_F_LIFETIME },
  { bit: VIRTIO_BLK_F_SECURE_ERASE },
  { bit: VIRTIO_BLK_F_ZONED, requires: [VIRTIO_F_VERSION_1] },
];
