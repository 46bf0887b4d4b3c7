import { BlkDevice, type BlkStats } from "../../device/blk.ts";
import type { DeviceCore } from "../../device/core.ts";
import type { StatusMachine } from "../../device/status-machine.ts";
import { VirtioPciDevice } from "../../transport/pci/virtio-pci-device.ts";
import { VirtioBlkObject } from "../devices/virtio-blk.ts";
import type { DeviceTree } from "../machine-builder.ts";
import { VirtioPciProxy } from "../pci/virtio-pci.ts";
import type { ControlledMachine } from "./controlled-machine.ts";
import { ControlError } from "./errors.ts";

/** A machine's devices. @throws ControlError while it has none */
export function treeOf(machine: ControlledMachine): DeviceTree {
  if (machine.devices === undefined) throw new ControlError("The machine is not up yet");
  return machine.devices;
}

/** A virtio device and what carries it. */
export interface VirtioPlace {
  /** "virtio-blk". */
  readonly typeName: string;
  /** Of the device proper, and of the PCI device around it. */
  readonly path: string;
  readonly facePath: string;
  readonly core: DeviceCore;
  readonly registers: StatusMachine;
}

/** The virtio devices in the order of their creation. */
export function virtioDevices(tree: DeviceTree): VirtioPlace[] {
  return tree.devices.flatMap((device) => {
    if (!(device instanceof VirtioPciProxy)) return [];
    const { core, typeName } = device.backend;
    const virtio = device.pciFunction;
    if (core === undefined || !(virtio instanceof VirtioPciDevice)) return [];
    const facePath = tree.pathOf(device);
    const name = typeName.replace(/-device$/, "");
    return [{ typeName: name, path: `${facePath}/virtio-backend`, facePath, core, registers: virtio.registers }];
  });
}

/** The device that has a drive. */
export function driveOwner(
  tree: DeviceTree,
  drive: string,
): { readonly path: string; readonly stats: BlkStats | undefined } | undefined {
  for (const device of tree.devices) {
    if (!(device instanceof VirtioPciProxy)) continue;
    const { backend } = device;
    if (!(backend instanceof VirtioBlkObject) || backend.drive?.id !== drive) continue;
    const stats = backend.core instanceof BlkDevice ? backend.core.stats : undefined;
    return { path: `${tree.pathOf(device)}/virtio-backend`, stats };
  }
  return undefined;
}
