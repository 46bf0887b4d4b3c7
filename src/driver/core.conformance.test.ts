import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { MemoryBlockBackend } from "../backend/block/index.ts";
import { FeatureSet } from "../common/feature-set.ts";
import { BalloonDevice } from "../device/balloon.ts";
import { BlkDevice } from "../device/blk.ts";
import { ConsoleDevice } from "../device/console.ts";
import type { DeviceCore } from "../device/core.ts";
import * as balloon from "../spec/balloon.ts";
import * as blk from "../spec/blk.ts";
import * as console from "../spec/console.ts";
import { VIRTIO_F_SR_IOV, VIRTIO_F_SUSPEND, VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { Scripted, setUpDriver } from "../testing/driver-rig.ts";
import { LOOP_CFG_SIZE, LOOP_DEVICE_ID, LOOP_HOLDQ, LoopDevice, LoopDriver } from "../testing/loop-device.ts";
import { createRig, RIG_CONFIGS, testEnvironment } from "../testing/rig.ts";
import { statements } from "../testing/statements.ts";
import { BalloonDriver } from "./balloon.ts";
import { BlkDriver } from "./blk.ts";
import { ConsoleDriver } from "./console.ts";
import { type DriverContext, VirtioDriver } from "./core.ts";
import type { VirtQueue } from "./virtqueue.ts";

// What every driver does, seen from its transport.

const limit = { timeout: 30_000 };
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));
const FACILITIES = "driver: Basic Facilities of a Virtio Device";
const OPERATION = "driver: General Initialization And Device Operation";
const RESERVED = "driver: Reserved Feature Bits";
const ALL_BITS = FeatureSet.of(...Array.from({ length: 128 }, (_, i) => i));

const failing = (promise: Promise<unknown>): Promise<unknown> =>
  promise.then(
    () => assert.fail("it did not fail"),
    (error: unknown) => error,
  );

/** A driver's whole life: start, a broken device, suspension, restart, a failed start, removal. */
async function live(device: LoopDevice, driver: LoopDriver): Promise<void> {
  await driver.start();
  await driver.copy(Uint8Array.of(1));
  device.breakDown();
  await turn();
  await driver.settled();
  await driver.suspend();
  await driver.resume();
  await driver.restart();
  const offered = device.offeredFeatures;
  device.setOfferedFeatures(offered.without(VIRTIO_F_VERSION_1));
  await failing(driver.restart());
  device.setOfferedFeatures(offered);
  await driver.start();
  await driver.copy(Uint8Array.of(2));
  await driver.remove();
}

test(
  statements("no status bit is ever taken back except by a reset", `${FACILITIES} / Device Status Field #2`),
  limit,
  async () => {
    const { device, context, overrides, inner } = setUpDriver();
    const written: number[] = [];
    overrides.setStatus = (status) => {
      assert.equal(status & inner.getStatus(), inner.getStatus(), `${inner.getStatus()} became ${status}`);
      written.push(status);
      inner.setStatus(status);
    };
    await live(device, new LoopDriver(context));
    for (const status of [1, 3, 11, 15, 31, 129]) assert.ok(written.includes(status), `${status} was never written`);
  },
);

test(
  statements(
    "features are written between DRIVER and FEATURES_OK and at no other time",
    `${OPERATION} / Device Initialization #3`,
  ),
  limit,
  async () => {
    const { device, context, calls } = setUpDriver();
    await live(device, new LoopDriver(context));
    let last = "";
    let written = 0;
    for (const call of calls) {
      if (call === "setDriverFeatures") {
        assert.equal(last, "status 3");
        written++;
      }
      if (call.startsWith("status") || call === "reset") last = call;
    }
    assert.equal(written, 4);
  },
);

