import assert from "node:assert/strict";
import { test } from "node:test";
import type { EntropySource } from "../backend/entropy/types.ts";
import type { Environment } from "../common/environment.ts";
import { RngDriver } from "../driver/rng.ts";
import { createEntropySource } from "../host/node/entropy.ts";
import { createRig, RIG_CONFIGS, type RigConfig, testEnvironment } from "../testing/rig.ts";
import { statements } from "../testing/statements.ts";
import { RING_FEATURES } from "./core.ts";
import { RngDevice, type RngDeviceOptions } from "./rng.ts";

const limit = { timeout: 20_000 };
const first = RIG_CONFIGS[0] as RigConfig;

/** 1, 2, 3, ... so that each byte can be told from the others. */
const counting = (): EntropySource => {
  let next = 0;
  return {
    name: "counting",
    fill: (into) => {
      for (let i = 0; i < into.length; i++) into[i] = ++next;
    },
  };
};

const rng = (options: Partial<RngDeviceOptions> = {}) =>
  new RngDevice({ source: counting(), environment: testEnvironment, ringFeatures: RING_FEATURES, ...options });

for (const config of RIG_CONFIGS) {
  test(
    statements(
      `rng, ${config.transport}, ${config.name}: bytes of the source, each once`,
      "device: Device Types / Entropy Device / Device Operation #1",
    ),
    limit,
    async () => {
      const device = rng();
      const { driver, close } = await createRig(device, RngDriver.type, config);
      const bytes = await driver.read(10_000);
      assert.ok(bytes.every((byte, i) => byte === ((i + 1) & 0xff)));
      assert.equal(device.bytes, 10_000);
      assert.equal((await driver.read(1))[0], 10_001 & 0xff);
      assert.equal((await driver.read(0)).length, 0);
      assert.equal(device.faults, 0);
      await close();
    },
  );
}

test("rng: several readers at once get different bytes", limit, async () => {
  const { driver, close } = await createRig(rng({ source: createEntropySource() }), RngDriver.type, first);
  const reads = await Promise.all(Array.from({ length: 20 }, () => driver.read(32)));
  assert.equal(new Set(reads.map((bytes) => Buffer.from(bytes).toString("hex"))).size, 20);
  await close();
});

test("rng: no more than maxBytes in a period, and nothing is lost", limit, async () => {
  const timers: [number, () => void][] = [];
  const environment: Environment = {
    ...testEnvironment,
    after: (milliseconds, task) => {
      timers.push([milliseconds, task]);
      return () => undefined;
    },
  };
  const device = rng({ maxBytes: 100, period: 1000, environment });
  const { driver, close } = await createRig(device, RngDriver.type, first);
  const reading = driver.read(250);
  for (const expected of [100, 200]) {
    for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve));
    assert.equal(device.bytes, expected);
    assert.equal(timers.length, 1);
    const [period, fire] = timers.pop() as [number, () => void];
    assert.equal(period, 1000);
    fire();
  }
  assert.ok((await reading).every((byte, i) => byte === i + 1));
  await close();
});

test("rng: a reset while requests wait for the next period", limit, async () => {
  const device = rng({ maxBytes: 10 });
  const { driver, close } = await createRig(device, RngDriver.type, first);
  const reading = assert.rejects(driver.read(20), { code: "ERR_VIRTKIT_RESET" });
  for (let i = 0; i < 20; i++) await new Promise((resolve) => setImmediate(resolve));
  await driver.restart();
  await reading;
  await close();
});

test("rng: options out of range are refused by name", limit, () => {
  assert.throws(() => rng({ maxBytes: 0 }), { code: "ERR_VIRTKIT_RNG_OPTION", message: /max-bytes=0/ });
  assert.throws(() => rng({ period: 0 }), { code: "ERR_VIRTKIT_RNG_OPTION", message: /period=0/ });
  assert.throws(() => rng({ queueSize: 3 }), { code: "ERR_VIRTKIT_RNG_OPTION", message: /queue-size=3/ });
});
