import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { MemoryCharBackend } from "../backend/char/memory.ts";
import type { CharBackend, CharSink } from "../backend/char/types.ts";
import { ConsoleDriver, type ConsoleDriverPort } from "../driver/console.ts";
import { createRig, RIG_CONFIGS, type RigConfig, testEnvironment } from "../testing/rig.ts";
import { statements } from "../testing/statements.ts";
import { ConsoleDevice, type ConsoleDeviceOptions } from "./console.ts";
import { RING_FEATURES } from "./core.ts";

const limit = { timeout: 20_000 };
const first = RIG_CONFIGS[0] as RigConfig;

const consoleDevice = (options: Partial<ConsoleDeviceOptions> = {}) =>
  new ConsoleDevice({ environment: testEnvironment, ringFeatures: RING_FEATURES, maxPorts: 4, ...options });

const rigOf = (device: ConsoleDevice, config: RigConfig = first) => createRig(device, ConsoleDriver.type, config);

/** A back end that takes a few bytes at a time, and more only when it is told to. */
class SlowBackend implements CharBackend {
  readonly name = "slow";
  taken: number[] = [];
  budget = 0;
  sink: CharSink | undefined;
  attach(sink: CharSink): void {
    this.sink = sink;
    sink.setOpen(true);
  }
  write(bytes: Uint8Array): number {
    const n = Math.min(bytes.length, this.budget);
    this.taken.push(...bytes.subarray(0, n));
    this.budget -= n;
    return n;
  }
  drained(): void {}
  guestOpen(): void {}
  async close(): Promise<void> {}
}

async function turns(condition?: () => boolean): Promise<void> {
  for (let i = 0; condition === undefined ? i < 10 : !condition(); i++) {
    assert.ok(i < 100_000, "waited in vain");
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** Reads until `length` bytes have come or the other end closes. */
async function readAll(port: ConsoleDriverPort, length: number): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for (let done = 0; done < length; ) {
    const bytes = await port.read();
    if (bytes.length === 0) break;
    parts.push(bytes);
    done += bytes.length;
  }
  return Buffer.concat(parts);
}

/** Takes everything out of a stream until `length` bytes have come. */
async function collect(backend: MemoryCharBackend, length: number): Promise<Buffer> {
  const parts: Uint8Array[] = [];
  for (let done = 0; done < length; ) {
    await turns(() => backend.stream.available > 0);
    const bytes = backend.stream.read(1000);
    parts.push(bytes);
    done += bytes.length;
  }
  return Buffer.concat(parts);
}

/** Sends everything into a stream, as fast as it takes it. */
async function feed(backend: MemoryCharBackend, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const taken = backend.stream.write(bytes.subarray(done));
    done += taken;
    if (taken === 0) await new Promise((resolve) => setImmediate(resolve));
  }
}

for (const config of RIG_CONFIGS) {
  test(
    `console, ${config.transport}, ${config.name}: bytes both ways through a port and a console, both ends slow`,
    limit,
    async () => {
      const device = consoleDevice();
      const terminal = new MemoryCharBackend({ capacity: 100 });
      const agent = new MemoryCharBackend({ capacity: 5000 });
      device.addPort({ kind: "console", backend: terminal });
      device.addPort({ kind: "serial", backend: agent, name: "org.example.agent.ä" });
      const { driver, close } = await rigOf(device, config);
      const port = await driver.find((p) => p.name === "org.example.agent.ä" && p.hostOpen);
      const hvc = await driver.find((p) => p.isConsole && p.isOpen);
      assert.deepEqual([hvc.id, port.id], [0, 1]);
      await port.open();
      await turns(() => agent.stream.guestOpen && terminal.stream.guestOpen);
      const sent = randomBytes(100_000);
      const typed = randomBytes(3000);
      const results = await Promise.all([
        readAll(port, sent.length),
        feed(agent, sent),
        collect(agent, sent.length),
        port.write(sent),
        readAll(hvc, typed.length),
        feed(terminal, typed),
        collect(terminal, typed.length),
        hvc.write(typed),
      ]);
      assert.deepEqual(results[0], sent);
      assert.deepEqual(results[2], sent);
      assert.deepEqual(results[4], typed);
      assert.deepEqual(results[6], typed);
      assert.equal(device.faults, 0);
      assert.equal(device.lostMessages, 0);
      await close();
    },
  );

  test(`console, ${config.transport}, ${config.name}: a plain console without MULTIPORT`, limit, async () => {
    const device = consoleDevice({ maxPorts: 1, cols: 80, rows: 25 });
    const terminal = new MemoryCharBackend();
    device.addPort({ kind: "console", backend: terminal });
    terminal.stream.write(Buffer.from("typed before the guest was up\n"));
    const { driver, close } = await rigOf(device, config);
    assert.equal(driver.multiport, false);
    const port = await driver.find(() => true);
    assert.deepEqual([port.cols, port.rows], [80, 25]);
    assert.equal((await readAll(port, 30)).toString(), "typed before the guest was up\n");
    await port.write(Buffer.from("hello"));
    assert.equal(Buffer.from(terminal.stream.read()).toString(), "hello");
    assert.equal(terminal.stream.guestOpen, true);
    const resized = new Promise((resolve) => {
      port.onResize = (cols, rows) => resolve([cols, rows]);
    });
    device.resize(132, 50);
    assert.deepEqual(await resized, [132, 50]);
    await close();
    assert.equal(terminal.stream.guestOpen, false);
  });
}