test(
  statements(
    "without a feature that it needs the driver sets FAILED and goes no further",
    `${FACILITIES} / Feature Bits #6`,
  ),
  limit,
  async () => {
    class Demanding extends VirtioDriver {
      constructor(context: DriverContext) {
        super(context, { name: "demanding", deviceIds: [LOOP_DEVICE_ID], features: [{ bit: 9, mandatory: true }] });
      }
      protected override onSetUp(): void {
        assert.fail("set up");
      }
    }
    for (const offered of [FeatureSet.of(VIRTIO_F_VERSION_1), FeatureSet.of(9), FeatureSet.EMPTY]) {
      const { device, context, calls, inner } = setUpDriver();
      device.setOfferedFeatures(offered);
      const driver = new Demanding(context);
      assert.match(String(await failing(driver.start())), /feature bit 9|VERSION_1/);
      assert.deepEqual(calls, ["reset", "status 1", "status 3", "deviceFeatures", "reset", "status 129"]);
      assert.equal(inner.getStatus() & 128, 128);
      assert.equal(driver.state, "failed");
    }
  },
);

test(
  statements(
    "of a device that offers every bit the driver takes VERSION_1 and what it knows, and never SR_IOV",
    `${RESERVED} #1`,
    `${RESERVED} #5`,
  ),
  limit,
  async () => {
    const { device, context } = setUpDriver();
    device.setOfferedFeatures(ALL_BITS);
    const driver = new LoopDriver(context);
    await driver.start();
    assert.equal(driver.features.has(VIRTIO_F_VERSION_1), true);
    assert.equal(driver.features.has(VIRTIO_F_SR_IOV), false);
    assert.deepEqual(device.features, driver.features);
    assert.deepEqual(await driver.copy(Uint8Array.of(3)), Uint8Array.of(3));
  },
);

interface Optional {
  readonly name: string;
  create(): DeviceCore;
  driver(context: DriverContext): VirtioDriver;
  /** Ranges of the configuration and the feature without which they are not to be read. */
  readonly fields: readonly (readonly [from: number, to: number, feature: number | undefined])[];
}

/** Reads every property of the driver, as a program that prints it would. */
function lookAtAll(driver: VirtioDriver): void {
  for (let proto: object | null = driver; proto !== null; proto = Object.getPrototypeOf(proto))
    for (const [name, { get }] of Object.entries(Object.getOwnPropertyDescriptors(proto)))
      if (get !== undefined && name !== "__proto__") get.call(driver);
}

const OPTIONAL: readonly Optional[] = [
  {
    name: "blk",
    create: () => {
      const backend = new MemoryBlockBackend({ capacity: 1 << 20 });
      return new BlkDevice({ backend, environment: testEnvironment });
    },
    driver: (context) => new BlkDriver(context),
    fields: [
      [0, 8, undefined],
      [blk.VIRTIO_BLK_CFG_SIZE_MAX, 12, blk.VIRTIO_BLK_F_SIZE_MAX],
      [blk.VIRTIO_BLK_CFG_SEG_MAX, 16, blk.VIRTIO_BLK_F_SEG_MAX],
      [blk.VIRTIO_BLK_CFG_CYLINDERS, 20, blk.VIRTIO_BLK_F_GEOMETRY],
      [blk.VIRTIO_BLK_CFG_BLK_SIZE, 24, blk.VIRTIO_BLK_F_BLK_SIZE],
      [blk.VIRTIO_BLK_CFG_PHYSICAL_BLOCK_EXP, 32, blk.VIRTIO_BLK_F_TOPOLOGY],
      [blk.VIRTIO_BLK_CFG_WRITEBACK, 33, blk.VIRTIO_BLK_F_CONFIG_WCE],
      [blk.VIRTIO_BLK_CFG_NUM_QUEUES, 36, blk.VIRTIO_BLK_F_MQ],
      [blk.VIRTIO_BLK_CFG_MAX_DISCARD_SECTORS, 48, blk.VIRTIO_BLK_F_DISCARD],
      [blk.VIRTIO_BLK_CFG_MAX_WRITE_ZEROES_SECTORS, 57, blk.VIRTIO_BLK_F_WRITE_ZEROES],
      [blk.VIRTIO_BLK_CFG_MAX_SECURE_ERASE_SECTORS, 72, blk.VIRTIO_BLK_F_SECURE_ERASE],
    ],
  },
  {
    name: "console",
    create: () => new ConsoleDevice({ environment: testEnvironment, cols: 80, rows: 25 }),
    driver: (context) => new ConsoleDriver(context),
    fields: [
      [console.VIRTIO_CONSOLE_CFG_COLS, 4, console.VIRTIO_CONSOLE_F_SIZE],
      [console.VIRTIO_CONSOLE_CFG_MAX_NR_PORTS, 8, console.VIRTIO_CONSOLE_F_MULTIPORT],
      [console.VIRTIO_CONSOLE_CFG_EMERG_WR, 12, console.VIRTIO_CONSOLE_F_EMERG_WRITE],
    ],
  },
  {
    name: "balloon",
    create: () => new BalloonDevice({ environment: testEnvironment, freePageReporting: true }),
    driver: (context) => new BalloonDriver(context, 0xaa),
    fields: [
      [balloon.VIRTIO_BALLOON_CFG_NUM_PAGES, 8, undefined],
      [balloon.VIRTIO_BALLOON_CFG_FREE_PAGE_HINT_CMD_ID, 12, balloon.VIRTIO_BALLOON_F_FREE_PAGE_HINT],
      [balloon.VIRTIO_BALLOON_CFG_POISON_VAL, 16, balloon.VIRTIO_BALLOON_F_PAGE_POISON],
    ],
  },
];

