import assert from "node:assert/strict";
import { test } from "node:test";
import { FeatureSet } from "../../common/feature-set.ts";
import type { DeviceCore } from "../../device/core.ts";
import { DRIVER_RING_FEATURES } from "../../driver/features.ts";
import type { GuestMemory } from "../../memory/guest-memory.ts";
import {
  VIRTIO_F_ANY_LAYOUT,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_RING_RESET,
  VIRTIO_F_VERSION_1,
} from "../../spec/features.ts";
import { VIRTIO_PCI_COMMON_Q_MSIX } from "../../spec/pci.ts";
import { VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK } from "../../spec/status.ts";
import {
  LOOP_CFG_VALUE,
  LOOP_CFG_WRITABLE,
  LOOP_F_DEPENDENT,
  LOOP_F_HIGH,
  LOOP_F_PLAIN,
  LoopDevice,
  LoopDriver,
  nodeEnvironment,
} from "../../testing/loop-device.ts";
import { type PciFunction, PciScanner, VirtioPciDevice, type VirtioPciTransport } from "../../transport/pci/index.ts";
import { type LoopbackAttachment, LoopbackMachine, type LoopbackMachineOptions } from "./index.ts";

interface Way {
  readonly name: string;
  readonly how: LoopbackAttachment;
  readonly machine?: Partial<LoopbackMachineOptions>;
  /** How interrupts have to come. */
  readonly mode?: string;
  /** The legacy interface: no VERSION_1, split queues, no queue reset. */
  readonly legacy?: boolean;
}

/** The loop device is no type of the standard's, so no table has an id for it. */
const LEGACY_ID = { legacy: true, legacyDeviceId: 0x103f };

const WAYS: readonly Way[] = [
  { name: "loopback, deferred", how: { transport: "loopback" } },
  { name: "loopback, direct", how: { transport: "loopback" }, machine: { delivery: "direct" } },
  { name: "pci, 64-bit BAR, MSI-X", how: { transport: "pci" }, mode: "msix" },
  { name: "pci, direct interrupts", how: { transport: "pci" }, machine: { delivery: "direct" }, mode: "msix" },
  { name: "pci, 32-bit BAR", how: { transport: "pci", modernBar: "mem32" }, mode: "msix" },
  { name: "pci, I/O BAR", how: { transport: "pci", modernBar: "io" }, mode: "msix" },
  { name: "pci, I/O doorbell", how: { transport: "pci", ioNotify: true }, mode: "msix" },
  { name: "pci, a page a doorbell", how: { transport: "pci", pagePerQueue: true }, mode: "msix" },
  { name: "pci, 2 vectors for all", how: { transport: "pci", vectors: 2 }, mode: "msix-shared" },
  { name: "pci, 1 vector for all", how: { transport: "pci", vectors: 1 }, mode: "msix-shared" },
  { name: "pci, 2048 vectors", how: { transport: "pci", vectors: 2048 }, mode: "msix" },
  { name: "pci, too few messages", how: { transport: "pci" }, machine: { msis: 2 }, mode: "msix-shared" },
  { name: "pci, no MSI-X", how: { transport: "pci", vectors: 0 }, mode: "intx" },
  { name: "pci, no messages", how: { transport: "pci" }, machine: { msis: 0 }, mode: "intx" },
  {
    name: "pci, INTx, direct",
    how: { transport: "pci", vectors: 0 },
    machine: { delivery: "direct" },
    mode: "intx",
  },
  { name: "pci, configuration window", how: { transport: "pci" }, machine: { window: true }, mode: "msix" },
  { name: "pci, transitional, modern", how: { transport: "pci", ...LEGACY_ID }, mode: "msix" },
  {
    name: "pci, transitional, legacy",
    how: { transport: "pci", ...LEGACY_ID },
    machine: { legacy: true },
    mode: "msix",
    legacy: true,
  },
  { name: "pci, legacy", how: { transport: "pci", ...LEGACY_ID, modern: false }, mode: "msix", legacy: true },
  {
    name: "pci, legacy, direct",
    how: { transport: "pci", ...LEGACY_ID, modern: false },
    machine: { delivery: "direct" },
    mode: "msix",
    legacy: true,
  },
  {
    name: "pci, legacy, 2 vectors for all",
    how: { transport: "pci", ...LEGACY_ID, modern: false, vectors: 2 },
    mode: "msix-shared",
    legacy: true,
  },
  {
    name: "pci, legacy, no MSI-X",
    how: { transport: "pci", ...LEGACY_ID, modern: false, vectors: 0 },
    mode: "intx",
    legacy: true,
  },
  {
    name: "pci, legacy, no messages",
    how: { transport: "pci", ...LEGACY_ID, modern: false },
    machine: { msis: 0 },
    mode: "intx",
    legacy: true,
  },
  { name: "mmio, version 2", how: { transport: "mmio", version: 2 } },
  { name: "mmio, version 2, direct", how: { transport: "mmio" }, machine: { delivery: "direct" } },
  { name: "mmio, version 1", how: { transport: "mmio", version: 1 }, legacy: true },
  {
    name: "mmio, version 1, direct",
    how: { transport: "mmio", version: 1 },
    machine: { delivery: "direct" },
    legacy: true,
  },
];

