import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { FeatureSet } from "../common/feature-set.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import { VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { LOOP_F_DEPENDENT, LOOP_F_HIGH, LOOP_F_PLAIN, LoopDevice } from "../testing/loop-device.ts";
import { statements } from "../testing/statements.ts";
import { QUEUE_DESC_HIGH, QUEUE_DESC_LOW, QUEUE_DEVICE_LOW, QUEUE_DRIVER_LOW } from "./queue-registers.ts";
import { StatusMachine } from "./status-machine.ts";

const limit = { timeout: 10_000 };

function setUp(options: { queueSizes?: number[] } = {}) {
  const events: string[] = [];
  const device = new LoopDevice(options);
  const memory = GuestMemory.allocate(1 << 20);
  const machine = new StatusMachine(device, {
    memory,
    queueInterrupt: (index) => events.push(`queue ${index}`),
    configInterrupt: () => events.push("config"),
    deviceReset: () => events.push("reset"),
    queueReset: (index) => events.push(`queue reset ${index}`),
  });
  return { events, device, memory, machine };
}

type Rig = ReturnType<typeof setUp>;

function acceptFeatures(machine: StatusMachine, features: FeatureSet): void {
  for (let i = 0; i < 4; i++) {
    machine.driverFeatureSelect = i;
    machine.writeDriverFeature(features.word(i));
  }
}

function negotiate(machine: StatusMachine, ...bits: number[]): void {
  acceptFeatures(machine, FeatureSet.of(VIRTIO_F_VERSION_1, ...bits));
  for (const status of [1, 3, 11]) machine.writeStatus(status);
}

function program(machine: StatusMachine, index: number, size: number, at = 0x1000 + index * 0x8000): void {
  machine.queues.select = index;
  machine.queues.writeSize(size);
  machine.queues.writeAddress(QUEUE_DESC_LOW, at);
  machine.queues.writeAddress(QUEUE_DRIVER_LOW, at + 0x2000);
  machine.queues.writeAddress(QUEUE_DEVICE_LOW, at + 0x4000);
  machine.queues.writeEnable(1);
}

const running = ({ device }: Rig): number[] => [0, 1].filter((i) => device.queue(i) !== undefined);

/** What a driver writes to the status register, and what it reads after each write. */
const TABLE: readonly { name: string; features?: FeatureSet; writes: number[]; reads: number[]; faults: number }[] = [
  { name: "the order of the spec", writes: [1, 3, 11, 15], reads: [1, 3, 11, 15], faults: 0 },
  { name: "everything at once", writes: [15], reads: [15], faults: 0 },
  { name: "bits one by one, without those before", writes: [1, 2, 8, 4], reads: [1, 3, 11, 15], faults: 0 },
  { name: "ACKNOWLEDGE and DRIVER skipped", writes: [8, 12], reads: [8, 12], faults: 0 },
  { name: "FAILED", writes: [1, 3, 0x83], reads: [1, 3, 0x83], faults: 0 },
  { name: "FAILED, then a reset", writes: [0x80, 0, 1], reads: [0x80, 0, 1], faults: 0 },
  { name: "DRIVER_OK without FEATURES_OK", writes: [1, 3, 7], reads: [1, 3, 0x43], faults: 1 },
  { name: "DRIVER_OK cleared", writes: [15, 11], reads: [15, 0x4f], faults: 1 },
  { name: "DRIVER_OK set again after it was cleared", writes: [15, 11, 15], reads: [15, 0x4f, 0x4f], faults: 1 },
  { name: "NEEDS_RESET is the device's", writes: [1, 0x41], reads: [1, 1], faults: 0 },
  { name: "SUSPEND is not offered", writes: [15, 0x1f], reads: [15, 15], faults: 0 },
  { name: "bits past the eighth", writes: [0x101, 0x100], reads: [1, 0], faults: 0 },
  {
    name: "a feature that was not offered",
    features: FeatureSet.of(VIRTIO_F_VERSION_1, 5),
    writes: [1, 3, 11],
    reads: [1, 3, 3],
    faults: 0,
  },
  {
    name: "a feature past 64 bits that was not offered",
    features: FeatureSet.of(VIRTIO_F_VERSION_1, 100),
    writes: [11],
    reads: [3],
    faults: 0,
  },
  {
    name: "a feature without the one it requires",
    features: FeatureSet.of(VIRTIO_F_VERSION_1, LOOP_F_DEPENDENT),
    writes: [11],
    reads: [3],
    faults: 0,
  },
  { name: "VERSION_1 left out", features: FeatureSet.of(LOOP_F_PLAIN), writes: [11], reads: [3], faults: 1 },
  {
    name: "refused features and DRIVER_OK at once",
    features: FeatureSet.of(5),
    writes: [15],
    reads: [0x43],
    faults: 2,
  },
];

