import assert from "node:assert/strict";
import { test } from "node:test";
import type { Environment } from "../common/environment.ts";
import { BlkDriver } from "../driver/blk.ts";
import { RngDriver } from "../driver/rng.ts";
import { createRig, RIG_CONFIGS, type RigConfig, testEnvironment } from "../testing/rig.ts";
import { RING_FEATURES } from "./core.ts";
import { type DeviceDefinition, type DeviceHandlers, defineDevice } from "./custom/define.ts";
import { CustomDevice } from "./custom.ts";

const limit = { timeout: 20_000 };
const first = RIG_CONFIGS[0] as RigConfig;
const later = () => new Promise<void>((resolve) => void setImmediate(resolve));

/** An entropy device whose requests go to `onRequest`. */
const rng = (onRequest: DeviceHandlers["onRequest"], more: Partial<DeviceDefinition> = {}): DeviceDefinition => ({
  name: "own-rng",
  deviceId: 4,
  queueSizes: [16],
  create: () => ({ onRequest }),
  ...more,
});

function bench(
  definition: DeviceDefinition,
  properties: Record<string, string | number | boolean> = {},
  maxHeld = 2 ** 26,
) {
  const messages: string[] = [];
  const environment: Environment = {
    ...testEnvironment,
    log: { log: (level, message) => void messages.push(`${level}: ${message}`) },
  };
  const options = { definition, environment, properties, ringFeatures: RING_FEATURES, maxHeld, file: "folder/own.mjs" };
  return { device: new CustomDevice(options), messages };
}

/** 1, 2, 3, ... over all requests. */
function counting(): (room: number) => Uint8Array {
  let next = 0;
  return (room) => Uint8Array.from({ length: room }, () => ++next);
}

for (const config of RIG_CONFIGS)
  for (const when of ["at once", "later"] as const)
    test(`own device, ${config.transport}, ${config.name}: answers that come ${when}`, limit, async () => {
      const count = counting();
      const { device, messages } = bench(
        rng(when === "at once" ? ({ room }) => count(room) : ({ room }) => later().then(() => count(room))),
      );
      const { driver, close } = await createRig(device, RngDriver.type, config);
      const bytes = await driver.read(3000);
      assert.ok(bytes.every((byte, i) => byte === ((i + 1) & 0xff)));
      assert.deepEqual(messages, []);
      await close();
    });

/** A block device in a few lines: the driver's header and data in, data and status out. */
const blk = (more: Partial<DeviceDefinition> = {}): DeviceDefinition => {
  const bytes = new Uint8Array(64 * 1024);
  const config = new Uint8Array(60);
  config[0] = bytes.length / 512;
  return {
    name: "own-blk",
    deviceId: 2,
    queueSizes: [64],
    config,
    create: () => ({
      async onRequest({ data, room }) {
        const header = new DataView(data.buffer);
        const at = Number(header.getBigUint64(8, true)) * 512;
        await later();
        const answer = new Uint8Array(room);
        if (header.getUint32(0, true) === 1) bytes.set(data.subarray(16), at);
        else answer.set(bytes.subarray(at, at + room - 1));
        return answer;
      },
    }),
    ...more,
  };
};

for (const config of RIG_CONFIGS)
  test(`own device, ${config.transport}, ${config.name}: a disk, with data both ways`, limit, async () => {
    const { device } = bench(blk());
    const { driver, close } = await createRig(device, BlkDriver.type, config);
    assert.equal(driver.capacity, 64 * 1024);
    const data = Uint8Array.from({ length: 8192 }, (_, i) => i * 7);
    await Promise.all([driver.write(4096, data), driver.write(16384, data.slice().reverse())]);
    assert.deepEqual(Buffer.from(await driver.read(4096, 8192)), Buffer.from(data));
    assert.deepEqual(Buffer.from(await driver.read(16384, 8192)), Buffer.from(data).reverse());
    assert.equal(device.faults, 0);
    await close();
  });

test("own device: requests may be answered in any order", limit, async () => {
  const waiting: (() => void)[] = [];
  const { device } = bench(
    rng(({ room }) => new Promise((resolve) => void waiting.push(() => resolve(new Uint8Array(room).fill(5))))),
  );
  const { driver, close } = await createRig(device, RngDriver.type, { ...first, ring: first.ring });
  const reads = [1, 2, 3].map((length) => driver.read(length));
  while (waiting.length < 1) await later();
  for (let answered = 0; answered < 3; ) {
    await later();
    for (const answer of waiting.splice(0).reverse()) {
      answer();
      answered++;
    }
  }
  assert.deepEqual(
    (await Promise.all(reads)).map((bytes) => [...bytes]),
    [[5], [5, 5], [5, 5, 5]],
  );
  await close();
});

