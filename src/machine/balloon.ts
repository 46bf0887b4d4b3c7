import { VirtkitError } from "../common/error.ts";
import { BalloonDevice } from "../device/balloon.ts";
import { VirtioDeviceObject } from "./devices/virtio-device.ts";
import type { DeviceTree } from "./machine-builder.ts";
import { VirtioPciProxy } from "./pci/virtio-pci.ts";

/** The first balloon of a machine. @throws ERR_VIRTKIT_BALLOON when there is none */
export function findBalloon(tree: DeviceTree): BalloonDevice {
  for (const device of tree.devices) {
    const proper = device instanceof VirtioPciProxy ? device.backend : device;
    if (proper instanceof VirtioDeviceObject && proper.core instanceof BalloonDevice) return proper.core;
  }
  throw new VirtkitError("ERR_VIRTKIT_BALLOON", "the machine has no balloon; add -device virtio-balloon-pci");
}