for (const { name, create, driver: make, fields } of OPTIONAL)
  test(
    statements(
      `${name}: optional fields of the configuration are read and written only where their feature is offered`,
      `${FACILITIES} / Device Configuration Space #2`,
    ),
    limit,
    async () => {
      const optional = create().offeredFeatures;
      let guarded = 0;
      const wrong = new Set<string>();
      for (const offered of [
        FeatureSet.of(VIRTIO_F_VERSION_1),
        ...[...optional].map((bit) => FeatureSet.of(VIRTIO_F_VERSION_1, bit)),
        ...[...optional].map((bit) => optional.without(bit).with(VIRTIO_F_VERSION_1)),
      ]) {
        const device = create();
        device.setOfferedFeatures(offered);
        const { context, overrides, inner } = setUpDriver(device);
        const check = (offset: number, size: number): void => {
          const of = fields.filter(([from, to]) => offset < to && offset + size > from);
          if (of.length === 0) wrong.add(`offset ${offset} is no field`);
          for (const [, , feature] of of) {
            if (feature === undefined) continue;
            if (!offered.has(feature)) wrong.add(`offset ${offset} without feature ${feature}`);
            guarded++;
          }
        };
        overrides.readConfig = (offset, size) => {
          check(offset, size);
          return inner.readConfig(offset, size);
        };
        overrides.writeConfig = (offset, size, value) => {
          check(offset, size);
          inner.writeConfig(offset, size, value);
        };
        const driver = make(context);
        // Without some features a driver refuses its device, which is as good.
        await driver.start().catch(() => undefined);
        if (driver.state === "ready") lookAtAll(driver);
        await driver.remove();
      }
      assert.deepEqual([...wrong], []);
      assert.ok(guarded > 0, "no optional field was ever read");
    },
  );

for (const transport of ["loopback", "pci", "mmio"] as const)
  test(
    statements(
      `${transport}: a configuration space larger than the driver knows is no reason to refuse`,
      `${FACILITIES} / Device Configuration Space #3`,
    ),
    limit,
    async () => {
      const config = RIG_CONFIGS.find((c) => c.transport === transport) ?? assert.fail();
      for (const configSize of [LOOP_CFG_SIZE, LOOP_CFG_SIZE + 1, 256, 2000]) {
        const { driver, close } = await createRig(new LoopDevice({ configSize }), LoopDriver.type, config);
        assert.equal(driver.value(), 0x000fedcb * 2 ** 32 + 0x89abcdef);
        driver.write(5);
        assert.deepEqual(await driver.copy(Uint8Array.of(3)), Uint8Array.of(3));
        await close();
      }
    },
  );