const BASE = FeatureSet.of(VIRTIO_F_VERSION_1, VIRTIO_F_RING_RESET);
const RINGS: readonly [string, FeatureSet][] = [
  ["split", BASE],
  ["split, all features", DRIVER_RING_FEATURES.without(VIRTIO_F_RING_PACKED)],
  ["split, indirect, event index", BASE.with(VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX)],
  ["packed", BASE.with(VIRTIO_F_RING_PACKED)],
  ["packed, in order", BASE.with(VIRTIO_F_RING_PACKED, VIRTIO_F_IN_ORDER)],
  ["packed, all features", DRIVER_RING_FEATURES],
];

const bytes = (length: number, seed = 1): Uint8Array => Uint8Array.from({ length }, (_, i) => (i * 7 + seed) & 0xff);

function build(way: Way, ring: FeatureSet): LoopbackMachine {
  return new LoopbackMachine({ environment: nodeEnvironment(), ringFeatures: ring, ...way.machine });
}

async function start(way: Way, ring: FeatureSet, device: DeviceCore, machine = build(way, ring)) {
  const driver = await machine.attach(device, LoopDriver.type, way.how);
  return { machine, driver };
}

const turn = () => new Promise<void>((resolve) => setImmediate(resolve));
async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await turn();
}
const codeOf = (promise: Promise<unknown>) =>
  promise.then(
    () => "resolved",
    (error: { code?: string }) => error.code,
  );

/** @param modernOnly why the legacy interface cannot do it */
function forEachWay(
  what: string,
  body: (way: Way, ring: FeatureSet) => Promise<void>,
  rings = RINGS,
  modernOnly?: string,
): void {
  for (const way of WAYS) {
    for (const [ringName, ring] of rings) {
      const legacy = way.legacy === true;
      const why = legacy && ring.has(VIRTIO_F_RING_PACKED) ? "packed queues need VERSION_1" : modernOnly;
      const skip = legacy && why !== undefined ? why : false;
      test(`${what} (${way.name}; ${ringName})`, { timeout: 20_000, skip }, () => body(way, ring));
    }
  }
}

/** What is negotiated when the device offers all and the driver accepts these ring features. */
function negotiated(way: Way, ring: FeatureSet): FeatureSet {
  if (way.legacy !== true) return FeatureSet.of(LOOP_F_PLAIN, LOOP_F_DEPENDENT, LOOP_F_HIGH).union(ring);
  const rings = ring.intersect(FeatureSet.of(VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX));
  return FeatureSet.of(LOOP_F_PLAIN, LOOP_F_DEPENDENT, VIRTIO_F_ANY_LAYOUT).union(rings);
}
const NO_QUEUE_RESET = "VIRTIO_F_RING_RESET is above the 32 bits of the legacy interface";
const TWO_RINGS = RINGS.filter(([name]) => name === "split" || name === "packed, all features");

forEachWay("chains go through and come back", async (way, ring) => {
  const device = new LoopDevice();
  const { machine, driver } = await start(way, ring, device);
  assert.equal(driver.state, "ready");
  assert.deepEqual(driver.events, ["set up", "ready"]);
  for (const transport of machine.bus.devices.map((d) => d.transport))
    if ("interruptMode" in transport) assert.equal(transport.interruptMode, way.mode);
  assert.deepEqual(driver.features, negotiated(way, ring));
  assert.deepEqual(device.features, driver.features);
  for (let i = 1; i <= 40; i++) assert.deepEqual(await driver.copy(bytes(i * 3, i), (i % 5) + 1), bytes(i * 3, i));
  // More at once than the queue has room for: the rest waits.
  const many = await Promise.all(Array.from({ length: 300 }, (_, i) => driver.copy(bytes(16, i), 3)));
  many.forEach((back, i) => {
    assert.deepEqual(back, bytes(16, i));
  });
  const free = machine.dma.free;
  await machine.close();
  assert.equal(driver.state, "removed");
  assert.equal(device.ready, false);
  assert.ok(machine.dma.free > free);
});

