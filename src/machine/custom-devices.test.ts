import assert from "node:assert/strict";
import { test } from "node:test";
import type { DeviceDefinition } from "../device/custom/define.ts";
import { notedParts } from "../testing/machine-parts.ts";
import { addCustomTypes } from "./custom-devices.ts";
import { deviceOptions } from "./device-settings.ts";
import { buildMachine } from "./machine-builder.ts";
import { createTypeRegistry } from "./types.ts";

const limit = { timeout: 10_000 };
const DESCRIPTION = { memory: 1 << 20, objects: [], chardevs: [], serials: [], drives: [], devices: [] };

const definition = (seen: string[]): DeviceDefinition => ({
  name: "own",
  deviceId: 4,
  queueSizes: [8],
  properties: { letter: { type: "string", default: "x" } },
  create({ name, properties }) {
    seen.push(`create ${name} ${properties["letter"]}`);
    return { onRequest: () => undefined, close: () => void seen.push(`close ${name}`) };
  },
});

test(
  "own devices by module are loaded once, plugged into a machine that runs, and closed when they leave",
  limit,
  async () => {
    const seen: string[] = [];
    const registry = createTypeRegistry();
    const machine = await buildMachine(DESCRIPTION, { ...notedParts(), registry });
    const load = async (file: string): Promise<unknown> => {
      seen.push(`load ${file}`);
      return definition(seen);
    };
    for (const settings of [
      { driver: "module=./own.mjs", id: "a", letter: "a" },
      { module: "./own.mjs", id: "b", properties: { letter: "b", packed: true } },
    ]) {
      const options = deviceOptions(settings, "addDevice");
      await addCustomTypes([options], registry, load);
      machine.addDevice(options);
    }
    await machine.close();
    assert.deepEqual(seen, ["load ./own.mjs", "create a a", "create b b", "close b", "close a"]);
  },
);

test("own devices by definition: two of one name are told apart, the same one serves many", limit, async () => {
  const registry = createTypeRegistry();
  const mine = definition([]);
  const options = [mine, mine].map((module, i) => deviceOptions({ module }, `devices[${i}]`));
  const load = () => assert.fail("nothing to load");
  await addCustomTypes(options, registry, load);
  await assert.rejects(addCustomTypes([deviceOptions({ module: definition([]) }, "devices[2]")], registry, load), {
    code: "ERR_VIRTKIT_USAGE",
    message: /^devices\[2\] \(module=own\): another device is called own; give/,
  });
});
