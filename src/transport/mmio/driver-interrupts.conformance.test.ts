import assert from "node:assert/strict";
import { test } from "node:test";
import { MmioDriverRig } from "../../testing/mmio-log.ts";
import { statements } from "../../testing/statements.ts";

// Offsets are written out as in a guest's own headers, so that a wrong constant of ours cannot hide behind itself.
const limit = { timeout: 20_000 };
const LAYOUT = "Virtio Transport Options / Virtio Over MMIO / MMIO Device Register Layout";
const NOTIFICATIONS =
  "Virtio Transport Options / Virtio Over MMIO / MMIO-specific Initialization And Device Operation / Notifications From The Device";
const INTERRUPT_STATUS = 0x60;
const INTERRUPT_ACK = 0x64;
const BYTES = Uint8Array.of(1, 2, 3);
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

const MANGLED = [0, 0xfffffffc, 0x80000000, 4] as const;

/**
 * A driver that is up, in front of a device whose InterruptStatus has `undefinedBits` besides its own; for each interrupt, what the
 * driver did to InterruptStatus and InterruptACK, and when its handlers ran.
 */
async function setUp(undefinedBits = 0) {
  const rig = new MmioDriverRig();
  const { access } = rig;
  const interrupts: string[][] = [];
  let current: string[] | undefined;
  const note = (what: string) => void current?.push(what);
  access.answer = ({ offset, value }) => {
    if (offset !== INTERRUPT_STATUS) return value;
    note(`status ${value}`);
    return (value | undefinedBits) >>> 0;
  };
  access.onWrite = ({ offset, value }) => {
    if (offset === INTERRUPT_ACK) note(`ack ${value}`);
  };
  access.onInterrupt = (begins) => {
    if (begins) {
      current = [];
      interrupts.push(current);
    } else current = undefined;
  };
  const transport = rig.open();
  if (transport === undefined) throw new Error("there is no device");
  // What the handlers of the driver core are called for is noted on the way.
  const { onConfigChange, enableQueue } = transport;
  transport.onConfigChange = (listener) =>
    onConfigChange.call(transport, () => {
      note("config");
      listener();
    });
  transport.enableQueue = (index, config, interrupt) =>
    enableQueue.call(transport, index, config, () => {
      note(`queue ${index}`);
      interrupt();
    });
  rig.open = () => transport;
  const driver = await rig.start();
  /** Everything that a handler has to do with at once: both queues and the configuration. */
  const everything = async () => {
    const held = driver.hold(BYTES);
    while (rig.device.held.length === 0) await turn();
    interrupts.length = 0;
    const changed = driver.changed();
    const copied = driver.copy(BYTES);
    rig.device.config.update(() => undefined);
    rig.device.finish();
    assert.deepEqual((await Promise.all([held, copied, changed])).slice(0, 2), [BYTES, BYTES]);
  };
  return { rig, driver, interrupts, everything };
}

test(
  statements(
    "an interrupt: InterruptStatus is read, what it says is handled, and then acknowledged",
    `driver: ${LAYOUT} #17`,
    `driver: ${NOTIFICATIONS} #1`,
    `driver: ${NOTIFICATIONS} #2`,
  ),
  limit,
  async () => {
    const { rig, driver, interrupts, everything } = await setUp();
    await everything();
    assert.equal(interrupts.length, 1);
    const events = interrupts[0] as string[];
    assert.deepEqual(events.slice(0, 5), ["status 3", "config", "queue 0", "queue 1", "ack 3"]);
    // Only what was there is handled and acknowledged.
    interrupts.length = 0;
    await driver.copy(BYTES);
    assert.deepEqual(
      interrupts.map((list) => list.slice(0, 4)),
      [["status 1", "queue 0", "queue 1", "ack 1"]],
    );
    interrupts.length = 0;
    const changed = driver.changed();
    rig.device.config.update(() => undefined);
    await changed;
    assert.deepEqual(interrupts, [["status 2", "config", "ack 2"]]);
    await driver.remove();
  },
);

test(
  statements(
    "undefined bits of InterruptStatus are neither handled nor acknowledged",
    `driver: ${LAYOUT} #16`,
    `driver: ${LAYOUT} #18`,
  ),
  limit,
  async () => {
    for (const bits of MANGLED) {
      const { rig, driver, interrupts, everything } = await setUp(bits);
      await everything();
      assert.deepEqual((interrupts[0] as string[]).slice(0, 5), ["status 3", "config", "queue 0", "queue 1", "ack 3"]);
      const acknowledged = rig.log.filter(({ write, offset }) => write && offset === INTERRUPT_ACK);
      assert.deepEqual(
        acknowledged.filter(({ value }) => value === 0 || value > 3),
        [],
      );
      await driver.remove();
    }
    // An interrupt with nothing but undefined bits is none of the driver's.
    const { rig, driver, interrupts } = await setUp(0xfffffffc);
    const answer = rig.access.answer;
    let spoiled = 0;
    rig.access.answer = (access) => {
      if (access.offset !== INTERRUPT_STATUS || spoiled++ > 0) return answer(access);
      return 0xfffffffc;
    };
    await driver.copy(BYTES);
    assert.deepEqual(interrupts[0], []);
    assert.equal(spoiled > 1, true);
    await driver.remove();
  },
);

test("what happens while an interrupt is being handled is not lost with the acknowledgement", limit, async () => {
  for (const trouble of ["config", "queue", "reset"] as const) {
    const { rig, driver } = await setUp();
    const { device, access } = rig;
    driver.recover = false;
    const held = driver.hold(BYTES).catch(() => undefined);
    while (device.held.length === 0) await turn();
    const { onWrite } = access;
    // Between the handlers' look and the acknowledgement, once.
    access.onWrite = (write) => {
      onWrite(write);
      if (write.offset !== INTERRUPT_ACK) return;
      access.onWrite = onWrite;
      if (trouble === "config") device.config.update((view) => view.setUint8(0, 1));
      else if (trouble === "queue") device.finish();
      else device.breakDown();
    };
    if (trouble === "queue") await driver.copy(BYTES);
    else device.config.update((view) => view.setUint8(0, 2));
    if (trouble === "queue") assert.deepEqual(await held, BYTES);
    else {
      await turn();
      await turn();
      assert.deepEqual(driver.events.slice(2), trouble === "config" ? ["config", "config"] : ["config", "needs reset"]);
    }
    await driver.remove();
  }
});
