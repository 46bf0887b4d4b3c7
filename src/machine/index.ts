export type { BackendFactory, EntropyOptions } from "./backend-factory.ts";
export type * from "./description.ts";
export { buildMachine, checkDescription, DeviceTree } from "./machine-builder.ts";
export type { MachineHost, PciSlots } from "./machine-host.ts";
export { BusObject, DeviceObject } from "./object-model/device.ts";
export { TypeRegistry } from "./object-model/registry.ts";
export { createTypeRegistry } from "./types.ts";
export { UsageError } from "./usage-error.ts";
export { type MachineBoot, VirtualMachine, type VirtualMachineParts } from "./virtual-machine.ts";
