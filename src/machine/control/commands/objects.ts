import type { ObjectClass } from "../../object-model/class.ts";
import type { TypeRegistry } from "../../object-model/registry.ts";
import { type Command, command } from "../command.ts";
import { ControlError, deviceNotFound } from "../errors.ts";

function typeInfo(klass: ObjectClass): object {
  return {
    name: klass.name,
    ...(klass.parent === undefined ? {} : { parent: klass.parent.name }),
    ...(klass.abstract ? { abstract: true } : {}),
  };
}

function deviceClass(registry: TypeRegistry, name: string): ObjectClass {
  if (!registry.has(name)) throw deviceNotFound(name);
  const klass = registry.classOf(name);
  if (!klass.isA("device")) throw new ControlError("Parameter 'typename' expects device");
  if (klass.abstract) throw new ControlError("Parameter 'typename' expects a non-abstract device type");
  return klass;
}

const isScalar = (value: unknown): boolean => ["string", "number", "boolean"].includes(typeof value);

/** Types and their properties. */
export const OBJECT_COMMANDS: readonly Command[] = [
  command({
    name: "qom-list-types",
    help: "The types of devices and objects.",
    waits: false,
    arguments: {
      implements: { type: "str", optional: true, help: "only this type and those that descend from it" },
      abstract: { type: "bool", optional: true, help: "abstract ones as well" },
    },
    run: ({ implements: of = "object", abstract = false }, { machine }) =>
      machine.registry.has(of) ? machine.registry.classes(of, abstract).map(typeInfo) : [],
  }),
  command({
    name: "device-list-properties",
    help: "The properties of a type of device.",
    waits: false,
    arguments: { typename: { type: "str", help: "such as virtio-blk-pci" } },
    run: ({ typename }, { machine }) =>
      deviceClass(machine.registry, typename).properties.map(({ name, type, description, defaultValue }) => ({
        name,
        type: type.name,
        ...((description ?? type.description) === undefined ? {} : { description: description ?? type.description }),
        ...(isScalar(defaultValue) ? { "default-value": defaultValue } : {}),
      })),
  }),
];
