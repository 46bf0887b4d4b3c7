import { loadUserModule } from "../host/node/user-module.ts";
import { addCustomTypes } from "../machine/custom-devices.ts";
import { deviceHelp, deviceListHelp, objectHelp, objectListHelp } from "../machine/object-model/device-help.ts";
import type { TypeRegistry } from "../machine/object-model/registry.ts";
import { createTypeRegistry } from "../machine/types.ts";
import { blame } from "../machine/usage-error.ts";
import { chardevHelp } from "./options/chardev.ts";
import type { HelpTopic } from "./options/device.ts";
import { ACCEL_HELP, CPU_HELP, MACHINE_HELP } from "./options/machine-keys.ts";

const LISTS = { chardev: chardevHelp(), machine: MACHINE_HELP, accel: ACCEL_HELP, cpu: CPU_HELP } as const;

/** Every type that the topics may be about, users' own devices among them. @throws UsageError when a module is no device */
export async function registryFor(topics: readonly HelpTopic[]): Promise<TypeRegistry> {
  const registry = createTypeRegistry();
  const devices = topics.flatMap(({ of, name }) => (of === "device" && name !== undefined ? [name] : []));
  const options = devices.map((driver) => ({ driver, option: `-device ${driver},help` }));
  await addCustomTypes(options, registry, (file) => loadUserModule(file));
  return registry;
}

/** The answers to `-device help` and its like, from the registry. @throws UsageError for a name that there is not */
export function answer(topics: readonly HelpTopic[], registry: TypeRegistry = createTypeRegistry()): string {
  return topics.map((topic) => answerOne(topic, registry)).join("\n");
}

function answerOne({ of, name }: HelpTopic, registry: TypeRegistry): string {
  if (of !== "object" && of !== "device") return LISTS[of];
  return blame(`-${of} ${name},help`, () => {
    if (of === "object") return name === undefined ? objectListHelp(registry) : objectHelp(registry, name);
    return name === undefined ? deviceListHelp(registry) : deviceHelp(registry, name);
  });
}
