import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { FeatureSet } from "../common/feature-set.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import {
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_RING_RESET,
  VIRTIO_F_VERSION_1,
} from "../spec/features.ts";
import { type Enabled, Scripted, setUpDriver } from "../testing/driver-rig.ts";
import { LOOP_CFG_VALUE, LoopDevice, LoopDriver } from "../testing/loop-device.ts";
import { statements } from "../testing/statements.ts";
import { VirtioDriver } from "./core.ts";
import { DmaAllocator, type DmaBuffer } from "./dma.ts";
import { DRIVER_RING_FEATURES, negotiate } from "./features.ts";
import type { VirtQueue } from "./virtqueue.ts";

const limit = { timeout: 10_000 };
const STATUS = "driver: Basic Facilities of a Virtio Device / Device Status Field";
const FEATURES = "driver: Basic Facilities of a Virtio Device / Feature Bits";
const CONFIG = "driver: Basic Facilities of a Virtio Device / Device Configuration Space";
const INIT = "driver: General Initialization And Device Operation / Device Initialization";
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

test(
  statements("bring-up in the order of the spec; kicks wait for DRIVER_OK", `${INIT} #1`, `${INIT} #5`, `${STATUS} #1`),
  limit,
  async () => {
    const { calls, context } = setUpDriver();
    const driver = new Scripted(context);
    driver.setUp = () => {
      const queue = driver.queue(0);
      queue.add({ address: Float64Array.of(driver.buffer(8).address), length: Uint32Array.of(8) }, 0, 0, 1, 7);
      queue.kick();
      queue.kick();
      driver.write(1);
    };
    await driver.start();
    assert.deepEqual(calls, [
      "reset",
      "status 1",
      "status 3",
      "deviceFeatures",
      "setDriverFeatures",
      "status 11",
      "enableQueue",
      "writeConfig",
      "status 15",
      "notify",
    ]);
    while (driver.log.length === 0) await turn();
    assert.deepEqual(driver.log, ["used 7 0"]);
  },
);

test("what the device uses while DRIVER_OK is being set is not lost", limit, async () => {
  const { context } = setUpDriver(new LoopDevice(), "direct");
  const driver = new Scripted(context);
  driver.setUp = () => {
    const sg = { address: Float64Array.of(driver.buffer(8).address), length: Uint32Array.of(8) };
    driver.queue(0).add(sg, 0, 0, 1, 7);
    driver.queues[0]?.kick();
  };
  await driver.start();
  assert.deepEqual(driver.log, ["used 7 0"]);
});

test(
  statements("before FEATURES_OK the configuration is only read, and queues are not set up", `${INIT} #2`),
  limit,
  async () => {
    const { context } = setUpDriver();
    const driver = new Scripted(context);
    driver.validate = (features) => {
      assert.equal(driver.read(4), 0x89abcdef);
      assert.throws(() => driver.write(1), { code: "ERR_VIRTKIT_DRIVER_STATE" });
      assert.throws(() => driver.queue(0), { code: "ERR_VIRTKIT_DRIVER_STATE" });
      return features;
    };
    await driver.start();
    await assert.rejects(driver.start(), { code: "ERR_VIRTKIT_DRIVER_STATE" });
  },
);

test("onValidate may take features away and add none", limit, async () => {
  const { context, device } = setUpDriver();
  const driver = new Scripted(context);
  driver.validate = (features) => features.without(VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET);
  driver.setUp = () => void driver.queue(0);
  await driver.start();
  assert.equal(device.features.has(VIRTIO_F_RING_PACKED), false);
  await assert.rejects(driver.resetOf(driver.queues[0] as VirtQueue), { code: "ERR_VIRTKIT_FEATURES" });
  const greedy = new Scripted(setUpDriver().context);
  greedy.validate = (features) => features.with(0);
  await assert.rejects(greedy.start(), { code: "ERR_VIRTKIT_FEATURES" });
});

