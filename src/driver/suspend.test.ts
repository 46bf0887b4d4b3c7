import assert from "node:assert/strict";
import { test } from "node:test";
import { FeatureSet } from "../common/feature-set.ts";
import { type Enabled, setUpDriver } from "../testing/driver-rig.ts";
import { LOOP_CFG_VALUE, LOOP_COPYQ, LoopDevice, LoopDriver } from "../testing/loop-device.ts";
import { statements } from "../testing/statements.ts";

const limit = { timeout: 10_000 };
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

const SUSPEND = "driver: General Initialization And Device Operation / Device Suspend";

/** Notes in which state it is told of a change. */
class NotingDriver extends LoopDriver {
  protected override onConfigChanged(): void {
    super.onConfigChanged();
    this.events.push(this.state);
  }
}

/** A loop driver whose device can be suspended; the calls of its transport from then on. */
async function suspendable(delivery: "deferred" | "direct") {
  const rig = setUpDriver(new LoopDevice(), delivery);
  const driver = new NotingDriver(rig.context);
  await driver.start();
  rig.calls.length = 0;
  return { ...rig, driver };
}

for (const delivery of ["deferred", "direct"] as const)
  test(
    statements(
      `${delivery}: the driver sees the device suspended, and makes nothing available, notifies and writes nothing until it resumed`,
      `${SUSPEND} #1`,
      `${SUSPEND} #2`,
      `${SUSPEND} #3`,
      `${SUSPEND} #4`,
    ),
    limit,
    async () => {
      const { driver, device, calls, enabled, context } = await suspendable(delivery);
      device.borrowing = true;
      let done = false;
      const suspended = driver.suspend().then(() => {
        done = true;
      });
      for (let i = 0; i < 5; i++) await turn();
      assert.equal(done, false, "the device still works on something, and says so in its status");
      const { config } = enabled[LOOP_COPYQ] as Enabled;
      const ring = new Uint8Array(config.device - config.desc);
      const before = ring.slice();
      const read = (into: Uint8Array) => context.transport.memory.read(config.desc, into);
      read(before);
      const copied = driver.copy(Uint8Array.of(1, 2, 3));
      device.release();
      await suspended;
      assert.equal(context.transport.getStatus(), 27);
      assert.throws(() => driver.write(1), { code: "ERR_VIRTKIT_DRIVER_STATE" });
      device.config.update((view) => view.setUint32(LOOP_CFG_VALUE, 5, true));
      for (let i = 0; i < 5; i++) await turn();
      assert.deepEqual(calls, ["status 31"]);
      assert.equal(driver.queues[LOOP_COPYQ]?.inFlight, 1);
      read(ring);
      // A packed ring: the first word that would make the chain available is unchanged.
      assert.deepEqual(ring.subarray(14, 16), before.subarray(14, 16));
      assert.deepEqual(driver.events, ["set up", "ready"]);

      await driver.resume();
      assert.deepEqual(await copied, Uint8Array.of(1, 2, 3));
      while (driver.events.length < 4) await turn();
      assert.deepEqual(calls, ["status 31", "status 31", "notify"]);
      assert.deepEqual(driver.events, ["set up", "ready", "config", "ready"]);
      driver.write(1);
    },
  );

test(statements("nothing is sent before the device says that it runs again", `${SUSPEND} #5`), limit, async () => {
  const { driver, calls, overrides } = await suspendable("deferred");
  await driver.suspend();
  const copied = driver.copy(Uint8Array.of(4));
  overrides.getStatus = () => 27;
  const resumed = driver.resume();
  for (let i = 0; i < 10; i++) await turn();
  assert.equal(driver.state, "suspended");
  assert.deepEqual(calls, ["status 31", "status 31"]);
  delete overrides.getStatus;
  await resumed;
  assert.deepEqual(await copied, Uint8Array.of(4));
  assert.deepEqual(calls, ["status 31", "status 31", "notify"]);
});

test("a device that breaks while it is suspended, states that do not fit, and removal", limit, async () => {
  const { driver, device, context } = await suspendable("deferred");
  await assert.rejects(driver.resume(), { code: "ERR_VIRTKIT_DRIVER_STATE" });
  await driver.suspend();
  await assert.rejects(driver.suspend(), { code: "ERR_VIRTKIT_DRIVER_STATE" });
  device.breakDown();
  await assert.rejects(driver.resume(), { code: "ERR_VIRTKIT_DRIVER_STATE" });
  await driver.settled();
  assert.equal(driver.state, "ready");
  assert.deepEqual(await driver.copy(Uint8Array.of(9)), Uint8Array.of(9));
  await driver.suspend();
  const lost = assert.rejects(driver.copy(Uint8Array.of(1)), { code: "ERR_VIRTKIT_RESET" });
  await driver.remove();
  await lost;
  assert.equal(context.transport.getStatus(), 0);
  const plain = new LoopDriver({ ...setUpDriver().context, ringFeatures: FeatureSet.EMPTY });
  await plain.start();
  await assert.rejects(plain.suspend(), { code: "ERR_VIRTKIT_FEATURES" });
});
