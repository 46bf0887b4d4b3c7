import type { DeviceOptions } from "../../description.ts";
import { type PropertySetting, parseId } from "../../object-model/values.ts";
import { type Command, command } from "../command.ts";
import { ControlError, deviceNotFound } from "../errors.ts";
import { treeOf } from "../lookup.ts";

function setting(name: string, value: unknown): PropertySetting {
  if (typeof value === "string" || typeof value === "number" || typeof value === "boolean") return { name, value };
  throw new ControlError(`Invalid parameter type for '${name}', expected: string`);
}

/** Plugging in and out while the guest runs. */
export const DEVICE_COMMANDS: readonly Command[] = [
  command({
    name: "device_add",
    help: "Plugs in a device, as `-device` does. A prepared guest finds it at once; another has to rescan its PCI bus.",
    arguments: {
      driver: { type: "str", help: "the type of the device" },
      id: { type: "str", optional: true, help: "its id, by which device_del takes it out again" },
      bus: { type: "str", optional: true, help: "the bus it goes on; the first that fits if left out" },
    },
    open: true,
    run: async ({ driver, id, bus }, { machine }, all) => {
      const properties = Object.entries(all)
        .filter(([name]) => !["driver", "id", "bus"].includes(name))
        .map(([name, value]) => setting(name, value));
      const options: DeviceOptions = {
        option: `device_add ${driver}`,
        driver,
        ...(id === undefined ? {} : { id: parseId(id) }),
        ...(bus === undefined ? {} : { bus }),
        properties,
      };
      await machine.plugIn(options);
    },
  }),
  command({
    name: "device_del",
    help: "Asks the guest to let go of a device; DEVICE_DELETED comes when it is unplugged and its drive is free.",
    arguments: { id: { type: "str", help: "its id, or its path" } },
    run: ({ id }, { machine }) => {
      const tree = treeOf(machine);
      const device = tree.device(id) ?? tree.devices.find((other) => tree.pathOf(other) === id);
      if (device === undefined) throw deviceNotFound(id);
      machine.requestRemoval(device);
    },
  }),
  command({
    name: "query-chardev",
    help: "The character devices, with whether something in the guest is connected to each.",
    run: (_, { machine }) =>
      [...treeOf(machine).backends.chardevs.values()].map(({ id, backend, user }) => ({
        label: id,
        filename: backend.name,
        "frontend-open": user !== undefined,
      })),
  }),
];
