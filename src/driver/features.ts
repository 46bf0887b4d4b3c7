import { VirtkitError } from "../common/error.ts";
import { FeatureSet } from "../common/feature-set.ts";
import {
  VIRTIO_F_ANY_LAYOUT,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_NOTIF_CONFIG_DATA,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_RING_RESET,
  VIRTIO_F_SUSPEND,
  VIRTIO_F_VERSION_1,
} from "../spec/features.ts";
import type { QueueFeatures } from "../virtqueue/index.ts";

/** One line of a driver's feature table. */
export interface DriverFeature {
  /** A feature bit of the device type. */
  readonly bit: number;
  /** Bits that must be accepted too; without them this one is not accepted. */
  readonly requires?: readonly number[];
  /** The driver cannot work without it: bring-up fails when it is not offered. */
  readonly mandatory?: boolean;
}

/** The features that the driver core can accept whatever the device type, because `virtqueue/`, the core or a transport implements them. */
export const DRIVER_RING_FEATURES = FeatureSet.of(
  VIRTIO_F_VERSION_1,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_NOTIF_CONFIG_DATA,
  VIRTIO_F_RING_RESET,
  VIRTIO_F_SUSPEND,
);

/** Those that exist without VERSION_1. */
const LEGACY_RING_FEATURES = FeatureSet.of(VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX);
/** Drivers here frame requests as it suits them, so this one is always accepted where it is offered. */
const LEGACY_LAYOUT = FeatureSet.of(VIRTIO_F_ANY_LAYOUT);

/**
 * What the driver accepts of what the device offers (driver: Feature Bits #1 to #7): declared bits only, each only with
 * those it requires, until nothing changes any more.
 * @param legacy the legacy interface: without VERSION_1, and of the ring features only those it knows
 * @throws ERR_VIRTKIT_FEATURES when VERSION_1 or a mandatory feature is missing
 */
export function negotiate(
  table: readonly DriverFeature[],
  ring: FeatureSet,
  offered: FeatureSet,
  legacy = false,
): FeatureSet {
  const rings = legacy
    ? ring.intersect(LEGACY_RING_FEATURES).union(LEGACY_LAYOUT)
    : ring.intersect(DRIVER_RING_FEATURES);
  const wanted = FeatureSet.of(...table.map((feature) => feature.bit)).union(rings);
  let accepted = wanted.intersect(offered);
  for (let before = FeatureSet.EMPTY; !before.equals(accepted); ) {
    before = accepted;
    for (const { bit, requires } of table)
      if (requires?.some((other) => !before.has(other))) accepted = accepted.without(bit);
  }
  if (!legacy && !accepted.has(VIRTIO_F_VERSION_1))
    throw new VirtkitError(
      "ERR_VIRTKIT_FEATURES",
      "the device does not offer VIRTIO_F_VERSION_1; it needs a driver for the legacy interface",
    );
  const missing = table.filter(({ bit, mandatory }) => mandatory === true && !accepted.has(bit));
  if (missing.length > 0)
    throw new VirtkitError(
      "ERR_VIRTKIT_FEATURES",
      `the driver needs feature bit ${missing.map(({ bit }) => bit).join(", ")}, which the device does not offer`,
    );
  return accepted;
}

/** The negotiated features as a virtqueue wants them. */
export function driverQueueFeatures(features: FeatureSet): QueueFeatures {
  return {
    packed: features.has(VIRTIO_F_RING_PACKED),
    indirect: features.has(VIRTIO_F_INDIRECT_DESC),
    eventIdx: features.has(VIRTIO_F_EVENT_IDX),
    inOrder: features.has(VIRTIO_F_IN_ORDER),
    notificationData: features.has(VIRTIO_F_NOTIFICATION_DATA),
    legacy: !features.has(VIRTIO_F_VERSION_1),
    notifyOnEmpty: false,
  };
}
