import assert from "node:assert/strict";
import { test } from "node:test";
import { notedParts } from "../testing/machine-parts.ts";
import { cacheOf, type DriveOptions } from "./description.ts";
import { buildMachine } from "./machine-builder.ts";
import { createTypeRegistry } from "./types.ts";

const limit = { timeout: 10_000 };
const MIB = 1 << 20;

const drive = (id: string, readOnly: boolean): DriveOptions => ({
  option: `-drive ${id}`,
  id,
  source: { file: `${id}.img` },
  format: "raw",
  interface: "virtio",
  readOnly,
  cache: cacheOf("writeback"),
  aio: "threads",
  locking: true,
  discard: "ignore",
});

test("a drive grows, shrinks only by force, and what cannot be resized says why", limit, async () => {
  const description = {
    memory: MIB,
    objects: [],
    chardevs: [],
    serials: [],
    devices: [],
    drives: [drive("disk", false), drive("cd", true)],
  };
  const { backends } = await buildMachine(description, { ...notedParts(), registry: createTypeRegistry() });
  const capacity = () => backends.drives.get("disk")?.backend.capacity;
  await backends.resizeDrive("disk", 2 * MIB);
  assert.equal(capacity(), 2 * MIB);
  const wrong: [string, number, RegExp][] = [
    ["disk", MIB, /it has 2097152, .* say force: true/],
    ["disk", MIB + 1, /give a multiple of 512/],
    ["disk", 0, /give a multiple/],
    ["disk", Number.NaN, /give a multiple/],
    ["cd", 2 * MIB, /its size is fixed/],
    ["dsk", 2 * MIB, /no such drive; there are: .*disk/],
  ];
  for (const [id, bytes, message] of wrong)
    await assert.rejects(backends.resizeDrive(id, bytes), { code: "ERR_VIRTKIT_DRIVE_RESIZE", message });
  assert.equal(capacity(), 2 * MIB);
  await backends.resizeDrive("disk", MIB, { force: true });
  assert.equal(capacity(), MIB);
});
