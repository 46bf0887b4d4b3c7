import { VirtkitError } from "../common/error.ts";
import type { DeviceDefinition } from "../device/custom/define.ts";
import type { DeviceOptions } from "./description.ts";
import { CUSTOM_TYPE, registerCustomDevice } from "./devices/custom-device.ts";
import type { TypeRegistry } from "./object-model/registry.ts";
import { blameAsync } from "./usage-error.ts";

/** Definitions that are registered, to tell two of one name apart. */
const registered = new WeakMap<TypeRegistry, Map<string, DeviceDefinition>>();

/**
 * Makes the types of users' own devices among these, where they are not there yet: `module=FILE`, or a definition that a program gave.
 * @throws UsageError when a module is no device
 */
export async function addCustomTypes(
  devices: readonly Pick<DeviceOptions, "option" | "driver" | "definition">[],
  registry: TypeRegistry,
  load: (file: string) => Promise<unknown>,
): Promise<void> {
  for (const { option, driver, definition } of devices)
    if (driver.startsWith(CUSTOM_TYPE))
      await blameAsync(option, async () => {
        if (definition !== undefined) addDefinition(driver, definition, registry);
        else if (!registry.has(driver)) {
          const file = driver.slice(CUSTOM_TYPE.length);
          registerCustomDevice(registry, driver, await load(file), file);
        }
      });
}

function addDefinition(driver: string, definition: DeviceDefinition, registry: TypeRegistry): void {
  const known = registered.get(registry) ?? new Map<string, DeviceDefinition>();
  registered.set(registry, known);
  if (known.get(driver) === definition) return;
  if (registry.has(driver))
    throw new VirtkitError(
      "ERR_VIRTKIT_MODULE",
      `another device is called ${definition.name}; give this one a name of its own`,
    );
  registerCustomDevice(registry, driver, definition);
  known.set(driver, definition);
}
