import assert from "node:assert/strict";
import { test } from "node:test";
import type { BalloonHost } from "../backend/balloon/types.ts";
import { FeatureSet } from "../common/feature-set.ts";
import { BalloonDriver } from "../driver/balloon.ts";
import {
  VIRTIO_BALLOON_DEFLATEQ,
  VIRTIO_BALLOON_F_PAGE_POISON,
  VIRTIO_BALLOON_F_PAGE_REPORTING,
  VIRTIO_BALLOON_F_STATS_VQ,
  VIRTIO_BALLOON_FREE_PAGE_VQ,
  VIRTIO_BALLOON_INFLATEQ,
  VIRTIO_BALLOON_REPORTING_VQ,
  VIRTIO_BALLOON_STATSQ,
} from "../spec/balloon.ts";
import { VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { RAW_DATA, RAW_DATA_BYTES, RawDevice } from "../testing/raw-device.ts";
import { createRig, RIG_CONFIGS, type RigConfig, testEnvironment } from "../testing/rig.ts";
import { statements } from "../testing/statements.ts";
import { BalloonDevice, type BalloonDeviceOptions } from "./balloon.ts";
import { RING_FEATURES } from "./core.ts";

const DEVICE = "device: Device Types / Memory Balloon Device / Device Operation";
const limit = { timeout: 20_000 };
const first = RIG_CONFIGS[0] as RigConfig;
const MIB = 1024 * 1024;
const PAGE = 4096;

/** A host that notes which pages it has. */
class NotedHost implements BalloonHost {
  readonly pages = new Set<number>();
  readonly calls: [string, number, number][] = [];

  release(address: number, length: number): void {
    this.calls.push(["release", address, length]);
    for (let at = address; at < address + length; at += PAGE) this.pages.add(at);
  }

  restore(address: number, length: number): void {
    this.calls.push(["restore", address, length]);
    for (let at = address; at < address + length; at += PAGE) this.pages.delete(at);
  }
}

const make = (options: Partial<BalloonDeviceOptions> = {}): BalloonDevice =>
  new BalloonDevice({ environment: testEnvironment, ringFeatures: RING_FEATURES, ...options });

/** A driver with statistics of its own, one of which nobody knows. */
const TALKATIVE: typeof BalloonDriver.type = {
  ...BalloonDriver.type,
  create(context) {
    const driver = new BalloonDriver(context);
    driver.statistics = () => [
      [5, 2 ** 40 + 1],
      [99, 1],
      [4, 12345],
    ];
    return driver;
  },
};

async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; !condition(); i++) {
    assert.ok(i < 100_000, "waited in vain");
    await new Promise((resolve) => setImmediate(resolve));
  }
}

for (const config of RIG_CONFIGS)
  test(`balloon, ${config.transport}, ${config.name}: inflate, deflate, statistics, reporting`, limit, async () => {
    const host = new NotedHost();
    const device = make({ host, freePageReporting: true });
    const { driver, dma, close } = await createRig(device, TALKATIVE, config);
    const free = dma.free;
    device.setTarget(5 * MIB + 100);
    await until(() => device.actual === 5 * MIB);
    assert.deepEqual([driver.actual, host.pages.size * PAGE, device.target], [5 * MIB, 5 * MIB, 5 * MIB]);
    assert.equal(dma.free, free - 5 * MIB);
    // The buffer that waits is older than the question, so what is read is what was asked for.
    const stats = await device.requestStats();
    assert.deepEqual(stats, { "stat-free-memory": 12345, "stat-total-memory": 2 ** 40 + 1 });
    assert.deepEqual(device.lastStats?.stats, stats);
    assert.equal((await Promise.all([device.requestStats(), device.requestStats()])).length, 2);
    device.setTarget(MIB);
    await until(() => device.actual === MIB);
    assert.equal(host.pages.size * PAGE, MIB);
    device.setTarget(0);
    await until(() => device.actual === 0);
    assert.deepEqual([host.pages.size, dma.free], [0, free]);
    const buffers = [dma.alloc(8 * PAGE, PAGE), dma.alloc(PAGE, PAGE)];
    await driver.reportFree(buffers);
    assert.equal(host.pages.size, 9);
    assert.equal(device.counters.reported, 9 * PAGE);
    assert.equal(device.faults, 0);
    await close();
  });