// device: Basic Facilities of a Virtio Device / Device Configuration Space #1
forEachWay(
  "configuration: 64-bit fields, writes, changes",
  async (way, ring) => {
    const device = new LoopDevice();
    const { machine, driver } = await start(way, ring, device);
    assert.equal(driver.value(), 0x000fedcb_89abcdef);
    driver.write(0xfedcba98);
    assert.equal(device.config.view.getUint32(LOOP_CFG_WRITABLE, true), 0xfedcba98);
    assert.deepEqual(device.configWrites, [[LOOP_CFG_WRITABLE, 4]]);
    const changed = driver.changed();
    device.config.update((view) => view.setUint32(LOOP_CFG_VALUE, 5, true));
    await changed;
    assert.equal(driver.value(), 0x000fedcb_00000005);
    if (way.legacy) return machine.close();
    // 256 changes between two looks must show too.
    const transport = machine.bus.devices[0]?.transport;
    const before = transport?.configGeneration();
    for (let i = 0; i < 256; i++) device.config.update((view) => view.setUint32(LOOP_CFG_VALUE, i, true));
    assert.notEqual(transport?.configGeneration(), before);
    await machine.close();
  },
  TWO_RINGS,
);

forEachWay(
  "reset with I/O in flight: buffers come back, nothing is written later",
  async (way, ring) => {
    const device = new LoopDevice();
    const { machine, driver } = await start(way, ring, device);
    const free = machine.dma.free;
    const lost = [1, 2, 3].map((i) => codeOf(driver.hold(bytes(8, i))));
    await until(() => device.held.length === 3);
    await driver.restart();
    assert.deepEqual(await Promise.all(lost), ["ERR_VIRTKIT_RESET", "ERR_VIRTKIT_RESET", "ERR_VIRTKIT_RESET"]);
    const before = machine.memory.regions[0]?.u8.slice();
    assert.equal(device.finish(), 3);
    assert.deepEqual(machine.memory.regions[0]?.u8.slice(), before);
    assert.deepEqual(await driver.copy(bytes(5)), bytes(5));
    assert.equal(machine.dma.free, free);
    await machine.close();
  },
  TWO_RINGS,
);

forEachWay(
  "a reset waits while a back end works on guest memory",
  async (way, ring) => {
    const device = new LoopDevice();
    const { machine, driver } = await start(way, ring, device);
    device.borrowing = true;
    const resets = device.resets;
    let done = false;
    const restart = driver.restart().then(() => {
      done = true;
    });
    for (let i = 0; i < 5; i++) await turn();
    assert.equal(done, false);
    assert.equal(device.resets, resets);
    device.release();
    await restart;
    assert.ok(device.resets > resets);
    if (way.legacy) return machine.close();
    device.borrowing = true;
    done = false;
    const queueReset = driver.resetHoldQueue().then(() => {
      done = true;
    });
    for (let i = 0; i < 5; i++) await turn();
    assert.equal(done, false);
    device.release();
    await queueReset;
    assert.deepEqual(await driver.copy(bytes(9)), bytes(9));
    await machine.close();
  },
  TWO_RINGS,
);

// device: Basic Facilities of a Virtio Device / Virtqueues / Virtqueue Reset / Virtqueue Reset #1, #2; Re-enable #1
forEachWay(
  "a queue is reset and comes back with another size",
  async (way, ring) => {
    const device = new LoopDevice();
    const { machine, driver } = await start(way, ring, device);
    const lost = codeOf(driver.hold(bytes(8)));
    await until(() => device.held.length === 1);
    await driver.resetHoldQueue(4);
    assert.equal(await lost, "ERR_VIRTKIT_RESET");
    assert.equal(device.finish(), 1);
    assert.equal(driver.queues[1]?.size, 4);
    assert.equal(device.queue(1)?.queue.size, 4);
    for (let i = 0; i < 10; i++) {
      const back = driver.hold(bytes(8, i));
      await until(() => device.held.length === 1);
      assert.equal(device.finish(), 0);
      assert.deepEqual(await back, bytes(8, i));
    }
    assert.deepEqual(await driver.copy(bytes(9)), bytes(9));
    await machine.close();
  },
  RINGS,
  NO_QUEUE_RESET,
);

