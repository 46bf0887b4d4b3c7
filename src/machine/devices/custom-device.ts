import { VirtkitError } from "../../common/error.ts";
import { checkDefinition } from "../../device/custom/check.ts";
import type { DeviceDefinition, PropertyDefinition } from "../../device/custom/define.ts";
import { CustomDevice, defaultsOf } from "../../device/custom.ts";
import { BOOL, type Property, type PropertyType, property, SIZE, STR } from "../object-model/property.ts";
import type { TypeRegistry } from "../object-model/registry.ts";
import { parseInteger } from "../object-model/values.ts";
import { registerVirtioPciType } from "../pci/virtio-pci.ts";
import type { VirtioDeviceObject } from "./virtio-device.ts";

const NUMBER: PropertyType<number> = {
  name: "number",
  parse: (input, owner) => parseInteger(input, Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER, owner),
  show: String,
};
const TEXT: PropertyType<string | undefined> = { ...STR, show: (text) => (text === "" ? undefined : text) };
/** Names that an option of its own takes, or a property of the proxy. */
const RESERVED = ["id", "bus", "driver", "module", "help", "disable-legacy", "disable-modern"];

/** How the types of users' devices begin: `module=FILE`. */
export const CUSTOM_TYPE = "module=";

/**
 * Registers a device that a user wrote, as a PCI device of type `name`.
 * @param value what should be a {@link DeviceDefinition}
 * @param file of its module, where it has one
 * @throws ERR_VIRTKIT_MODULE when it is none
 */
export function registerCustomDevice(registry: TypeRegistry, name: string, value: unknown, file?: string): void {
  const definition = checkDefinition(value, file ?? name);
  checkNames(registry, definition);
  const keys = Object.entries(definition.properties ?? {}).map(([key, it]) => propertyOf(key, it, definition));
  const device = `${name}-device`;
  registry.register<VirtioDeviceObject>({
    name: device,
    parent: "virtio-device",
    classInit(klass) {
      klass.addProperties(...keys);
    },
    realize(object, host) {
      object.core = new CustomDevice({
        definition:
          host.rehearsal === true ? { ...definition, create: () => ({ onRequest: () => undefined }) } : definition,
        environment: host.environment,
        name: object.coreName,
        ringFeatures: object.ringFeatures,
        properties: Object.fromEntries(keys.map((key) => [key.name, object.get(key) as string | number | boolean])),
        ...(file === undefined ? {} : { file }),
      });
    },
    unrealize(object) {
      if (object.core instanceof CustomDevice) object.core.dispose();
    },
  });
  const { description } = definition;
  registerVirtioPciType(registry, {
    name,
    device,
    category: "Misc",
    ...(description === undefined ? {} : { description }),
  });
}

function checkNames(registry: TypeRegistry, { name, properties = {} }: DeviceDefinition): void {
  for (const key of Object.keys(properties)) {
    const taken = ["virtio-device", "virtio-pci"].some((type) => registry.classOf(type).find(key) !== undefined);
    if (taken || RESERVED.includes(key))
      throw new VirtkitError(
        "ERR_VIRTKIT_MODULE",
        `${name} is no device: properties.${key} is a property that every device has; give it another name`,
      );
  }
}

function propertyOf(name: string, { type, description }: PropertyDefinition, definition: DeviceDefinition): Property {
  const types = { string: TEXT, number: NUMBER, size: SIZE, boolean: BOOL };
  const initial = defaultsOf(definition.properties ?? {})[name];
  return property<unknown>(name, types[type], initial, description === undefined ? {} : { description });
}
