import assert from "node:assert/strict";
import { test } from "node:test";
import { MemoryBlockBackend } from "../../backend/block/memory.ts";
import { BalloonDevice } from "../../device/balloon.ts";
import { BlkDevice } from "../../device/blk.ts";
import { connected, FakeMachine, MEMORY } from "../../testing/control-machine.ts";
import { virtioCores } from "../device-watch.ts";
import { treeOf } from "./lookup.ts";

const limit = { timeout: 20_000 };
const MIB = 2 ** 20;
const BLK = "/machine/peripheral/disk0/virtio-backend";

test("query-block and query-blockstats", limit, async () => {
  const client = await connected();
  const { return: drives } = (await client.execute("query-block")) as { return: Record<string, unknown>[] };
  assert.deepEqual(
    drives.map(({ device, qdev }) => [device, qdev]),
    [
      ["d0", BLK],
      ["d1", undefined],
    ],
  );
  const inserted = drives[0]?.["inserted"] as Record<string, unknown>;
  assert.equal(inserted["file"], "d0.img");
  assert.equal(inserted["ro"], false);
  assert.deepEqual(inserted["image"], { filename: "d0.img", format: "raw", "virtual-size": MIB });
  assert.deepEqual(inserted["cache"], { writeback: true, direct: false, "no-flush": false });
  const stats = (await client.execute("query-blockstats")) as { return: { stats: { rd_bytes: number } }[] };
  assert.deepEqual(
    stats.return.map((one) => one.stats.rd_bytes),
    [0, 0],
  );
});

test("block_resize: larger, at once; smaller and nonsense not", limit, async () => {
  const client = await connected();
  const resize = async (given: object): Promise<string | undefined> =>
    (await client.execute("block_resize", given)).error?.desc;
  const capacity = (): number | undefined => treeOf(client.machine).backends.drives.get("d0")?.backend.capacity;
  assert.equal(await resize({ device: "d0", size: 2 * MIB }), undefined);
  assert.equal(capacity(), 2 * MIB);
  assert.equal(await resize({ "node-name": "d0", size: 3 * MIB }), undefined);
  assert.equal(await resize({ device: "d0", size: 3 * MIB }), undefined, "the same size is none to complain about");
  assert.match((await resize({ device: "d0", size: MIB })) ?? "", /Cannot shrink 'd0' from 3145728 to 1048576 bytes/);
  assert.match((await resize({ device: "d0", size: 4 * MIB + 100 })) ?? "", /give a multiple of 512/);
  assert.equal(await resize({ device: "d0", size: -5 }), "Parameter 'size' expects a >0 size");
  assert.equal(await resize({ device: "d9", size: MIB }), "Cannot find device='d9' nor node-name=''");
  assert.equal(await resize({ size: MIB }), "Either 'device' or 'node-name' is needed");
  assert.match((await resize({ device: "d0", "node-name": "d0", size: MIB })) ?? "", /cannot be given together/);
  assert.equal(capacity(), 3 * MIB);
});

test("balloon and query-balloon; without one the error has its class", limit, async () => {
  const client = await connected();
  assert.deepEqual(await client.execute("query-balloon"), { return: { actual: MEMORY } });
  assert.deepEqual(await client.execute("balloon", { value: MEMORY - 64 * MIB }), { return: {} });
  const balloon = virtioCores(treeOf(client.machine).devices).find((core) => core instanceof BalloonDevice);
  assert.equal(balloon?.target, 64 * MIB);
  balloon.config.write(4, 4, 4096);
  assert.deepEqual(client.events.at(-1)?.event, "BALLOON_CHANGE");
  assert.deepEqual(client.events.at(-1)?.data, { actual: MEMORY - 16 * MIB });
  assert.deepEqual(await client.execute("query-balloon"), { return: { actual: MEMORY - 16 * MIB } });
  for (const value of [0, -1])
    assert.equal((await client.execute("balloon", { value })).error?.desc, "Parameter 'target' expects a size");
  const without = await connected(await new FakeMachine(false).build());
  const none = { class: "DeviceNotActive", desc: "No balloon device has been activated" };
  assert.deepEqual((await without.execute("query-balloon")).error, none);
  assert.deepEqual((await without.execute("balloon", { value: MEMORY })).error, none);
});