for (const { name, features, writes, reads, faults } of TABLE) {
  const shows = `device status: ${name}`;
  const title =
    features === undefined
      ? shows
      : statements(
          `${shows}: FEATURES_OK stays clear`,
          "device: Basic Facilities of a Virtio Device / Feature Bits #2",
        );
  test(title, limit, () => {
    const { machine, device } = setUp();
    acceptFeatures(machine, features ?? FeatureSet.of(VIRTIO_F_VERSION_1));
    const seen = writes.map((value) => {
      machine.writeStatus(value);
      return machine.status;
    });
    assert.deepEqual(seen, reads);
    assert.equal(device.faults, faults);
    assert.equal(device.ready, (machine.status & 4) !== 0);
  });
}

test("after a refusal the driver may choose other features", limit, () => {
  const { machine, device } = setUp();
  acceptFeatures(machine, FeatureSet.of(VIRTIO_F_VERSION_1, 5));
  machine.writeStatus(11);
  assert.equal(machine.status, 3);
  acceptFeatures(machine, FeatureSet.of(VIRTIO_F_VERSION_1, LOOP_F_PLAIN));
  machine.writeStatus(11);
  assert.equal(machine.status, 11);
  assert.deepEqual(device.features, FeatureSet.of(VIRTIO_F_VERSION_1, LOOP_F_PLAIN));
});

test("feature windows show 128 bits, and 0 beyond", limit, () => {
  const { machine, device } = setUp();
  const words = [0, 1, 2, 3, 4, 0xffffffff].map((select) => {
    machine.deviceFeatureSelect = select;
    return machine.deviceFeature;
  });
  assert.deepEqual(words, [...[0, 1, 2, 3].map((i) => device.offeredFeatures.word(i)), 0, 0]);
  acceptFeatures(machine, FeatureSet.of(VIRTIO_F_VERSION_1, LOOP_F_HIGH));
  machine.driverFeatureSelect = 0xffffffff;
  machine.writeDriverFeature(1);
  assert.equal(machine.driverFeature, 0);
  machine.driverFeatureSelect = 2;
  assert.equal(machine.driverFeature, 64);
});

test("features are latched at FEATURES_OK", limit, () => {
  const { machine, device } = setUp();
  negotiate(machine, LOOP_F_PLAIN);
  acceptFeatures(machine, FeatureSet.of(VIRTIO_F_VERSION_1, LOOP_F_PLAIN, LOOP_F_HIGH));
  machine.writeStatus(15);
  assert.deepEqual(device.features, FeatureSet.of(VIRTIO_F_VERSION_1, LOOP_F_PLAIN));
  assert.equal(device.faults, 4);
});

// device: Basic Facilities of a Virtio Device / Device Status Field #1
test("queues run from DRIVER_OK on, or from queue_enable on if that is later", limit, () => {
  const rig = setUp();
  const { machine } = rig;
  negotiate(machine);
  program(machine, 1, 8);
  machine.kick(1);
  assert.deepEqual(running(rig), []);
  machine.writeStatus(15);
  assert.deepEqual(running(rig), [1]);
  program(machine, 0, 4);
  assert.deepEqual(running(rig), [0, 1]);
});

test("what was made available before DRIVER_OK is looked at without a kick", limit, () => {
  const { machine, memory, events } = setUp();
  const ring = memory.regions[0]?.view as DataView;
  negotiate(machine);
  program(machine, 0, 4, 0x1000);
  ring.setUint32(0x1000 + 8, 0, true);
  ring.setBigUint64(0x1000, 0x9000n, true);
  ring.setUint32(0x1000 + 8, 16, true);
  ring.setUint16(0x3002, 1, true);
  machine.kick(0);
  assert.equal(ring.getUint16(0x5002, true), 0);
  machine.writeStatus(15);
  assert.equal(ring.getUint16(0x5002, true), 1);
  assert.deepEqual(events, ["queue 0"]);
});

test("queue registers: sizes", limit, () => {
  const { machine, device } = setUp({ queueSizes: [100, 0] });
  const { queues } = machine;
  // device: ... / Common configuration structure layout #13, #14: a power of two unless the ring is packed.
  assert.equal(queues.size, 64);
  for (const impossible of [0, 3, 65, 100, 128, 0xffff]) queues.writeSize(impossible);
  assert.equal(queues.size, 64);
  assert.equal(device.faults, 6);
  queues.writeSize(16);
  assert.equal(queues.size, 16);
  queues.select = 1;
  queues.writeEnable(1);
  assert.deepEqual([queues.size, queues.enabled], [0, false]);
  queues.select = 0xffff;
  queues.writeSize(4);
  queues.writeAddress(QUEUE_DESC_HIGH, 4);
  queues.writeEnable(1);
  queues.writeReset(1);
  assert.deepEqual([queues.size, queues.maxSize, queues.enabled, queues.resetting], [0, 0, false, false]);
  for (let half = 0; half < 6; half++) assert.equal(queues.address(half), 0);
});

