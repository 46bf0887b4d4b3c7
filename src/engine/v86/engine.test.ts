import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { test } from "node:test";
import { V86Engine } from "./engine.ts";
import type { ResetCause } from "./events.ts";
import { FakeFunction } from "./fake-function.test.support.ts";
import { Monitor } from "./monitor.test.support.ts";

const LIMIT = { timeout: 20_000 };
const SLOT = 4 << 3;
const PM1_CONTROL = 0xb004;
const SLEEP_ENABLE = 0x2000;
const MARK = 0x400000;
/** Part of the firmware that the monitor does without when no interrupt comes. */
const FIRMWARE_PAGE = 0xf8000;

test("ACPI S5 ends the run and says so; other sleep states do not", LIMIT, async () => {
  const monitor = await Monitor.create();
  const { engine } = monitor;
  await monitor.start();
  await monitor.run("out16", PM1_CONTROL, SLEEP_ENABLE | (1 << 10));
  await monitor.run("out16", PM1_CONTROL, 0);
  assert.equal(engine.state, "running");
  const off = new Promise<void>((resolve) => engine.on("poweroff", resolve));
  monitor.post("out16", PM1_CONTROL, SLEEP_ENABLE);
  await off;
  assert.equal(engine.state, "off");
  assert.notEqual(monitor.peek(0x5000), 0, "the CPU stopped there");
  assert.throws(() => engine.start(), { code: "ERR_VIRTKIT_ENGINE_STATE" });
  await engine.destroy();
});

const resets: [string, ResetCause, (monitor: Monitor) => Promise<void>][] = [
  [
    "port 0xcf9",
    "guest",
    async (monitor) => {
      await monitor.run("out8", 0xcf9, 2);
      monitor.post("out8", 0xcf9, 6);
    },
  ],
  ["the keyboard controller", "guest", async (monitor) => monitor.post("out8", 0x64, 0xfe)],
  ["port 0x92", "guest", async (monitor) => monitor.post("out8", 0x92, 1)],
  ["a triple fault", "triple-fault", async (monitor) => monitor.post("tripleFault")],
];

for (const [name, cause, trigger] of resets) {
  test(`a reset by ${name} resets the functions and boots again`, LIMIT, async () => {
    const monitor = await Monitor.create();
    const { engine, memory } = { engine: monitor.engine, memory: monitor.engine.memory };
    const device = new FakeFunction("f");
    engine.attach(device, SLOT);
    const causes: ResetCause[] = [];
    engine.on("reset", (why) => causes.push(why));
    await monitor.start();
    await monitor.config("out16", SLOT, 4, 7);
    device.host?.setIntx(true);
    monitor.poke(MARK, 1);
    await trigger(monitor);
    await monitor.until(() => device.resets === 1 && monitor.peek(MARK) === 0);
    await monitor.start();
    assert.deepEqual(causes, [cause]);
    assert.equal(engine.memory, memory, "the memory object stays");
    assert.equal(await monitor.config("in32", SLOT, 0), 0x10f01af4, "the function is still there");
    assert.equal(await monitor.config("in16", SLOT, 4), 0);
    assert.equal(engine.state, "running");
    await engine.destroy();
  });
}

test("stop() in the reset listener holds the machine until start()", LIMIT, async () => {
  const monitor = await Monitor.create();
  const { engine } = monitor;
  const device = new FakeFunction("f");
  engine.attach(device, SLOT);
  await monitor.start();
  const asked = new Promise<void>((resolve) =>
    engine.on("reset", () => {
      engine.stop();
      resolve();
    }),
  );
  monitor.poke(MARK, 1);
  monitor.post("out8", 0x64, 0xfe);
  await asked;
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(device.resets, 0);
  assert.equal(engine.state, "stopped");
  engine.start();
  await monitor.until(() => monitor.peek(MARK) === 0);
  await monitor.start();
  assert.equal(device.resets, 1);
  await engine.destroy();
});

test("the reset button works on a guest that runs, stopped or switched itself off", LIMIT, async () => {
  const monitor = await Monitor.create();
  const { engine } = monitor;
  await monitor.start();
  await engine.reset();
  assert.equal(engine.state, "running");
  await monitor.start();
  engine.stop();
  await engine.reset();
  assert.equal(engine.state, "stopped");
  await monitor.start();
  const off = new Promise<void>((resolve) => engine.on("poweroff", resolve));
  monitor.post("out16", PM1_CONTROL, SLEEP_ENABLE);
  await off;
  await engine.reset();
  assert.equal(engine.state, "stopped");
  await monitor.start();
  await engine.destroy();
});