test(
  "console: what the back end does not take stays in the guest's chain, and goes on where it stopped",
  limit,
  async () => {
    const device = consoleDevice();
    const backend = new SlowBackend();
    device.addPort({ kind: "serial", backend });
    const { driver, close } = await rigOf(device);
    const port = await driver.find((p) => p.hostOpen);
    const data = randomBytes(5000);
    let done = false;
    const writing = port.write(data).then(() => {
      done = true;
    });
    await turns(() => device.port(1)?.stalled === true);
    while (backend.taken.length < data.length) {
      assert.equal(done, false);
      backend.budget = 700;
      backend.sink?.writable();
      await turns();
    }
    await writing;
    assert.deepEqual(Buffer.from(backend.taken), data);
    await close();
  },
);

test("console: a host that closes its end lets go of what it did not take", limit, async () => {
  const device = consoleDevice();
  const backend = new SlowBackend();
  device.addPort({ kind: "serial", backend });
  const { driver, close } = await rigOf(device);
  const port = await driver.find((p) => p.hostOpen);
  const states: boolean[] = [];
  port.onHostOpen = (open) => states.push(open);
  const writing = port.write(new Uint8Array(20_000));
  await turns(() => device.port(1)?.stalled === true);
  backend.sink?.setOpen(false);
  await writing;
  assert.equal((await port.read()).length, 0);
  backend.sink?.setOpen(true);
  await turns(() => states.length === 2);
  assert.deepEqual(states, [false, true]);
  await close();
});

test("console: the guest's open state reaches the host, and bytes wait until it opens", limit, async () => {
  const device = consoleDevice();
  const agent = new MemoryCharBackend({ capacity: 16 });
  const states: boolean[] = [];
  agent.stream.onGuestOpen = (open) => states.push(open);
  device.addPort({ kind: "serial", backend: agent });
  const { driver, close } = await rigOf(device);
  const port = await driver.find((p) => p.hostOpen);
  assert.equal(agent.stream.write(Buffer.alloc(20, 7)), 16);
  await turns();
  assert.equal(agent.stream.write(Buffer.alloc(1)), 0);
  let writable = 0;
  agent.stream.onWritable = () => writable++;
  await port.open();
  assert.equal((await readAll(port, 16)).length, 16);
  assert.equal(writable, 1);
  await port.close();
  await turns(() => states.length === 2);
  assert.deepEqual(states, [true, false]);
  await close();
});

test("console: ports come and go while the driver runs, numbers are used again", limit, async () => {
  const device = consoleDevice();
  const { driver, close } = await rigOf(device);
  for (let round = 0; round < 3; round++) {
    const agent = new MemoryCharBackend();
    assert.equal(device.addPort({ kind: "serial", backend: agent, name: `round${round}` }).id, 1);
    const port = await driver.find((p) => p.name === `round${round}` && p.hostOpen);
    await port.open();
    await port.write(Buffer.from("x"));
    await turns(() => agent.stream.available === 1);
    agent.stream.write(Buffer.from("y"));
    assert.equal(Buffer.from(await port.read()).toString(), "y");
    const reading = port.read();
    device.removePort(1);
    assert.equal((await reading).length, 0);
    assert.equal(port.removed, true);
    assert.equal(driver.ports.size, 0);
    await assert.rejects(port.write(Buffer.from("z")), { code: "ERR_VIRTKIT_CONSOLE_PORT" });
  }
  assert.equal(device.faults, 0);
  await close();
});