test(
  statements(
    "a set-up that fails: device reset, memory back, FAILED, and nothing more; a new start begins with a reset",
    `${INIT} #4`,
    `${STATUS} #3`,
  ),
  limit,
  async () => {
    const { calls, context, dma, free, inner } = setUpDriver();
    const driver = new Scripted(context);
    driver.setUp = () => {
      driver.queue(0);
      throw new Error("no room on this shelf");
    };
    await assert.rejects(driver.start(), /no room on this shelf/);
    assert.deepEqual(calls.slice(-3), ["enableQueue", "reset", "status 129"]);
    assert.deepEqual([driver.state, inner.getStatus(), dma.free], ["failed", 129, free]);
    assert.deepEqual(driver.log, ["torn down"]);
    driver.setUp = () => void driver.queue(0);
    calls.length = 0;
    await driver.start();
    assert.equal(driver.state, "ready");
    assert.deepEqual(calls.slice(0, 2), ["reset", "status 1"]);
  },
);

test("a queue that the device does not have, or that is set up already", limit, async () => {
  for (const indices of [[2], [0, 0]]) {
    const driver = new Scripted(setUpDriver().context);
    driver.setUp = () => {
      for (const index of indices) driver.queue(index);
    };
    await assert.rejects(driver.start(), { code: "ERR_VIRTKIT_QUEUE" });
  }
});

test("a driver of another device type is refused", limit, () => {
  const { context } = setUpDriver();
  class Other extends VirtioDriver {
    constructor() {
      super(context, { name: "other", deviceIds: [1], features: [] });
    }
    protected override onSetUp(): void {}
  }
  assert.throws(() => new Other(), { code: "ERR_VIRTKIT_DEVICE_ID" });
});

test(statements("fields that change while they are read are read again", `${CONFIG} #1`), limit, async () => {
  const { context, device } = setUpDriver();
  const driver = new Scripted(context);
  await driver.start();
  let reads = 0;
  const value = driver.fields(() => {
    const first = driver.read(4);
    if (reads++ < 3) device.config.update((view) => view.setUint32(LOOP_CFG_VALUE, reads, true));
    return [first, driver.read(4)];
  });
  assert.deepEqual(value, [3, 3]);
  assert.throws(() => driver.fields(() => void device.config.update(() => undefined)), { code: "ERR_VIRTKIT_CONFIG" });
});

test("buffers that the device never used come back when the driver is removed", limit, async () => {
  const { context, device, dma, free } = setUpDriver();
  const driver = new Scripted(context);
  driver.setUp = () => void driver.queue(1);
  await driver.start();
  const buffer = driver.buffer(16);
  const [queue] = driver.queues.filter((q) => q !== undefined);
  for (const token of [5, 6])
    assert.ok(queue?.add({ address: Float64Array.of(buffer.address), length: Uint32Array.of(16) }, 0, 0, 1, token));
  queue?.kick();
  while (device.held.length < 2) await turn();
  const pending = queue?.transfer([], [buffer]) as Promise<number>;
  const full = Array.from({ length: 20 }, () => queue?.transfer([], [buffer]) as Promise<number>);
  const rejected = [pending, ...full].map((transfer) => assert.rejects(transfer, { code: "ERR_VIRTKIT_RESET" }));
  await driver.remove();
  await Promise.all(rejected);
  assert.deepEqual(driver.log.sort(), ["torn down", "unused 5", "unused 6"]);
  dma.release(buffer);
  assert.equal(dma.free, free);
  await assert.rejects(driver.restart(), { code: "ERR_VIRTKIT_DRIVER_STATE" });
  await driver.remove();
  await assert.rejects(queue?.transfer([], [buffer]) as Promise<number>, { code: "ERR_VIRTKIT_RESET" });
  assert.equal(queue?.add({ address: Float64Array.of(4096), length: Uint32Array.of(1) }, 0, 0, 1, 1), false);
});

