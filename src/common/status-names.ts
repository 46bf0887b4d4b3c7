import {
  VIRTIO_CONFIG_S_ACKNOWLEDGE,
  VIRTIO_CONFIG_S_DRIVER,
  VIRTIO_CONFIG_S_DRIVER_OK,
  VIRTIO_CONFIG_S_FAILED,
  VIRTIO_CONFIG_S_FEATURES_OK,
  VIRTIO_CONFIG_S_NEEDS_RESET,
  VIRTIO_CONFIG_S_SUSPEND,
} from "../spec/status.ts";

const NAMES: readonly (readonly [bit: number, name: string])[] = [
  [VIRTIO_CONFIG_S_ACKNOWLEDGE, "ACKNOWLEDGE"],
  [VIRTIO_CONFIG_S_DRIVER, "DRIVER"],
  [VIRTIO_CONFIG_S_FEATURES_OK, "FEATURES_OK"],
  [VIRTIO_CONFIG_S_DRIVER_OK, "DRIVER_OK"],
  [VIRTIO_CONFIG_S_SUSPEND, "SUSPEND"],
  [VIRTIO_CONFIG_S_NEEDS_RESET, "DEVICE_NEEDS_RESET"],
  [VIRTIO_CONFIG_S_FAILED, "FAILED"],
];

/** The names of the bits of a device status, in the order in which a driver sets them: "ACKNOWLEDGE DRIVER". */
export function statusNames(status: number): string {
  return NAMES.filter(([bit]) => (status & bit) !== 0)
    .map(([, name]) => name)
    .join(" ");
}
