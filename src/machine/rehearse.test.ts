import assert from "node:assert/strict";
import { test } from "node:test";
import { SILENT } from "../common/environment.ts";
import { cacheOf, type DriveOptions, type MachineDescription } from "./description.ts";
import { rehearse } from "./rehearse.ts";
import { createTypeRegistry } from "./types.ts";

const limit = { timeout: 10_000 };
const environment = { defer: setImmediate, after: () => () => undefined, now: () => 0, log: SILENT };
const bare: MachineDescription = { memory: 1, objects: [], chardevs: [], serials: [], drives: [], devices: [] };
const device = (driver: string, ...properties: [string, string][]) => ({
  option: driver,
  driver,
  properties: properties.map(([name, value]) => ({ name, value })),
});

test("what only shows when the parts come together is found without opening anything", limit, async () => {
  const drive: DriveOptions = {
    option: "-drive",
    id: "d0",
    // No such file: opening it would fail.
    source: { file: "/nowhere/disk.img" },
    format: "raw",
    interface: "none",
    readOnly: false,
    locking: true,
    cache: cacheOf("writeback"),
    aio: "threads",
    discard: "ignore",
  };
  const registry = createTypeRegistry();
  const disk = device("virtio-blk-pci", ["drive", "d0"], ["addr", "4"]);
  await rehearse({ ...bare, drives: [drive], devices: [disk] }, registry, environment);
  await assert.rejects(
    rehearse(
      { ...bare, drives: [drive], devices: [disk, device("virtio-rng-pci", ["addr", "4"])] },
      registry,
      environment,
    ),
    /slot 4 function 0 not available/,
  );
  await assert.rejects(rehearse({ ...bare, devices: [disk] }, registry, environment), /can't find value 'd0'/);
});