test("chains that never fit are refused, and do not hold up others", limit, async () => {
  const { context, device } = setUpDriver();
  const driver = new Scripted(context);
  driver.setUp = () => void driver.queue(1);
  await driver.start();
  const queue = driver.queues[1] as VirtQueue;
  const buffer = driver.buffer(2048);
  const pieces = Array.from({ length: 40 }, (_, i) => buffer.slice(i, 1));
  await assert.rejects(queue.transfer([], pieces), { code: "ERR_VIRTKIT_CHAIN" });
  const transfers = Array.from({ length: 30 }, () => queue.transfer([buffer], []));
  const refused = assert.rejects(queue.transfer(pieces, []), { code: "ERR_VIRTKIT_CHAIN" });
  const last = queue.transfer([buffer], []);
  for (let done = false; !done; ) {
    device.finish();
    await turn();
    done = device.held.length === 0 && queue.inFlight === 0;
  }
  await refused;
  assert.equal((await Promise.all([...transfers, last])).length, 31);
  const sg = { address: Float64Array.of(buffer.address), length: Uint32Array.of(1) };
  assert.throws(() => queue.add(sg, 0, 1, 0, 2 ** 31), { code: "ERR_VIRTKIT_TOKEN" });
});

test("transfers wait in line: a short one does not pass a long one that has no room yet", limit, async () => {
  const { context, device } = setUpDriver();
  const driver = new Scripted(context);
  driver.validate = (features) => features.without(VIRTIO_F_INDIRECT_DESC);
  driver.setUp = () => void driver.queue(1);
  await driver.start();
  const queue = driver.queues[1] as VirtQueue;
  const buffer = driver.buffer(16);
  const order: string[] = [];
  const send = (name: string, entries: number) =>
    queue
      .transfer(
        [],
        Array.from({ length: entries }, () => buffer),
      )
      .then(() => order.push(name));
  const all = Array.from({ length: 15 }, () => send("first", 1));
  all.push(send("long", 2), send("short", 1));
  assert.equal(queue.inFlight, 15);
  while (order.length < 17) {
    device.finish();
    await turn();
  }
  assert.deepEqual(order.slice(15), ["long", "short"]);
  await Promise.all(all);
});

test("a device that breaks the driver's rings is reset", limit, async () => {
  const { context, enabled } = setUpDriver();
  const driver = new LoopDriver({ ...context, ringFeatures: FeatureSet.EMPTY });
  await driver.start();
  const { config, interrupt } = enabled[0] as Enabled;
  const { memory } = context.transport;
  memory.write(config.device + 2, Uint8Array.of(5, 0));
  interrupt();
  assert.equal(driver.state, "needs-reset");
  await driver.settled();
  assert.deepEqual(driver.events, ["set up", "ready", "needs reset", "torn down", "set up", "ready"]);
  assert.deepEqual(await driver.copy(Uint8Array.of(1, 2)), Uint8Array.of(1, 2));
});

test("a device that breaks after each start is given up", limit, async () => {
  const { context, device, inner } = setUpDriver();
  class Doomed extends LoopDriver {
    protected override onReady(): void {
      super.onReady();
      device.breakDown();
    }
  }
  const driver = new Doomed(context);
  await driver.start();
  while (driver.state !== "failed") await turn();
  assert.equal(driver.events.filter((event) => event === "needs reset").length, 4);
  assert.equal(inner.getStatus() & 128, 128);
});