// device: Basic Facilities of a Virtio Device / Device Status Field #2
forEachWay(
  "DEVICE_NEEDS_RESET: the driver hears of it and starts anew",
  async (way, ring) => {
    const device = new LoopDevice();
    const { machine, driver } = await start(way, ring, device);
    const lost = codeOf(driver.hold(bytes(8)));
    await until(() => device.held.length === 1);
    device.breakDown();
    assert.equal(await lost, "ERR_VIRTKIT_RESET");
    await driver.settled();
    assert.equal(driver.state, "ready");
    assert.deepEqual(driver.events, ["set up", "ready", "needs reset", "torn down", "set up", "ready"]);
    assert.deepEqual(await driver.copy(bytes(9)), bytes(9));
    driver.recover = false;
    device.breakDown();
    await until(() => driver.state === "needs-reset");
    assert.equal(machine.bus.devices[0]?.transport.getStatus(), way.legacy ? 0x47 : 0x4f);
    await driver.restart();
    assert.deepEqual(await driver.copy(bytes(9)), bytes(9));
    await machine.close();
  },
  TWO_RINGS,
);

forEachWay(
  "refused features: FEATURES_OK stays clear, the driver sets FAILED",
  async (way, ring) => {
    class Picky extends LoopDevice {
      protected override acceptsFeatures(): boolean {
        return false;
      }
    }
    const machine = build(way, ring);
    const transport = machine.plug(new Picky(), way.how);
    const [found] = await machine.bus.scan([transport]);
    await machine.bus.registerDriver(LoopDriver.type);
    assert.equal(found?.driver, undefined);
    assert.match(String((found?.error as Error | undefined)?.message), /does not accept the features/);
    const status = transport.getStatus();
    assert.equal(status & VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FAILED);
    assert.equal(status & VIRTIO_CONFIG_S_FEATURES_OK, 0);
    await machine.close();
  },
  TWO_RINGS,
  "there is no FEATURES_OK to refuse with",
);

test("what the device does not offer is not accepted, nor what requires it", { timeout: 20_000 }, async () => {
  for (const how of [{ transport: "loopback" }, { transport: "pci" }, { transport: "mmio" }] as const) {
    const machine = new LoopbackMachine({ environment: nodeEnvironment() });
    const device = new LoopDevice({ features: FeatureSet.of(LOOP_F_DEPENDENT, 5, 90) });
    const driver = await machine.attach(device, LoopDriver.type, how);
    assert.deepEqual(driver.features, DRIVER_RING_FEATURES.intersect(device.offeredFeatures));
    await machine.close();
  }
});

test("a device without VERSION_1 is refused", { timeout: 20_000 }, async () => {
  const machine = new LoopbackMachine({ environment: nodeEnvironment() });
  const device = new LoopDevice();
  device.setOfferedFeatures(device.offeredFeatures.without(VIRTIO_F_VERSION_1));
  await assert.rejects(machine.attach(device, LoopDriver.type), { code: "ERR_VIRTKIT_FEATURES" });
});

test("devices of one kind on the bus each get a driver, whatever comes first", { timeout: 20_000 }, async () => {
  const machine = new LoopbackMachine({ environment: nodeEnvironment() });
  const early = [0, 1].map(() => machine.plug(new LoopDevice(), { transport: "pci" }));
  await machine.bus.scan(early);
  assert.deepEqual(
    machine.bus.devices.map((d) => [d.name, d.driver]),
    [
      ["virtio0", undefined],
      ["virtio1", undefined],
    ],
  );
  await machine.bus.registerDriver(LoopDriver.type);
  await machine.bus.scan([machine.plug(new LoopDevice())]);
  const drivers = [0, 1, 2].map((n) => machine.bus.driverOf(LoopDriver, n));
  assert.equal(new Set(drivers).size, 3);
  const replies = await Promise.all(drivers.map((driver, i) => driver.copy(bytes(4, i))));
  assert.deepEqual(
    replies,
    [0, 1, 2].map((i) => bytes(4, i)),
  );
  assert.throws(() => machine.bus.driverOf(LoopDriver, 3), { code: "ERR_VIRTKIT_NO_DEVICE" });
  const [first] = machine.bus.devices;
  if (first !== undefined) await machine.bus.remove(first);
  assert.equal(drivers[0]?.state, "removed");
  await assert.rejects(drivers[0]?.copy(bytes(1)) as Promise<unknown>);
  await machine.close();
});