test("device_add and device_del, by id and by path; the drive is free again", limit, async () => {
  const client = await connected();
  const add = { driver: "virtio-blk-pci", drive: "d1", id: "hot" };
  for (let round = 0; round < 3; round++) {
    assert.deepEqual(await client.execute("device_add", { ...add, packed: true, "queue-size": 64 }), { return: {} });
    assert.match((await client.execute("device_add", add)).error?.desc ?? "", /Duplicate ID 'hot'/);
    assert.match((await client.execute("device_add", { ...add, id: "b" })).error?.desc ?? "", /'d1' is already in use/);
    const id = round % 2 === 0 ? "hot" : "/machine/peripheral/hot";
    assert.deepEqual(await client.execute("device_del", { id }), { return: {} });
    assert.deepEqual(client.events.at(-1), {
      timestamp: { seconds: 1267020223, microseconds: 435656 },
      event: "DEVICE_DELETED",
      data: { device: "hot", path: "/machine/peripheral/hot" },
    });
  }
  assert.deepEqual((await client.execute("device_del", { id: "hot" })).error, {
    class: "DeviceNotFound",
    desc: "Device 'hot' not found",
  });
  await client.execute("device_add", { driver: "virtio-rng-pci" });
  assert.deepEqual(await client.execute("device_del", { id: "/machine/peripheral-anon/device[1]" }), { return: {} });
  assert.deepEqual(client.events.at(-1)?.data, { path: "/machine/peripheral-anon/device[1]" });
});

