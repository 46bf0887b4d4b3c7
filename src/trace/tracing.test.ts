import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { traceLine } from "./json-lines.ts";
import { LatencyHistogram } from "./latency.ts";
import { TraceStats } from "./stats.ts";
import { statsTable } from "./stats-table.ts";
import { type TraceSink, Tracing } from "./tracing.ts";
import type { TraceEvent } from "./types.ts";

const limit = { timeout: 10_000 };

/** Notes what it gets, as "TIME DEVICE KIND". */
const noted = (into: string[]): TraceSink => ({
  record: (time, device, { kind }) => void into.push(`${time} ${device} ${kind}`),
});

const KICK: TraceEvent = { kind: "kick", queue: 0, register: "notify" };
const RESET: TraceEvent = { kind: "status", value: 0, names: "" };

test("each sink gets what its filter lets through, with the time since the start", limit, () => {
  let now = 100;
  const tracing = new Tracing(() => now);
  const all: string[] = [];
  const some: string[] = [];
  tracing.addSink(noted(all));
  tracing.addSink(noted(some), { devices: ["d0", "virtio-rng-pci"], kinds: ["kick"] });
  const d0 = tracing.tracer("d0", "virtio-blk-pci");
  const rng = tracing.tracer("r", "virtio-rng-pci");
  const other = tracing.tracer("d1", "virtio-blk-pci");
  now = 101.5;
  for (const tracer of [d0, rng, other]) {
    tracer?.emit(KICK);
    tracer?.emit(RESET);
  }
  assert.deepEqual(
    all,
    ["d0", "r", "d1"].flatMap((name) => [`1500 ${name} kick`, `1500 ${name} status`]),
  );
  assert.deepEqual(some, ["1500 d0 kick", "1500 r kick"]);
});

test("a device that nobody wants has no tracer", limit, () => {
  const tracing = new Tracing(() => 0);
  assert.equal(tracing.tracer("d0"), undefined);
  tracing.addSink(noted([]), { devices: ["d1"] });
  assert.equal(tracing.tracer("d0", "virtio-blk-pci"), undefined);
  assert.equal(tracing.tracer("d1")?.device, "d1");
});

test("devices of one name are told apart, until one is gone", limit, () => {
  const tracing = new Tracing(() => 0);
  tracing.addSink(noted([]));
  const first = tracing.tracer("disk");
  assert.equal(first?.device, "disk");
  assert.equal(tracing.tracer("disk")?.device, "disk#2");
  assert.equal(tracing.tracer("disk")?.device, "disk#3");
  first?.close();
  assert.equal(tracing.tracer("disk")?.device, "disk");
});

test("a line is a JSON object, whatever the device is called", limit, () => {
  fc.assert(
    fc.property(fc.string(), fc.float({ min: 0, max: 1e9, noNaN: true }), (device, time) => {
      const line = traceLine(time, device, KICK);
      assert.equal(line.indexOf("\n"), line.length - 1);
      const record = JSON.parse(line);
      assert.ok(Math.abs(record.time - time) <= 0.06);
      assert.deepEqual(record, { time: record.time, device, ...KICK });
    }),
  );
});

test("a quantile is never too low, and at most a bucket too high", limit, () => {
  const latencies = fc.array(fc.float({ min: 1, max: 1e6, noNaN: true }), { minLength: 1, maxLength: 50 });
  fc.assert(
    fc.property(latencies, fc.float({ min: 0, max: 1, noNaN: true }), (list, share) => {
      const histogram = new LatencyHistogram();
      for (const latency of list) histogram.add(latency);
      const sorted = [...list].sort((a, b) => a - b);
      const exact = sorted[Math.max(0, Math.ceil(share * list.length) - 1)] ?? 0;
      const value = histogram.quantile(share);
      assert.ok(value >= exact * 0.9999 && value <= exact * 2 ** (1 / 8) * 1.0001, `${value} for ${exact}`);
      assert.equal(
        histogram.octaves().reduce((sum, { count }) => sum + count, 0),
        list.length,
      );
      for (const { from, to } of histogram.octaves()) assert.ok(to === 2 * from || (from === 0 && to === 2));
    }),
  );
  assert.equal(new LatencyHistogram().quantile(0.5), 0);
});

const pop = (head: number): TraceEvent => ({
  kind: "pop",
  queue: 1,
  head,
  readable: 2,
  writable: 1,
  readableBytes: 100,
  writableBytes: 1,
});
const push = (head: number, written: number): TraceEvent => ({ kind: "push", queue: 1, head, written });

test("counters and latencies of a queue", limit, () => {
  const stats = new TraceStats();
  const feed = (time: number, ...events: TraceEvent[]): void => {
    for (const event of events) stats.record(time, "d0", event);
  };
  feed(0, { kind: "queue", queue: 1, register: "queue_enable", value: 1 });
  feed(10, { kind: "kick", queue: 1 }, pop(3), pop(4), pop(5), { kind: "unpop", queue: 1, count: 1 });
  feed(30, push(4, 1), push(3, 7), { kind: "interrupt", queue: 1, by: "intx" }, { kind: "interrupt", by: "intx" });
  feed(50, pop(5), { kind: "queue", queue: 1, state: "stop" }, push(5, 0));
  feed(60, { kind: "fault", reason: "why", fatal: false });
  const [queue, ...more] = stats.queues;
  assert.deepEqual(more, []);
  const { latency, ...counters } = queue ?? assert.fail();
  assert.deepEqual(counters, {
    ...{ device: "d0", queue: 1, kicks: 1, popped: 3, pushed: 3 },
    ...{ readableBytes: 400, writtenBytes: 8, interrupts: 1 },
  });
  assert.equal(latency.count, 2);
  assert.equal(latency.max, 20);
});

test("the table has a row a queue that was used, and a histogram", limit, () => {
  const stats = new TraceStats();
  assert.equal(statsTable(stats), "No queue was used.\n");
  stats.record(0, "d0", { kind: "queue", queue: 0, state: "stop" });
  for (let head = 0; head < 9; head++) {
    stats.record(head * 100, "disk", pop(head));
    stats.record(head * 100 + (head === 8 ? 90 : 20), "disk", push(head, 1));
  }
  stats.record(0, "disk", { kind: "fault", reason: "why", fatal: false });
  assert.deepEqual(statsTable(stats).split("\n"), [
    "device  queue  kicks  chains  bytes read  bytes written  interrupts",
    "disk        1      0       9         900              9           0",
    "disk: 1 rules broken by the driver",
    "",
    "disk, queue 1: µs from pop to push; 50 % within 21, 90 % within 90, 99 % within 90, at most 90",
    `        16 .. 32         ${"#".repeat(40)} 8`,
    `        32 .. 64         ${" ".repeat(40)} 0`,
    `        64 .. 128        ${"#####".padEnd(40)} 1`,
    "",
  ]);
});
