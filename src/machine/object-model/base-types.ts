import { BusObject, DeviceObject } from "./device.ts";
import type { TypeRegistry } from "./registry.ts";

/** The roots of all types. */
export function registerBaseTypes(registry: TypeRegistry): void {
  registry.register({ name: "object", abstract: true });
  registry.register({ name: "device", parent: "object", abstract: true, instanceClass: DeviceObject });
  registry.register({ name: "bus", parent: "object", abstract: true, instanceClass: BusObject });
}