const FAULTS: readonly (readonly [what: string, onRequest: () => unknown, reason: RegExp])[] = [
  [
    "an exception",
    () => {
      throw new RangeError("boom");
    },
    /queue 0: onRequest\(\) failed: RangeError: boom; the device needs a reset/,
  ],
  ["a rejection", () => Promise.reject(new Error("no server")), /onRequest\(\) failed: Error: no server/],
  ["a rejection with nothing", () => Promise.reject(), /onRequest\(\) failed: undefined/],
  ["an answer that is text", () => "hello", /onRequest\(\) returned a string; return a Uint8Array, or nothing/],
  ["null", async () => null, /returned null; return a Uint8Array/],
  ["an answer that is too long", () => new Uint8Array(1e6), /returned 1000000 bytes where the driver has room for \d+/],
];

for (const [what, onRequest, reason] of FAULTS)
  test(`own device: ${what} breaks the device until the next reset, and nothing else`, limit, async () => {
    let works = false;
    const { device, messages } = bench(
      rng(({ room }) => (works ? new Uint8Array(room).fill(1) : (onRequest() as Uint8Array))),
    );
    const rig = await createRig(device, RngDriver.type, first);
    const read = rig.driver.read(16).catch((error: unknown) => error);
    while (device.broken === undefined) await later();
    assert.match(messages.join("\n"), reason);
    assert.equal(messages.length, 1);
    device.kick(0);
    await later();
    assert.equal(device.faults, 1);
    works = true;
    device.reset();
    assert.equal(device.broken, undefined);
    await rig.close();
    await read;
  });

test("own device: what is answered after a reset touches nothing", limit, async () => {
  let answer: ((bytes: Uint8Array) => void) | undefined;
  let resets = 0;
  const { device, messages } = bench(
    rng(() => undefined, {
      create: () => ({
        onRequest: () =>
          new Promise((resolve) => {
            answer = resolve;
          }),
        onReset: () => void resets++,
      }),
    }),
  );
  const { driver, memory, close } = await createRig(device, RngDriver.type, first);
  const read = driver.read(16).catch(() => undefined);
  while (answer === undefined) await later();
  const before = resets;
  device.reset();
  const image = memory.regions[0]?.u8.slice() ?? new Uint8Array(0);
  answer(new Uint8Array(16).fill(0xee));
  await later();
  assert.equal(Buffer.compare(memory.regions[0]?.u8 ?? new Uint8Array(0), image), 0);
  assert.equal(resets, before + 1);
  assert.deepEqual([device.faults, messages], [0, []]);
  await close();
  await read;
});

test("own device: a request that is longer than it takes breaks it before any of it is copied", limit, async () => {
  const { device, messages } = bench(blk({ maxRequest: 1024 }));
  const { driver, close } = await createRig(device, BlkDriver.type, first);
  await driver.write(0, new Uint8Array(512));
  const failed = driver.write(0, new Uint8Array(4096)).catch(() => undefined);
  while (device.broken === undefined) await later();
  assert.match(
    messages[0] ?? "",
    /queue 0: a request of 4112 bytes, and the device takes 1024; the device needs a reset/,
  );
  await close();
  await failed;
});

test("own device: requests wait in the ring while many answers are due", limit, async () => {
  const waiting: (() => void)[] = [];
  let held = 0;
  let most = 0;
  let asked = 0;
  const { device } = bench(
    blk({
      config: new Uint8Array(60).fill(0xff, 0, 4),
      create: () => ({
        onRequest: ({ room, data }) =>
          new Promise((resolve) => {
            asked += data.length;
            held += data.length;
            most = Math.max(most, held);
            waiting.push(() => {
              held -= data.length;
              resolve(new Uint8Array(room));
            });
          }),
      }),
    }),
    {},
    64 * 1024,
  );
  const { driver, close } = await createRig(device, BlkDriver.type, first);
  let done = false;
  const data = new Uint8Array(16 * 1024);
  const writes = Promise.all(Array.from({ length: 20 }, (_, i) => driver.write(i * 2 ** 20, data))).then(() => {
    done = true;
  });
  while (!done) {
    for (let turns = 0; turns < 5; turns++) await later();
    waiting.shift()?.();
  }
  await writes;
  assert.equal(asked, 20 * (data.length + 16));
  assert.ok(most > 32 * 1024 && most <= 64 * 1024, `${most}`);
  await close();
});