test("console: removing a port gives a stalled chain back", limit, async () => {
  const device = consoleDevice();
  device.addPort({ kind: "serial", backend: new SlowBackend() });
  const { driver, close } = await rigOf(device);
  const port = await driver.find((p) => p.hostOpen);
  const writing = port.write(new Uint8Array(100));
  await turns(() => device.port(1)?.stalled === true);
  device.removePort(1);
  await writing;
  await close();
});

test("console: sizes reach each console port", limit, async () => {
  const device = consoleDevice({ cols: 100, rows: 30 });
  device.addPort({ kind: "console", backend: new MemoryCharBackend() });
  device.addPort({ kind: "console", backend: new MemoryCharBackend() });
  const { driver, close } = await rigOf(device);
  assert.deepEqual(driver.size, { cols: 100, rows: 30 });
  const port = await driver.find((p) => p.id === 0 && p.cols > 0);
  assert.deepEqual([port.cols, port.rows], [100, 30]);
  const other = await driver.find((p) => p.id === 1 && p.isOpen);
  device.resize(20, 10, 1);
  await turns(() => other.cols === 20);
  assert.deepEqual([other.rows, port.cols], [10, 100]);
  device.resize(90, 40);
  await turns(() => port.cols === 90);
  assert.deepEqual(driver.size, { cols: 90, rows: 40 });
  await close();
});

test(
  statements(
    "console: emergency write works before anything is set up",
    "device: Device Types / Console Device / Device Initialization #1",
  ),
  limit,
  async () => {
    const device = consoleDevice();
    const terminal = new MemoryCharBackend();
    device.addPort({ kind: "console", backend: terminal });
    device.config.write(8, 4, 0xffffff41);
    device.config.write(8, 1, 0x42);
    device.config.write(9, 1, 0x43);
    assert.equal(Buffer.from(terminal.stream.read()).toString(), "AB");
    const { driver, close } = await rigOf(device);
    driver.emergencyWrite(0x58);
    assert.equal(Buffer.from(terminal.stream.read()).toString(), "X");
    assert.equal(device.config.read(8, 4), 0);
    await close();
  },
);

test("console: a reset forgets what was stalled and announces the ports anew", limit, async () => {
  const device = consoleDevice();
  const backend = new SlowBackend();
  device.addPort({ kind: "serial", backend, name: "agent" });
  const { driver, close } = await rigOf(device);
  const port = await driver.find((p) => p.name === "agent" && p.hostOpen);
  const writing = assert.rejects(port.write(new Uint8Array(100)), { code: "ERR_VIRTKIT_RESET" });
  await turns(() => device.port(1)?.stalled === true);
  await driver.restart();
  await writing;
  backend.budget = 1000;
  backend.sink?.writable();
  const again = await driver.find((p) => p.name === "agent" && p.hostOpen && p !== port);
  await again.write(Uint8Array.of(1, 2, 3));
  assert.deepEqual(backend.taken, [1, 2, 3]);
  await close();
});

test("console: ports that cannot be are refused by name", limit, () => {
  const device = consoleDevice({ maxPorts: 2 });
  const backend = () => new MemoryCharBackend();
  assert.throws(() => device.addPort({ kind: "serial", id: 0, backend: backend() }), /nr=0 is for a virtconsole/);
  assert.throws(() => device.addPort({ kind: "serial", id: 2, backend: backend() }), /nr=2 is out of range/);
  device.addPort({ kind: "serial", backend: backend() });
  assert.throws(() => device.addPort({ kind: "serial", backend: backend() }), /no free port/);
  assert.throws(() => device.addPort({ kind: "console", id: 1, backend: backend() }), /nr=1 is in use/);
  assert.throws(() => device.removePort(0), { code: "ERR_VIRTKIT_CONSOLE_PORT" });
  assert.throws(() => consoleDevice({ maxPorts: 512 }), /max_ports=512/);
  assert.throws(() => consoleDevice({ queueSize: 3 }), /queue-size=3/);
  assert.throws(() => device.resize(70_000, 1), /70000x1/);
});