// driver: MSI-X Vector Configuration
for (const [name, refuse, mode] of [
  ["a queue's own vector fails: it shares the configuration's", (vector: number) => vector === 2, "msix"],
  ["no queue gets a vector: INTx", () => true, "intx"],
] as const)
  test(name, { timeout: 20_000 }, async () => {
    const machine = new LoopbackMachine({ environment: nodeEnvironment() });
    const device = new LoopDevice();
    const transport = machine.plug(device, { transport: "pci" }) as VirtioPciTransport;
    const pci = machine.bridge.bus.at(0) as PciFunction;
    const barWrite = pci.barWrite.bind(pci);
    pci.barWrite = (bar, offset, size, value) =>
      barWrite(bar, offset, size, bar === 4 && offset === VIRTIO_PCI_COMMON_Q_MSIX && refuse(value) ? 0xffff : value);
    const driver = await machine.bus.bind(LoopDriver.type, transport);
    assert.equal(transport.interruptMode, mode);
    assert.deepEqual(await driver.copy(bytes(4)), bytes(4));
    const back = driver.hold(bytes(5));
    await until(() => device.held.length === 1);
    device.finish();
    assert.deepEqual(await back, bytes(5));
    const changed = driver.changed();
    device.config.update(() => undefined);
    await changed;
    await machine.close();
  });

test("capabilities that a driver does not know are passed over", { timeout: 20_000 }, async () => {
  class Odd extends VirtioPciDevice {
    constructor(device: DeviceCore, memory: GuestMemory) {
      super(device, { memory, vectors: 0 });
      // In front of the good ones: a reserved type, reserved BARs, a BAR that does not exist, one too short.
      for (const [id, length, type, bar, structure] of [
        [9, 16, 77, 4, 4096],
        [9, 16, 1, 6, 4096],
        [9, 16, 3, 0xff, 4096],
        [9, 16, 4, 5, 4096],
        [9, 16, 1, 4, 8],
        [9, 20, 2, 3, 4096],
      ] as const) {
        const at = this.addCapability(id, length);
        this.config.set(at + 2, 1, length);
        this.config.set(at + 3, 1, type);
        this.config.set(at + 4, 1, bar);
        if (length >= 16) this.config.set(at + 12, 4, structure);
      }
      // A longer cap_len than the spec has, on the good one.
      this.config.set(0x42, 1, 24);
      this.seal();
    }
  }
  const machine = new LoopbackMachine({ environment: nodeEnvironment() });
  machine.bridge.bus.plug(new Odd(new LoopDevice(), machine.memory));
  const scanner = new PciScanner(machine.bridge, { memory: machine.memory, environment: nodeEnvironment() });
  const [transport] = scanner.scan();
  assert.ok(transport);
  assert.deepEqual(scanner.scan(), []);
  const driver = await machine.bus.bind(LoopDriver.type, transport);
  assert.deepEqual(await driver.copy(bytes(4)), bytes(4));
  await machine.close();
});

test("a device that shares vectors gives back the messages it does not use", { timeout: 20_000 }, async () => {
  const machine = new LoopbackMachine({ environment: nodeEnvironment(), msis: 4 });
  const modes: unknown[] = [];
  for (let i = 0; i < 3; i++) {
    const transport = machine.plug(new LoopDevice({ queueSizes: [8, 8, 8, 8] }), { transport: "pci" });
    const driver = await machine.bus.bind(LoopDriver.type, transport);
    modes.push((transport as VirtioPciTransport).interruptMode);
    assert.deepEqual(await driver.copy(bytes(4)), bytes(4));
  }
  assert.deepEqual(modes, ["msix-shared", "msix-shared", "intx"]);
  await machine.close();
});

test("NOTIFICATION_DATA kicks are 32 bits wide and name the queue", { timeout: 20_000 }, async () => {
  const machine = new LoopbackMachine({ environment: nodeEnvironment() });
  const device = new LoopDevice();
  const driver = await machine.attach(device, LoopDriver.type, { transport: "pci", modernBar: "io" });
  assert.ok(driver.features.has(VIRTIO_F_NOTIFICATION_DATA));
  const writes: number[] = [];
  const pci = machine.bridge.bus.at(0);
  assert.ok(pci);
  const barWrite = pci.barWrite.bind(pci);
  pci.barWrite = (bar, offset, size, value) => {
    writes.push(size, value % 65536);
    barWrite(bar, offset, size, value);
  };
  const back = driver.hold(bytes(3));
  await until(() => device.held.length === 1);
  device.finish();
  await back;
  assert.deepEqual(writes.slice(0, 2), [4, 1]);
  await machine.close();
});