test("a device may press the reset button from inside its register", LIMIT, async () => {
  const monitor = await Monitor.create();
  const { engine } = monitor;
  const device = new FakeFunction("f");
  engine.attach(device, SLOT);
  await monitor.start();
  await monitor.config("out32", SLOT, 0x14, 0xe1000000);
  await monitor.config("out16", SLOT, 4, 7);
  let done: Promise<void> | undefined;
  let resetsInside = -1;
  device.doorbell = () => {
    done = engine.reset();
    resetsInside = device.resets;
  };
  monitor.poke(MARK, 1);
  monitor.post("write32", 0xe1000030, 1);
  await monitor.until(() => done !== undefined);
  await done;
  assert.equal(resetsInside, 0);
  assert.equal(device.resets, 1);
  assert.equal(monitor.peek(MARK), 0);
  await monitor.start();
  await engine.destroy();
});

test("a stopped guest stands still and goes on where it was", LIMIT, async () => {
  const monitor = await Monitor.create();
  const { engine } = monitor;
  await monitor.start();
  engine.stop();
  engine.stop();
  monitor.post("read32", 0x5030);
  for (let turn = 0; turn < 50; turn++) await new Promise((resolve) => setImmediate(resolve));
  assert.notEqual(monitor.peek(0x5000), 0, "the command was not taken");
  engine.start();
  engine.start();
  assert.equal(await monitor.result(), 1);
  await engine.destroy();
});

test("a CPU that halts with interrupts off is reported", LIMIT, async () => {
  const monitor = await Monitor.create();
  await monitor.start();
  const halted = new Promise<void>((resolve) => monitor.engine.on("halt", resolve));
  monitor.post("die");
  await halted;
  assert.equal(monitor.engine.state, "running");
  await monitor.engine.destroy();
});

test("an exception in a device is a fault of the machine, not of the process", LIMIT, async () => {
  const monitor = await Monitor.create();
  const { engine } = monitor;
  const device = new FakeFunction("f");
  engine.attach(device, SLOT);
  await monitor.start();
  await monitor.config("out32", SLOT, 0x14, 0xe1000000);
  await monitor.config("out16", SLOT, 4, 7);
  const cause = new Error("a bug");
  device.doorbell = () => {
    throw cause;
  };
  const fault = new Promise<Error>((resolve) => engine.on("fault", resolve));
  monitor.post("write32", 0xe1000030, 1);
  const error = await fault;
  assert.equal(error.cause, cause);
  assert.match(error.message, /a bug/);
  assert.equal(engine.state, "failed");
  assert.throws(() => engine.start(), { code: "ERR_VIRTKIT_ENGINE_STATE" });
  await engine.destroy();
});

test("serial output comes in pieces, and input waits until the guest reads it", LIMIT, async () => {
  const monitor = await Monitor.create({ serialPorts: 2 });
  const { engine } = monitor;
  const seen: [number, number[]][] = [];
  engine.on("serial", (port, bytes) => seen.push([port, [...bytes]]));
  await monitor.start();
  for (const byte of [0x41, 0x00, 0xff]) await monitor.run("out8", 0x3f8, byte);
  await monitor.run("out8", 0x2f8, 0x42);
  await monitor.until(() => seen.some(([port]) => port === 1));
  assert.deepEqual(
    seen.filter(([port]) => port === 0).flatMap(([, bytes]) => bytes),
    [0x41, 0x00, 0xff],
  );
  const input = Uint8Array.from({ length: 600 }, (_, i) => i & 0xff);
  engine.sendSerial(0, input);
  const got: number[] = [];
  while (got.length < input.length) {
    while (((await monitor.run("in8", 0x3fd)) & 1) === 0);
    got.push(await monitor.run("in8", 0x3f8));
  }
  assert.deepEqual(got, [...input]);
  assert.throws(() => engine.sendSerial(2, input), { code: "ERR_VIRTKIT_OPTION", message: /serialPorts/ });
  await engine.destroy();
});

/** v86 only restores a state in which the firmware has been at the BARs of the board's disk controller. */
async function sizeDisk(monitor: Monitor): Promise<void> {
  for (let bar = 0; bar < 4; bar++) await monitor.config("out32", 0x1e << 3, 0x10 + 4 * bar, 0xffffffff);
}

test("a saved state goes on where it was, with functions plugged in anew", LIMIT, async () => {
  const monitor = await Monitor.create();
  await monitor.start();
  await sizeDisk(monitor);
  monitor.poke(MARK, 0x600dcafe);
  const device = new FakeFunction("f");
  monitor.engine.attach(device, SLOT);
  assert.throws(() => monitor.engine.saveState(), { code: "ERR_VIRTKIT_STATE", message: /unplug/ });
  monitor.engine.detach(device);
  monitor.engine.memory.write(FIRMWARE_PAGE, new Uint8Array(4096));
  const state = monitor.engine.saveState();
  monitor.poke(MARK, 1);
  await monitor.engine.destroy();

  const restored = await Monitor.create({ state });
  restored.engine.attach(device, SLOT);
  assert.equal(restored.peek(MARK), 0x600dcafe);
  assert.equal(restored.peek(FIRMWARE_PAGE), 0, "the firmware is as it was, not fresh");
  await restored.start();
  assert.equal(await restored.run("read32", MARK), 0x600dcafe);
  assert.equal(await restored.config("in32", SLOT, 0), 0x10f01af4);
  await restored.engine.reset();
  assert.equal(restored.peek(MARK), 0, "a reset boots, and does not restore");
  await restored.start();
  await restored.engine.destroy();
});