test(
  statements(
    "feature tables: only what is declared, offered, and has what it requires; other bits do no harm",
    `${FEATURES} #1`,
    `${FEATURES} #2`,
    `${FEATURES} #3`,
    `${FEATURES} #4`,
    `${FEATURES} #5`,
    `${FEATURES} #7`,
  ),
  limit,
  () => {
    const bit = fc.nat(12);
    const entry = fc.record({ bit, requires: fc.array(bit, { maxLength: 2 }) });
    const property = fc.property(
      fc.uniqueArray(entry, { selector: (e) => e.bit }),
      fc.uniqueArray(bit),
      (table, offeredBits) => {
        const offered = FeatureSet.of(VIRTIO_F_VERSION_1, 30, ...offeredBits);
        const accepted = negotiate(table, DRIVER_RING_FEATURES, offered);
        assert.ok(accepted.isSubsetOf(offered), "all offered");
        assert.ok(accepted.has(VIRTIO_F_VERSION_1) && !accepted.has(30), "known ones");
        for (const feature of accepted) {
          const declared = table.find((e) => e.bit === feature);
          assert.ok(feature === VIRTIO_F_VERSION_1 || declared !== undefined, "declared");
          assert.ok(declared?.requires.every((other) => accepted.has(other)) ?? true, "with what it requires");
        }
        // Nothing was left out that could have been kept.
        for (const e of table)
          if (offered.has(e.bit) && e.requires.length === 0) assert.ok(accepted.has(e.bit), "kept");
      },
    );
    fc.assert(property);
    assert.throws(
      () => negotiate([{ bit: 3, mandatory: true }], DRIVER_RING_FEATURES, FeatureSet.of(VIRTIO_F_VERSION_1)),
      {
        code: "ERR_VIRTKIT_FEATURES",
        message: /feature bit 3/,
      },
    );
  },
);

test("DMA memory: aligned, zeroed, never handed out twice, all of it comes back", { timeout: 30_000 }, () => {
  const step = fc.record({
    take: fc.boolean(),
    length: fc.integer({ min: 1, max: 600 }),
    align: fc.nat(9),
    which: fc.nat(),
  });
  const property = fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
    const memory = GuestMemory.allocate(0x4000);
    memory.regions[0]?.u8.fill(0xff);
    const dma = new DmaAllocator(memory, 0x1000, 0x2000);
    const live: DmaBuffer[] = [];
    for (const { take, length, align, which } of steps) {
      if (!take && live.length > 0) dma.release(live.splice(which % live.length, 1)[0] as DmaBuffer);
      else {
        let buffer: DmaBuffer;
        try {
          buffer = dma.alloc(length, 2 ** align);
        } catch (error) {
          assert.equal((error as { code?: string }).code, "ERR_VIRTKIT_DMA_EXHAUSTED");
          continue;
        }
        assert.equal(buffer.address % 2 ** align, 0);
        assert.ok(buffer.address >= 0x1000 && buffer.address + length <= 0x3000);
        assert.ok(buffer.bytes.every((byte) => byte === 0));
        const clash = live.some((b) => b.address < buffer.address + length && buffer.address < b.address + b.length);
        assert.ok(!clash);
        buffer.bytes.fill(0xff);
        live.push(buffer);
      }
    }
    for (const buffer of live) dma.release(buffer);
    assert.equal(dma.free, 0x2000);
    assert.equal(dma.alloc(0x2000).address, 0x1000);
  });
  fc.assert(property, { numRuns: 200 });
});

test("DMA memory: mistakes are said", limit, () => {
  const memory = GuestMemory.allocate(0x2000);
  assert.throws(() => new DmaAllocator(memory, 0x1000, 0x2000), { code: "ERR_VIRTKIT_DMA_RANGE" });
  const dma = new DmaAllocator(memory, 0x1000, 0x1000);
  const buffer = dma.alloc(10);
  assert.throws(() => buffer.slice(5, 6), { code: "ERR_VIRTKIT_DMA_RANGE" });
  assert.throws(() => dma.alloc(0x1000), { code: "ERR_VIRTKIT_DMA_EXHAUSTED" });
  dma.release(buffer);
  assert.throws(() => dma.release(buffer), { code: "ERR_VIRTKIT_DMA_FREE" });
  memory.setRegions([]);
  assert.throws(() => buffer.bytes, { code: "ERR_VIRTKIT_DMA_GONE" });
});