test("queue registers: a packed queue may have any size", limit, () => {
  const { machine } = setUp({ queueSizes: [100] });
  negotiate(machine, VIRTIO_F_RING_PACKED);
  assert.equal(machine.queues.size, 100);
  machine.queues.writeSize(99);
  assert.equal(machine.queues.size, 99);
});

test("geometry is latched at queue_enable (CVE-2026-5747)", limit, () => {
  const rig = setUp();
  const { machine, device } = rig;
  negotiate(machine);
  program(machine, 0, 8);
  machine.queues.writeSize(64);
  machine.queues.writeAddress(QUEUE_DESC_LOW, 0x50000);
  machine.queues.writeEnable(0);
  assert.deepEqual([machine.queues.size, machine.queues.address(QUEUE_DESC_LOW)], [8, 0x1000]);
  machine.writeStatus(15);
  machine.queues.writeSize(64);
  machine.queues.writeEnable(1);
  assert.equal(device.queue(0)?.queue.size, 8);
  assert.equal(machine.queues.enabled, true);
});

test("rings outside guest memory: DEVICE_NEEDS_RESET, with a notification as DRIVER_OK is set", limit, () => {
  const rig = setUp();
  const { machine, events } = rig;
  negotiate(machine);
  program(machine, 0, 8, 0x7fff0000);
  program(machine, 1, 8);
  machine.writeStatus(15);
  assert.equal(machine.status, 0x4f);
  assert.deepEqual(events, ["config"]);
  assert.deepEqual(running(rig), []);
  machine.writeStatus(0);
  assert.equal(machine.status, 0);
});

test("addresses past 2^53 are no guest memory", limit, () => {
  const { machine } = setUp();
  negotiate(machine);
  machine.queues.writeAddress(QUEUE_DESC_LOW, 0xfffff000);
  machine.queues.writeAddress(QUEUE_DESC_HIGH, 0xffffffff);
  machine.queues.writeEnable(1);
  machine.writeStatus(15);
  assert.equal(machine.status, 0x4f);
});

// device: Basic Facilities of a Virtio Device / Device Status Field #2
test("a device that breaks before DRIVER_OK shows it without a notification", limit, () => {
  const { machine, device, events } = setUp();
  machine.writeStatus(3);
  device.breakDown();
  assert.equal(machine.status, 0x43);
  assert.deepEqual(events, []);
});

test("DRIVER_OK cleared without a reset stops the queues", limit, () => {
  const rig = setUp();
  negotiate(rig.machine);
  program(rig.machine, 0, 8);
  rig.machine.writeStatus(15);
  assert.deepEqual(running(rig), [0]);
  rig.machine.writeStatus(11);
  assert.deepEqual(running(rig), []);
  assert.deepEqual(rig.events, ["config"]);
});

test("a broken device takes no kicks, and configuration changes still come", limit, () => {
  const rig = setUp();
  const { machine, device, events } = rig;
  negotiate(machine);
  program(machine, 1, 8);
  machine.writeStatus(15);
  device.breakDown();
  machine.kick(1);
  device.config.update(() => undefined);
  assert.deepEqual(events, ["config", "config"]);
});

test("queue reset, and a new start with other geometry", limit, () => {
  const rig = setUp();
  const { machine, device, events } = rig;
  negotiate(machine, VIRTIO_F_RING_RESET);
  program(machine, 0, 8);
  machine.writeStatus(15);
  machine.queues.writeReset(1);
  assert.deepEqual([machine.queues.resetting, machine.queues.enabled], [false, false]);
  assert.deepEqual(running(rig), []);
  assert.deepEqual(events, ["queue reset 0"]);
  assert.deepEqual([machine.queues.size, machine.queues.address(QUEUE_DESC_LOW)], [64, 0]);
  program(machine, 0, 32, 0x40000);
  assert.equal(machine.queues.enabled, true);
  assert.equal(device.queue(0)?.queue.size, 32);
});

test("queue reset needs VIRTIO_F_RING_RESET", limit, () => {
  const rig = setUp();
  negotiate(rig.machine);
  program(rig.machine, 0, 8);
  rig.machine.writeStatus(15);
  rig.machine.queues.writeReset(1);
  assert.deepEqual(running(rig), [0]);
  assert.equal(rig.device.faults, 1);
});