test("a state that does not fit is refused", LIMIT, async () => {
  const monitor = await Monitor.create();
  await monitor.start();
  await sizeDisk(monitor);
  const state = monitor.engine.saveState();
  await monitor.engine.destroy();
  const code = "ERR_VIRTKIT_STATE";
  await assert.rejects(Monitor.create({ state, memorySize: 32 << 20 }), { code, message: /33554432/ });
  await assert.rejects(Monitor.create({ state: state.subarray(0, 5000) }), { code });
  await assert.rejects(Monitor.create({ state: new Uint8Array(100) }), { code });
  await assert.rejects(Monitor.create({ state: Uint8Array.of(0x28, 0xb5, 0x2f, 0xfd, 0, 0, 0, 0) }), { code });
});

test("two machines run side by side in one process", LIMIT, async () => {
  const monitors = await Promise.all([Monitor.create(), Monitor.create()]);
  const [left, right] = monitors as [Monitor, Monitor];
  const devices = monitors.map((monitor, i) => {
    const device = new FakeFunction(`f${i}`);
    monitor.engine.attach(device, SLOT);
    return device;
  });
  await Promise.all(monitors.map((monitor) => monitor.start()));
  await Promise.all(monitors.map((monitor, i) => monitor.run("write32", MARK, i + 1)));
  await Promise.all(monitors.map((monitor) => monitor.config("out32", SLOT, 0x14, 0xe1000000)));
  await left.config("out16", SLOT, 4, 2);
  await Promise.all(monitors.map((monitor) => monitor.run("write32", 0xe1000000, 5)));
  assert.equal(left.peek(MARK), 1);
  assert.equal(right.peek(MARK), 2);
  assert.equal(devices[0]?.taken().at(-1), "write 1+0/4=5");
  assert.equal(devices[1]?.taken().at(-1), "config 14/4");
  await left.engine.destroy();
  assert.equal(await right.run("read32", MARK), 2);
  await right.engine.destroy();
});

test("a destroyed machine is quiet and refuses to start", LIMIT, async () => {
  const monitor = await Monitor.create();
  const { engine } = monitor;
  const device = new FakeFunction("f");
  engine.attach(device, SLOT);
  await monitor.start();
  const resetting = engine.reset();
  await engine.destroy();
  await engine.destroy();
  await resetting;
  assert.equal(engine.state, "destroyed");
  assert.throws(() => engine.start(), { code: "ERR_VIRTKIT_ENGINE_STATE" });
});

test("a process with a destroyed machine ends by itself", LIMIT, async () => {
  const script = `
    import { Monitor } from ${JSON.stringify(new URL("./monitor.test.support.ts", import.meta.url).href)};
    const monitor = await Monitor.create();
    await monitor.start();
    await monitor.engine.destroy();`;
  const child = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "-e", script], { stdio: "inherit" });
  const code = await new Promise((resolve) => child.on("exit", resolve));
  assert.equal(code, 0);
});

test("options out of range are refused by name", LIMIT, async () => {
  const wasm = new Uint8Array(8);
  const bios = new Uint8Array(0x10000);
  const memorySize = 16 << 20;
  const refused = (options: object, code: string, message: RegExp) =>
    assert.rejects(V86Engine.create({ memorySize, bios, wasm, ...options }), { code, message });
  await refused({ memorySize: 1 << 20 }, "ERR_VIRTKIT_MEMORY_SIZE", /16 to 2047 MiB/);
  await refused({ memorySize: Number.NaN }, "ERR_VIRTKIT_MEMORY_SIZE", /16 to 2047 MiB/);
  await refused({ memorySize: 2 ** 31 }, "ERR_VIRTKIT_MEMORY_SIZE", /16 to 2047 MiB/);
  await refused({ bios: new Uint8Array(0) }, "ERR_VIRTKIT_OPTION", /bios/);
  await refused({ serialPorts: 5 }, "ERR_VIRTKIT_OPTION", /serialPorts/);
  await refused({ bootOrder: -1 }, "ERR_VIRTKIT_OPTION", /bootOrder/);
  await refused({}, "ERR_VIRTKIT_V86_WASM", /do not compile/);
});