test("balloon: more than the guest has, and out of memory", limit, async () => {
  const device = make({ deflateOnOom: true, mustTellHost: true });
  const { driver, close } = await createRig(device, BalloonDriver.type, first);
  device.setTarget(64 * MIB);
  await until(() => driver.actual > 0);
  await driver.adjusted();
  assert.ok(driver.actual > 15 * MIB && driver.actual < 16 * MIB);
  const before = driver.actual;
  assert.equal(await driver.deflateOnOom(100_000), 25 * PAGE);
  assert.equal(device.actual, before - 25 * PAGE);
  await close();
  const strict = await createRig(make(), BalloonDriver.type, first);
  await assert.rejects(strict.driver.deflateOnOom(1), { code: "ERR_VIRTKIT_FEATURES" });
  await assert.rejects(strict.driver.reportFree([]), { code: "ERR_VIRTKIT_FEATURES" });
  await strict.close();
});

test(
  statements("balloon: reported pages that hold a value are left alone", `${DEVICE} / Free Page Reporting #1`),
  limit,
  async () => {
    const host = new NotedHost();
    const device = make({ host, freePageReporting: true });
    const { driver, dma, close } = await createRig(device, BalloonDriver.withPoison(0xaaaa5555), first);
    assert.ok(driver.features.has(VIRTIO_BALLOON_F_PAGE_POISON));
    assert.equal(device.config.read(12, 4), 0xaaaa5555);
    const page = dma.alloc(PAGE, PAGE);
    host.release = () => assert.fail("a page with a value was given away");
    await driver.reportFree([page]);
    assert.deepEqual([host.calls.length, device.counters.reported], [0, PAGE]);
    assert.equal(page.bytes[0], 0x55);
    await close();
  },
);

test("balloon: a reset forgets the balloon and ends questions; the target stays", limit, async () => {
  const device = make();
  const { driver, close } = await createRig(device, BalloonDriver.type, first);
  device.setTarget(MIB);
  await until(() => device.actual === MIB);
  await driver.restart();
  await until(() => device.actual === MIB);
  await close();
  const asked = assert.rejects(device.requestStats(), { code: "ERR_VIRTKIT_RESET" });
  device.reset();
  await asked;
  assert.deepEqual([device.target, device.actual], [MIB, 0]);
});

test("balloon: statistics are asked for again and again", limit, async () => {
  const timers: [number, () => void][] = [];
  const after = (milliseconds: number, task: () => void) => {
    timers.push([milliseconds, task]);
    return () => void timers.splice(0);
  };
  const device = make({ environment: { ...testEnvironment, after } });
  const { close } = await createRig(device, BalloonDriver.type, first);
  device.setStatsInterval(2);
  for (let round = 0; round < 3; round++) {
    assert.equal(timers.length, 1);
    const [milliseconds, fire] = timers.pop() as [number, () => void];
    assert.equal(milliseconds, 2000);
    const last = device.lastStats;
    fire();
    await until(() => device.lastStats !== last && timers.length === 1);
  }
  device.setStatsInterval(0);
  assert.equal(timers.length, 0);
  await close();
});

test("balloon: targets and intervals out of range are refused", limit, () => {
  const device = make();
  for (const bytes of [-1, Number.NaN, 2 ** 44])
    assert.throws(() => device.setTarget(bytes), { code: "ERR_VIRTKIT_BALLOON_TARGET" });
  for (const seconds of [-1, 0.5, 2 ** 31])
    assert.throws(() => device.setStatsInterval(seconds), { code: "ERR_VIRTKIT_BALLOON_INTERVAL" });
});

const RAW_FEATURES = FeatureSet.of(
  VIRTIO_F_VERSION_1,
  VIRTIO_BALLOON_F_STATS_VQ,
  VIRTIO_BALLOON_F_PAGE_POISON,
  VIRTIO_BALLOON_F_PAGE_REPORTING,
);
const END = RAW_DATA + RAW_DATA_BYTES;

function raw() {
  const host = new NotedHost();
  const device = make({ host, freePageReporting: true });
  const bench = new RawDevice(device, RAW_FEATURES);
  const pages = (queue: number, list: readonly number[], extra = 0): void => {
    const bytes = new Uint8Array(Uint32Array.from(list).buffer);
    bench.memory.write(RAW_DATA, bytes);
    const length = bytes.length + extra;
    bench.offer(
      queue,
      [
        { address: RAW_DATA, length: Math.min(3, length) },
        { address: RAW_DATA + 3, length: Math.max(0, length - 3) },
      ].filter((piece) => piece.length > 0),
      length === 0 ? [{ address: RAW_DATA, length: 4 }] : [],
    );
    bench.kick(queue);
  };
  return { host, device, bench, pages };
}

