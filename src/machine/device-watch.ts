import { BalloonDevice } from "../device/balloon.ts";
import { BlkDevice } from "../device/blk.ts";
import type { DeviceCore } from "../device/core.ts";
import { VirtioBlkObject } from "./devices/virtio-blk.ts";
import { VirtioDeviceObject } from "./devices/virtio-device.ts";
import type { DeviceObject } from "./object-model/device.ts";
import { VirtioPciProxy } from "./pci/virtio-pci.ts";

/** The device proper: what a proxy carries, or the device itself. */
function properOf(device: DeviceObject): DeviceObject {
  return device instanceof VirtioPciProxy ? device.backend : device;
}

/** The device models of the virtio devices among these. */
export function virtioCores(devices: readonly DeviceObject[]): DeviceCore[] {
  return devices.flatMap((device) => {
    const proper = properOf(device);
    return proper instanceof VirtioDeviceObject && proper.core !== undefined ? [proper.core] : [];
  });
}

/** What devices tell of themselves, beyond what they tell the guest. */
export interface DeviceWatcher {
  /** The guest says that a balloon has so many bytes. */
  balloon(bytes: number): void;
  /** A request to a drive failed. */
  blockError(drive: string, operation: "read" | "write"): void;
}

/** Has devices tell `watcher`. */
export function watchDevices(devices: readonly DeviceObject[], watcher: DeviceWatcher): void {
  for (const device of devices) {
    const proper = properOf(device);
    if (!(proper instanceof VirtioDeviceObject)) continue;
    const { core } = proper;
    if (core instanceof BalloonDevice) core.onActual = (bytes) => watcher.balloon(bytes);
    const drive = proper instanceof VirtioBlkObject ? proper.drive : undefined;
    if (core instanceof BlkDevice && drive !== undefined)
      core.onError = (operation) => watcher.blockError(drive.id, operation);
  }
}