for (const transport of ["loopback", "pci", "mmio"] as const)
  test(
    statements(
      `${transport}: after a queue reset the driver waits until the device says that it is over, then sets the queue up wholly`,
      `${FACILITIES} / Virtqueues / Virtqueue Reset / Virtqueue Reset #1`,
      `${FACILITIES} / Virtqueues / Virtqueue Reset / Virtqueue Re-enable #1`,
    ),
    limit,
    async () => {
      const config = RIG_CONFIGS.find((c) => c.transport === transport) ?? assert.fail();
      const device = new LoopDevice();
      const { driver, close } = await createRig(device, LoopDriver.type, config);
      const held = driver.hold(Uint8Array.of(1));
      while (device.held.length === 0) await turn();
      device.borrowing = true;
      let over = false;
      const reset = driver.resetHoldQueue(8).then(() => {
        over = true;
      });
      let rejected = false;
      const lost = held.catch(() => {
        rejected = true;
      });
      for (let i = 0; i < 10; i++) await turn();
      assert.deepEqual(
        [over, rejected, driver.queues[LOOP_HOLDQ]?.inFlight],
        [false, false, 1],
        "its buffers stay in place",
      );
      device.release();
      await reset;
      await lost;
      assert.equal(device.queue(LOOP_HOLDQ)?.queue.size, 8);
      assert.deepEqual(device.queue(LOOP_HOLDQ)?.queue.state().availIndex, 0);
      device.finish();
      const again = driver.hold(Uint8Array.of(2));
      while (device.held.length === 0) await turn();
      device.finish();
      assert.deepEqual(await again, Uint8Array.of(2));
      await close();
    },
  );

test(
  statements("buffers that the device has are taken back only after it was reset", `${OPERATION} / Device Cleanup #2`),
  limit,
  async () => {
    for (const how of ["remove", "restart", "resetQueue"] as const) {
      const { context, device, calls } = setUpDriver();
      const driver = new Scripted(context);
      driver.setUp = () => void driver.queue(LOOP_HOLDQ);
      await driver.start();
      const queue = driver.queues[LOOP_HOLDQ] as VirtQueue;
      const address = Float64Array.of(driver.buffer(8).address);
      for (const token of [5, 6]) queue.add({ address, length: Uint32Array.of(8) }, 0, 0, 1, token);
      queue.kick();
      const transfer = failing(queue.transfer([], [driver.buffer(8)]));
      let back = 0;
      const calledAtReturn: string[] = [];
      void transfer.then(() => back++);
      Object.defineProperty(driver.log, "push", {
        value(...lines: string[]) {
          if (lines[0]?.startsWith("unused")) calledAtReturn.push(calls.at(-1) ?? "");
          return Array.prototype.push.apply(driver.log, lines);
        },
      });
      while (device.held.length < 3) await turn();
      assert.deepEqual([back, driver.log], [0, []]);
      if (how === "resetQueue") await driver.resetOf(queue);
      else await driver[how]();
      await transfer;
      assert.deepEqual(calledAtReturn, how === "resetQueue" ? ["resetQueue", "resetQueue"] : ["reset", "reset"]);
      assert.ok(driver.log.includes("unused 5") && driver.log.includes("unused 6"));
      assert.equal(device.finish(), 3);
    }
  },
);

test(statements("addresses that the device gets are physical ones", `${RESERVED} #3`), limit, async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.constantFrom(...RIG_CONFIGS.filter(({ ring }) => ring.has(VIRTIO_F_SUSPEND))),
      fc.nat(3),
      async (config, n) => {
        if (config.transport.endsWith("legacy")) return;
        const base = [0, 0x40000000, 2 ** 32, 2 ** 40][n] as number;
        const device = new LoopDevice();
        const { driver, memory, close } = await createRig(device, LoopDriver.type, config, { base });
        assert.equal(memory.regions[0]?.base, base);
        const bytes = Uint8Array.from({ length: 300 }, (_, i) => i & 0xff);
        assert.deepEqual(await driver.copy(bytes, 3), bytes);
        await close();
      },
    ),
    { numRuns: 20 },
  );
});