test("balloon: hostile page numbers are left out, the good ones among them count", limit, () => {
  const { host, device, bench, pages } = raw();
  const page = RAW_DATA / PAGE;
  pages(VIRTIO_BALLOON_INFLATEQ, [page, page + 1, 0xffffffff, END / PAGE, page + 3, page + 2]);
  assert.deepEqual(host.calls, [
    ["release", RAW_DATA, 2 * PAGE],
    ["release", RAW_DATA + 2 * PAGE, 2 * PAGE],
  ]);
  assert.equal(device.faults, 2);
  pages(VIRTIO_BALLOON_DEFLATEQ, [page], 2);
  assert.deepEqual(host.calls[2], ["restore", RAW_DATA, PAGE]);
  pages(VIRTIO_BALLOON_INFLATEQ, []);
  assert.equal(device.faults, 4);
  assert.deepEqual([bench.used(VIRTIO_BALLOON_INFLATEQ).length, bench.used(VIRTIO_BALLOON_DEFLATEQ).length], [2, 1]);
  assert.equal(bench.needsReset, undefined);
});

test("balloon: a run of pages never crosses from one region of memory into the next", limit, () => {
  const { host, pages } = raw();
  const border = (RAW_DATA + RAW_DATA_BYTES / 2) / PAGE;
  pages(VIRTIO_BALLOON_INFLATEQ, [border - 1, border, border + 1]);
  assert.deepEqual(
    host.calls.map(([, address, length]) => [address / PAGE - border, length / PAGE]),
    [
      [-1, 1],
      [0, 2],
    ],
  );
});

test("balloon: free pages come on queue 3 (older Linux) and 4, whole pages only", limit, () => {
  for (const queue of [VIRTIO_BALLOON_FREE_PAGE_VQ, VIRTIO_BALLOON_REPORTING_VQ]) {
    const { host, bench } = raw();
    bench.offer(
      queue,
      [],
      [
        { address: RAW_DATA + 100, length: 3 * PAGE },
        { address: RAW_DATA + 4 * PAGE + 1, length: PAGE },
        { address: RAW_DATA + 8 * PAGE, length: PAGE },
      ],
    );
    bench.kick(queue);
    assert.deepEqual(host.calls, [
      ["release", RAW_DATA + PAGE, 2 * PAGE],
      ["release", RAW_DATA + 8 * PAGE, PAGE],
    ]);
    assert.equal(bench.used(queue).length, 1);
  }
});

test(
  statements(
    "balloon: statistics buffers: odd sizes, unasked ones, several at once",
    `${DEVICE} / Memory Statistics #1`,
    `${DEVICE} / Memory Statistics #2`,
  ),
  limit,
  async () => {
    const { device, bench } = raw();
    const entry = (tag: number, value: number): number[] => [tag & 0xff, tag >> 8, value, 0, 0, 0, 0, 0, 0, 0];
    const buffer = (bytes: readonly number[]): void => {
      bench.memory.write(RAW_DATA, Uint8Array.from(bytes));
      bench.offer(VIRTIO_BALLOON_STATSQ, [{ address: RAW_DATA, length: bytes.length }], []);
      bench.kick(VIRTIO_BALLOON_STATSQ);
    };
    buffer(entry(4, 7));
    assert.equal(device.lastStats, undefined, "nobody asked");
    buffer(entry(4, 8));
    assert.deepEqual([device.faults, bench.used(VIRTIO_BALLOON_STATSQ).length], [1, 1]);
    const stats = device.requestStats();
    assert.equal(bench.used(VIRTIO_BALLOON_STATSQ).length, 2);
    buffer([...entry(5, 9), ...entry(0x1234, 1), ...entry(4, 6), 1, 2, 3]);
    assert.deepEqual(await stats, { "stat-total-memory": 9, "stat-free-memory": 6 });
    assert.equal(bench.needsReset, undefined);
  },
);

test("balloon: `actual` is the guest's to write, the target is not", limit, () => {
  const { device } = raw();
  const heard: number[] = [];
  device.onActual = (bytes) => heard.push(bytes);
  device.config.write(0, 4, 77);
  device.config.write(4, 4, 0xffffffff);
  assert.deepEqual([device.target, device.actual, heard], [0, 0xffffffff * PAGE, [0xffffffff * PAGE]]);
  for (let i = 0; i < 4; i++) device.config.write(4 + i, 1, i === 0 ? 2 : 0);
  assert.deepEqual(heard.slice(1), [2 * PAGE], "byte by byte, the last one counts");
});