test("a reset while a back end holds guest memory ends when it lets go", limit, async () => {
  const rig = setUp();
  const { machine, device, events } = rig;
  negotiate(machine, VIRTIO_F_RING_RESET);
  program(machine, 0, 8);
  machine.writeStatus(15);
  device.borrowing = true;
  machine.queues.writeReset(1);
  assert.deepEqual([machine.queues.resetting, machine.queues.enabled], [true, true]);
  machine.queues.writeEnable(1);
  machine.writeStatus(0);
  assert.equal(machine.status, 15);
  assert.deepEqual(running(rig), []);
  machine.writeStatus(1);
  machine.kick(0);
  device.config.update(() => undefined);
  device.breakDown();
  assert.deepEqual(events, []);
  assert.equal(machine.status, 15);
  // queue_enable again, and the break-down itself; status writes are not even looked at.
  assert.equal(device.faults, 2);
  device.release();
  await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(events, ["queue reset 0", "reset"]);
  assert.equal(machine.status, 0);
  assert.equal(device.broken, undefined);
  machine.queues.select = 0;
  assert.deepEqual([machine.queues.resetting, machine.queues.enabled], [false, false]);
});

test("a queue reset that ends after a device reset leaves the new queue alone", limit, async () => {
  const rig = setUp();
  const { machine, device } = rig;
  negotiate(machine, VIRTIO_F_RING_RESET);
  program(machine, 0, 8);
  machine.writeStatus(15);
  device.borrowing = true;
  machine.queues.writeReset(1);
  device.borrowing = false;
  machine.writeStatus(0);
  negotiate(machine, VIRTIO_F_RING_RESET);
  program(machine, 0, 8);
  machine.writeStatus(15);
  device.release();
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(machine.queues.enabled, true);
  assert.deepEqual(running(rig), [0]);
});

test("a reset puts every register back", limit, () => {
  const { machine, device, events } = setUp();
  negotiate(machine, LOOP_F_PLAIN);
  program(machine, 1, 4);
  machine.writeStatus(15);
  machine.deviceFeatureSelect = 2;
  const { resets } = device;
  machine.writeStatus(0);
  assert.equal(device.resets, resets + 1);
  assert.deepEqual(events, ["reset"]);
  assert.deepEqual([machine.status, machine.deviceFeatureSelect, machine.driverFeatureSelect], [0, 0, 0]);
  assert.equal(machine.driverFeature, 0);
  machine.queues.select = 1;
  assert.deepEqual([machine.queues.size, machine.queues.enabled, machine.queues.address(0)], [16, false, 0]);
  assert.deepEqual(device.features, FeatureSet.EMPTY);
  // device: Basic Facilities of a Virtio Device / Device Reset #2
  machine.kick(1);
  device.config.update(() => undefined);
  assert.deepEqual(events, ["reset"]);
});

test("any writes in any order: nothing throws, status and queues stay consistent", { timeout: 60_000 }, () => {
  const value = fc.oneof(fc.nat(16), fc.constantFrom(0, 1, 11, 15, 0x4f, 0x80, 64, 0xffff, 0x1000, 0xffffffff));
  const write = fc.tuple(
    fc.constantFrom("status", "feature", "select", "size", "address", "enable", "reset", "kick"),
    value,
  );
  const property = fc.property(fc.array(write, { maxLength: 60 }), (writes) => {
    const rig = setUp();
    const { machine } = rig;
    acceptFeatures(machine, FeatureSet.of(VIRTIO_F_VERSION_1, VIRTIO_F_RING_RESET));
    for (const [what, n] of writes) {
      if (what === "status") machine.writeStatus(n);
      else if (what === "feature") machine.writeDriverFeature(n);
      else if (what === "select") machine.queues.select = n & 0xffff;
      else if (what === "size") machine.queues.writeSize(n & 0xffff);
      else if (what === "address") machine.queues.writeAddress(n % 6, n);
      else if (what === "enable") machine.queues.writeEnable(n & 0xffff);
      else if (what === "reset") machine.queues.writeReset(n & 0xffff);
      else machine.kick(n);
      const { status } = machine;
      assert.ok((status & 4) === 0 || (status & 8) !== 0);
      assert.ok(running(rig).length === 0 || (status & 4) !== 0);
      assert.ok(rig.device.broken === undefined || (status & 64) !== 0);
    }
    machine.writeStatus(0);
    assert.equal(machine.status, 0);
    assert.deepEqual(running(rig), []);
  });
  fc.assert(property, { numRuns: 500 });
});
