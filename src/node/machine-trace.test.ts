import assert from "node:assert/strict";
import { linkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { cacheOf, type DriveOptions, type MachineDescription } from "../machine/description.ts";
import { createTypeRegistry } from "../machine/types.ts";
import { scratchFolder } from "../testing/guest-files.ts";
import { checkTraces, type TraceRequest } from "./machine-trace.ts";

const limit = { timeout: 10_000 };
const registry = createTypeRegistry();

const drive = (file: string): DriveOptions => ({
  ...{ option: `-drive file=${file}`, id: "virtio0", source: { file }, format: "raw", interface: "virtio" },
  ...{ readOnly: false, locking: true, cache: cacheOf("writeback"), aio: "threads", discard: "ignore" },
});

const description = (drives: DriveOptions[] = []): MachineDescription => ({
  ...{ memory: 2 ** 28, objects: [], chardevs: [], serials: [], drives },
  devices: [
    { option: "-device virtio-rng", driver: "virtio-rng", id: "rng0", properties: [] },
    { option: "-device virtio-serial-pci", driver: "virtio-serial-pci", properties: [] },
    { option: "-device virtconsole", driver: "virtconsole", id: "con", properties: [] },
  ],
});

const to = (file: string, ...devices: string[]): TraceRequest => ({
  option: `--trace ${file}`,
  to: { file },
  ...(devices.length === 0 ? {} : { devices }),
});

const refused = (traces: TraceRequest[], drives: DriveOptions[], message: RegExp): Promise<void> =>
  assert.rejects(checkTraces(traces, description(drives), registry), { code: "ERR_VIRTKIT_USAGE", message });

test("a filter names virtio devices of the machine, by id or type", limit, async () => {
  const drives = [drive("disk.img")];
  const names = ["rng0", "virtio-rng-pci", "virtio-serial-pci", "virtio-blk-pci"];
  await checkTraces([to("a", ...names), to("b", "rng0")], description(drives), registry);
  const valid = "Valid: rng0, virtio-rng-pci, virtio-serial-pci or virtio-blk-pci\\.";
  await refused(
    [to("a", "rng1")],
    drives,
    new RegExp(`^--trace a: there is no device 'rng1'\nDid you mean 'rng0'\\? ${valid}$`),
  );
  await refused([to("a", "rng0", "con")], drives, /there is no device 'con'/);
  await refused([to("a", "virtio-blk-pci")], [], /there is no device 'virtio-blk-pci'/);
});

test("a trace is not written over a disk, nor over another trace", limit, async (t) => {
  const folder = scratchFolder(t);
  const disk = join(folder, "disk.img");
  writeFileSync(disk, "");
  linkSync(disk, join(folder, "other-name"));
  await refused([to(join(folder, "other-name"))], [drive(disk)], /: the file is in use: -drive file=/);
  writeFileSync(join(folder, "a"), "");
  await refused([to(join(folder, "a")), to(join(folder, "a"))], [], /: the file is in use: --trace /);
  await refused([to(join(folder, "new")), to(join(folder, "x", "..", "new"))], [], /: the file is in use: --trace /);
  await checkTraces([to(join(folder, "new")), to("/dev/null"), to("/dev/null")], description([drive(disk)]), registry);
});