test("own device: configuration, its changes and what the driver may write", limit, () => {
  const wrote: string[] = [];
  let set = (_offset: number, _bytes: Uint8Array): void => undefined;
  const { device, messages } = bench(
    rng(() => undefined, {
      config: Uint8Array.of(1, 2, 3, 4),
      writableConfig: [[2, 1]],
      features: [0, 5, 60],
      create(context) {
        set = context.setConfig;
        return {
          onRequest: () => undefined,
          onConfigWritten: (offset, length) => {
            wrote.push(`${offset}+${length}: ${context.config().join(" ")}`);
            if (wrote.length > 1) throw new Error("enough");
          },
        };
      },
    }),
  );
  assert.deepEqual(
    [0, 5, 60, 1].map((bit) => device.offeredFeatures.has(bit)),
    [true, true, true, false],
  );
  assert.equal(device.config.read(0, 4), 0x04030201);
  set(1, Uint8Array.of(9));
  assert.equal(device.config.read(0, 4), 0x04030901);
  assert.throws(() => set(3, Uint8Array.of(1, 2)), {
    code: "ERR_VIRTKIT_MODULE",
    message: /2 bytes at 3 are not within the 4/,
  });
  device.config.write(0, 4, 0x55555555);
  assert.deepEqual(wrote, ["0+4: 1 9 85 4"]);
  assert.deepEqual(messages, []);
});

test("own device: properties have their defaults, or what they were given", limit, () => {
  const seen: unknown[] = [];
  const definition = defineDevice({
    name: "own",
    deviceId: 4,
    queueSizes: [2],
    properties: {
      text: { type: "string", default: "hello" },
      count: { type: "number" },
      room: { type: "size", default: 4096 },
      loud: { type: "boolean", default: true },
    },
    create({ properties, name }) {
      const { text, count, room, loud } = properties;
      seen.push(name, text.length, count + room, !loud);
      return { onRequest: () => undefined };
    },
  });
  bench(definition);
  bench(definition, { text: "", count: 7, loud: false });
  assert.deepEqual(seen, ["own", 5, 4096, false, "own", 0, 4103, true]);
});

test("own device: close() is called once, and may fail", limit, async () => {
  let closed = 0;
  const { device, messages } = bench(
    rng(() => undefined, {
      create: () => ({
        onRequest: () => undefined,
        close: async () => {
          closed++;
          throw new Error("too late");
        },
      }),
    }),
  );
  device.dispose();
  await device.close();
  await later();
  assert.equal(closed, 1);
  assert.deepEqual(messages, ["error: own-rng: close() failed: Error: too late"]);
});

const good = rng(() => undefined);
const REFUSED: readonly (readonly [what: string, definition: unknown, message: RegExp])[] = [
  [
    "a function",
    () => good,
    /is no device: it is a function; give an object with name, deviceId, queueSizes and create/,
  ],
  ["nothing in it", {}, /name is missing.*; deviceId is missing.*; queueSizes is missing.*; create is missing/],
  ["deviceId 0", { ...good, deviceId: 0 }, /deviceId is 0: give the device type, 1..63/],
  ["deviceId 1000", { ...good, deviceId: 1000 }, /deviceId is 1000/],
  ["deviceId as text", { ...good, deviceId: "rng" }, /deviceId is a string/],
  ["no queues", { ...good, queueSizes: [] }, /queueSizes is an array of 0/],
  [
    "a queue of 100",
    { ...good, queueSizes: [64, 100] },
    /queueSizes is \[64, 100\]; give powers of two from 2 to 32768/,
  ],
  [
    "a ring feature",
    { ...good, features: [34] },
    /features is an array of 1; give an array of bits of the device type/,
  ],
  ["a configuration of -1", { ...good, config: -1 }, /config is -1; give a Uint8Array/],
  ["a writable range outside", { ...good, config: 4, writableConfig: [[2, 3]] }, /within the 4 bytes of config/],
  ["too long requests", { ...good, maxRequest: 2 ** 40 }, /maxRequest is 1099511627776; give .* 1..67108864/],
  [
    "a property of no type",
    { ...good, properties: { a: { type: "int" } } },
    /properties\.a\.type is a string; give "string"/,
  ],
  [
    "a property's default",
    { ...good, properties: { a: { type: "number", default: "1" } } },
    /properties\.a\.default is a string; give a number/,
  ],
  ["a property's name", { ...good, properties: { "a b": { type: "number" } } }, /properties\.a b: a name/],
  [
    "create that throws",
    { ...good, create: () => assert.fail("boom") },
    /own-rng: create\(\) failed: AssertionError.*boom/,
  ],
  ["create that returns nothing", { ...good, create: () => undefined }, /create\(\) returned undefined/],
  ["create that is async", { ...good, create: async () => ({}) }, /create\(\) returned a promise/],
  ["no onRequest", { ...good, create: () => ({}) }, /whose onRequest is undefined; give a function/],
  ["onReset as text", { ...good, create: () => ({ onRequest() {}, onReset: "" }) }, /whose onReset is a string/],
];

for (const [what, definition, message] of REFUSED)
  test(`own device: ${what} is refused with the reason`, limit, () => {
    assert.throws(() => bench(definition as DeviceDefinition), { code: "ERR_VIRTKIT_MODULE", message });
  });
