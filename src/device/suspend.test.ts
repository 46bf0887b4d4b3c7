import assert from "node:assert/strict";
import { test } from "node:test";
import { FeatureSet } from "../common/feature-set.ts";
import { BlkDriver } from "../driver/blk.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import { VIRTIO_F_SUSPEND, VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { LOOP_CFG_VALUE, LOOP_CFG_WRITABLE, LOOP_COPYQ, LOOP_HOLDQ, LoopDevice } from "../testing/loop-device.ts";
import { ManualBlockBackend } from "../testing/manual-block.ts";
import { RawSplitRing } from "../testing/raw-ring.ts";
import { createRig, RIG_CONFIGS, testEnvironment } from "../testing/rig.ts";
import { statements } from "../testing/statements.ts";
import { BlkDevice } from "./blk.ts";
import { RING_FEATURES } from "./core.ts";
import { QUEUE_DESC_LOW, QUEUE_DEVICE_LOW, QUEUE_DRIVER_LOW } from "./queue-registers.ts";
import { StatusMachine } from "./status-machine.ts";

const limit = { timeout: 10_000 };
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));
const DEVICE = "device: General Initialization And Device Operation / Device Suspend";
const BUFFERS = 0x80000;
const SUSPENDED = 27;
const RUNNING = 15;

/** A loop device under its registers with hand-written rings on both queues, up to FEATURES_OK. */
function setUp(features: readonly number[] = [VIRTIO_F_SUSPEND], device = new LoopDevice()) {
  const events: string[] = [];
  const memory = GuestMemory.allocate(1 << 20);
  const machine = new StatusMachine(device, {
    memory,
    queueInterrupt: (index) => events.push(`queue ${index}`),
    configInterrupt: () => events.push("config"),
    deviceReset: () => events.push("reset"),
    queueReset: () => undefined,
  });
  const accepted = FeatureSet.of(VIRTIO_F_VERSION_1, ...features);
  for (let i = 0; i < 4; i++) {
    machine.driverFeatureSelect = i;
    machine.writeDriverFeature(accepted.word(i));
  }
  for (const status of [1, 3, 11]) machine.writeStatus(status);
  const view = memory.regions[0]?.view as DataView;
  const rings = [LOOP_COPYQ, LOOP_HOLDQ].map((index) => {
    const desc = 0x1000 + index * 0x8000;
    const place = { size: 16, desc, driver: desc + 0x2000, device: desc + 0x4000 };
    machine.queues.select = index;
    machine.queues.writeSize(place.size);
    machine.queues.writeAddress(QUEUE_DESC_LOW, place.desc);
    machine.queues.writeAddress(QUEUE_DRIVER_LOW, place.driver);
    machine.queues.writeAddress(QUEUE_DEVICE_LOW, place.device);
    machine.queues.writeEnable(1);
    return new RawSplitRing(view, place);
  });
  /** A chain of a readable and a writable buffer. */
  const offer = (queue: number, n: number): void => {
    const ring = rings[queue] as RawSplitRing;
    ring.writeDescriptor(2 * n, { address: BUFFERS + 64 * n, length: 4, flags: 1, next: 2 * n + 1 });
    ring.writeDescriptor(2 * n + 1, { address: BUFFERS + 64 * n + 32, length: 4, flags: 2 });
    ring.offer(2 * n);
  };
  const [copy, hold] = rings as [RawSplitRing, RawSplitRing];
  return { device, machine, memory, events, copy, hold, offer };
}

async function suspended() {
  const rig = setUp();
  rig.machine.writeStatus(RUNNING);
  rig.machine.writeStatus(RUNNING | 16);
  await turn();
  assert.equal(rig.machine.status, SUSPENDED);
  return rig;
}

test(statements("SUSPEND is ignored before DRIVER_OK, and without the feature", `${DEVICE} #1`), limit, async () => {
  const early = setUp();
  early.machine.writeStatus(11 | 16);
  await turn();
  assert.equal(early.machine.status, 11);
  early.machine.writeStatus(RUNNING);
  await turn();
  assert.equal(early.machine.status, RUNNING);
  early.offer(LOOP_COPYQ, 0);
  early.machine.kick(LOOP_COPYQ);
  assert.equal(early.copy.usedIdx, 1);

  const without = setUp([]);
  without.machine.writeStatus(RUNNING);
  without.machine.writeStatus(RUNNING | 16);
  await turn();
  assert.equal(without.machine.status, RUNNING);
  without.offer(LOOP_COPYQ, 0);
  without.machine.kick(LOOP_COPYQ);
  assert.equal(without.copy.usedIdx, 1);
  assert.equal(without.device.faults, 0);
});

test(
  statements("a suspended device touches no queue and no configuration field, whatever happens", `${DEVICE} #2`),
  limit,
  async () => {
    const { device, machine, memory, events, offer, hold, copy } = setUp();
    machine.writeStatus(RUNNING);
    offer(LOOP_HOLDQ, 0);
    machine.kick(LOOP_HOLDQ);
    machine.writeStatus(RUNNING | 16);
    await turn();
    assert.equal(machine.status, SUSPENDED);
    offer(LOOP_COPYQ, 1);
    offer(LOOP_HOLDQ, 2);
    const before = memory.regions[0]?.u8.slice();
    const value = device.config.read(LOOP_CFG_VALUE, 4);
    machine.kick(LOOP_COPYQ);
    machine.kick(LOOP_HOLDQ);
    device.kick(LOOP_COPYQ);
    device.finish();
    device.config.update((view) => view.setUint32(LOOP_CFG_VALUE, 7, true));
    device.config.write(LOOP_CFG_WRITABLE, 4, 9);
    await turn();
    assert.deepEqual(memory.regions[0]?.u8, before);
    assert.deepEqual(events, []);
    assert.equal(device.config.read(LOOP_CFG_VALUE, 4), value);
    assert.equal(device.config.read(LOOP_CFG_WRITABLE, 4), 0);
    assert.deepEqual(device.configWrites, []);

    machine.writeStatus(SUSPENDED | 4);
    assert.equal(machine.status, RUNNING);
    assert.deepEqual([hold.usedIdx, copy.usedIdx, device.held.length], [1, 1, 1]);
    assert.deepEqual(hold.readUsed(0), { id: 0, length: 4 });
    assert.equal(device.config.read(LOOP_CFG_VALUE, 4), 7);
    assert.deepEqual(events.sort(), ["config", "queue 0", "queue 1"]);
  },
);