test("device_add: what is wrong is said, and nothing is left of it", limit, async () => {
  const client = await connected();
  const before = treeOf(client.machine).devices.length;
  for (const [given, why] of [
    [{}, /^Parameter 'driver' is missing$/],
    [{ driver: "virtio-blk-cpi" }, /'virtio-blk-cpi' is not a valid device model name.*virtio-blk-pci/],
    [{ driver: "virtio-device" }, /abstract/],
    [{ driver: "virtio-blk-pci" }, /drive property not set/],
    [{ driver: "virtio-blk-pci", drive: "dx" }, /can't find value 'dx'/],
    [{ driver: "virtio-blk-pci", drive: "d1", id: "5" }, /expects an identifier/],
    [{ driver: "virtio-blk-pci", drive: "d1", bus: "pci.9" }, /Bus 'pci.9' not found/],
    [{ driver: "virtio-blk-pci", drive: "d1", serail: "x" }, /'virtio-blk-pci.serail' not found.*serial/],
    [{ driver: "virtio-blk-pci", drive: "d1", serial: {} }, /Invalid parameter type for 'serial', expected: string/],
    [{ driver: "virtio-blk-pci", drive: "d1", "queue-size": 3 }, /invalid queue-size/],
    [{ driver: "virtio-blk-pci", drive: "d1", addr: "1.0" }, /slot 1 function 0 not available/],
    [{ driver: "virtio-blk-pci", drive: "d1", vectors: 4000 }, /at most 2048/],
    [{ driver: "virtio-blk-pci", drive: "d1", "disable-modern": true, "disable-legacy": "on" }, /neither modern nor/],
    [{ driver: "virtio-blk-pci", drive: "d1", "disable-modern": true, packed: true }, /disable-modern=on/],
  ] as const) {
    const { error } = await client.execute("device_add", given);
    assert.equal(error?.class, "GenericError");
    assert.match(error?.desc ?? "", why);
    assert.doesNotMatch(error?.desc ?? "", /\n/);
  }
  assert.equal(treeOf(client.machine).devices.length, before);
  assert.deepEqual(await client.execute("device_add", { driver: "virtio-blk-pci", drive: "d1" }), { return: {} });
});

test(
  "a drive whose back end serves one device in its life cannot be plugged in a second time, and that is said",
  limit,
  async () => {
    const client = await connected();
    const drive = treeOf(client.machine).backends.drives.get("d1");
    assert(drive !== undefined);
    Object.assign(drive, { backend: Object.assign(new MemoryBlockBackend({ capacity: MIB }), { detach: undefined }) });
    const add = { driver: "virtio-blk-pci", drive: "d1", id: "hot" };
    await client.execute("device_add", add);
    await client.execute("device_del", { id: "hot" });
    assert.match((await client.execute("device_add", add)).error?.desc ?? "", /serves one device only/);
  },
);

test("an I/O error of a drive is an event", limit, async () => {
  const client = await connected();
  const blk = virtioCores(treeOf(client.machine).devices).find((core) => core instanceof BlkDevice);
  blk?.onError?.("write");
  assert.equal(client.events.at(-1)?.event, "BLOCK_IO_ERROR");
  const data = client.events.at(-1)?.data as Record<string, unknown>;
  assert.deepEqual([data["device"], data["operation"], data["action"]], ["d0", "write", "report"]);
});

test("qom-list-types and device-list-properties", limit, async () => {
  const client = await connected();
  type Types = { return: { name: string; parent?: string; abstract?: boolean }[] };
  const devices = (await client.execute("qom-list-types", { implements: "device" })) as Types;
  assert(devices.return.some(({ name }) => name === "virtio-blk-pci"));
  assert(devices.return.every(({ abstract }) => abstract === undefined));
  const all = (await client.execute("qom-list-types", { abstract: true })) as Types;
  assert.deepEqual(
    all.return.find(({ name }) => name === "virtio-pci"),
    { name: "virtio-pci", parent: "pci-device", abstract: true },
  );
  assert.deepEqual(await client.execute("qom-list-types", { implements: "nothing" }), { return: [] });
  type Properties = { return: { name: string; type: string }[] };
  const properties = (await client.execute("device-list-properties", { typename: "virtio-blk-pci" })) as Properties;
  assert.deepEqual(
    properties.return.find(({ name }) => name === "queue-size"),
    { name: "queue-size", type: "uint16", "default-value": 256 },
  );
  const failure = async (typename: string): Promise<unknown> =>
    (await client.execute("device-list-properties", { typename })).error;
  assert.deepEqual(await failure("nothing"), { class: "DeviceNotFound", desc: "Device 'nothing' not found" });
  assert.deepEqual(await failure("rng-builtin"), {
    class: "GenericError",
    desc: "Parameter 'typename' expects device",
  });
  assert.deepEqual(await failure("virtio-pci"), {
    class: "GenericError",
    desc: "Parameter 'typename' expects a non-abstract device type",
  });
});

test("x-query-virtio and what it leads to", limit, async () => {
  const client = await connected();
  assert.deepEqual(await client.execute("x-query-virtio"), {
    return: [
      { name: "virtio-blk", path: BLK },
      { name: "virtio-balloon", path: "/machine/peripheral-anon/device[0]/virtio-backend" },
    ],
  });
  const { return: status } = (await client.execute("x-query-virtio-status", { path: BLK })) as {
    return: Record<string, unknown>;
  };
  assert.equal(status["device-id"], 2);
  assert.equal(status["num-vqs"], 1);
  assert.equal(status["started"], false);
  assert.deepEqual(status["status"], { statuses: [] });
  const host = status["host-features"] as { transports: string[]; "dev-features": string[] };
  assert(host.transports.includes("VIRTIO_F_VERSION_1: bit 32"));
  assert(host["dev-features"].includes("VIRTIO_BLK_F_FLUSH: bit 9"));
  assert.deepEqual(status["guest-features"], { transports: [], "dev-features": [] });
  const queue = (await client.execute("x-query-virtio-queue-status", { path: BLK, queue: 0 })) as {
    return: Record<string, unknown>;
  };
  assert.equal(queue.return["vring-num-default"], 256);
  assert.equal(queue.return["signalled-used-valid"], false);
  for (const [name, given, desc] of [
    ["x-query-virtio-status", { path: "/machine" }, "Path /machine is not a VirtIODevice"],
    ["x-query-virtio-queue-status", { path: BLK, queue: 1 }, "Invalid virtqueue number 1"],
    ["x-query-virtio-queue-status", { path: BLK, queue: -1 }, "Invalid virtqueue number -1"],
  ] as const)
    assert.deepEqual((await client.execute(name, given)).error, { class: "GenericError", desc });
});