test(
  statements("configuration changes are told when the device resumes, and only then", `${DEVICE} #3`, `${DEVICE} #4`),
  limit,
  async () => {
    const { device, machine, events } = await suspended();
    const generation = device.config.generation;
    for (let i = 0; i < 3; i++) device.config.update((view) => view.setUint32(LOOP_CFG_VALUE, i, true));
    await turn();
    assert.deepEqual(events, []);
    assert.equal(device.config.generation, generation);
    machine.writeStatus(SUSPENDED | 4);
    assert.deepEqual(events, ["config"]);
    assert.notEqual(device.config.generation, generation);
    assert.equal(device.config.read(LOOP_CFG_VALUE, 4), 2);
  },
);

test(
  statements("SUSPEND suspends the device, once what it works on is used, or it needs a reset", `${DEVICE} #5`),
  limit,
  async () => {
    const { device, machine, events, offer, copy } = setUp();
    machine.writeStatus(RUNNING);
    device.borrowing = true;
    machine.writeStatus(RUNNING | 16);
    offer(LOOP_COPYQ, 0);
    machine.kick(LOOP_COPYQ);
    for (let i = 0; i < 3; i++) await turn();
    assert.equal(machine.status, RUNNING, "not yet");
    assert.equal(copy.usedIdx, 0, "and nothing new is begun");
    device.release();
    await turn();
    assert.equal(machine.status, SUSPENDED);
    assert.deepEqual(events, []);

    class Stubborn extends LoopDevice {
      protected override async onDrain(): Promise<void> {
        throw new Error("not now");
      }
    }
    const failing = setUp([VIRTIO_F_SUSPEND], new Stubborn());
    failing.machine.writeStatus(RUNNING);
    failing.machine.writeStatus(RUNNING | 16);
    await turn();
    assert.equal(failing.machine.status, RUNNING | 64);
    assert.deepEqual(failing.events, ["config"]);
  },
);

test(statements("DRIVER_OK lets a suspended device go on, or it needs a reset", `${DEVICE} #6`), limit, async () => {
  const { machine, offer, copy } = await suspended();
  machine.writeStatus(SUSPENDED | 4);
  assert.equal(machine.status, RUNNING);
  offer(LOOP_COPYQ, 0);
  machine.kick(LOOP_COPYQ);
  assert.equal(copy.usedIdx, 1);

  const broken = await suspended();
  broken.device.breakDown();
  assert.deepEqual(broken.events, []);
  broken.machine.writeStatus(SUSPENDED | 64 | 4);
  assert.equal(broken.machine.status, SUSPENDED | 64);
  assert.deepEqual(broken.events, ["config"]);
});

test("a suspended device can be reset, also while it is being suspended", limit, async () => {
  for (const wait of [true, false]) {
    const { device, machine, events, offer, copy } = setUp();
    machine.writeStatus(RUNNING);
    machine.writeStatus(RUNNING | 16);
    if (wait) await turn();
    device.config.update(() => undefined);
    events.length = 0;
    machine.writeStatus(0);
    assert.equal(machine.status, 0);
    assert.deepEqual(events, ["reset"]);
    assert.equal(device.ready, false);
    await turn();
    assert.equal(machine.status, 0);
    offer(LOOP_COPYQ, 0);
    assert.equal(device.startQueue(LOOP_COPYQ, copy.place), undefined);
    device.kick(LOOP_COPYQ);
    assert.equal(copy.usedIdx, 1);
  }
});

for (const config of RIG_CONFIGS.filter(({ ring }) => ring.has(VIRTIO_F_SUSPEND) && ring.has(VIRTIO_F_VERSION_1))) {
  if (config.transport.endsWith("legacy")) continue;
  test(`a disk is suspended and resumed under load (${config.transport})`, limit, async () => {
    const backend = new ManualBlockBackend({ auto: "ordered" });
    const device = new BlkDevice({ backend, environment: testEnvironment, ringFeatures: RING_FEATURES });
    const rig = await createRig(device, BlkDriver.type, config);
    for (let round = 0; round < 5; round++) {
      const writes = Array.from({ length: 20 }, (_, i) =>
        rig.driver.write(512 * i, new Uint8Array(512).fill(round + i)),
      );
      const suspended = rig.driver.suspend();
      const late = Array.from({ length: 20 }, (_, i) => rig.driver.read(512 * i, 512));
      await suspended;
      const submitted = backend.log.length;
      assert.equal(backend.waiting.length, 0);
      for (let i = 0; i < 5; i++) await turn();
      assert.equal(backend.log.length, submitted);
      await rig.driver.resume();
      await Promise.all(writes);
      for (const [i, data] of (await Promise.all(late)).entries()) assert.equal(data[0], round + i);
    }
    await rig.close();
  });
}
