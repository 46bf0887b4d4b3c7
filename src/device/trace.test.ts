import assert from "node:assert/strict";
import { test } from "node:test";
import { BLOCK_WRITE } from "../backend/block/types.ts";
import { FeatureSet } from "../common/feature-set.ts";
import { VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT } from "../spec/blk.ts";
import { VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { ManualBlockBackend } from "../testing/manual-block.ts";
import { RAW_DATA, RawDevice } from "../testing/raw-device.ts";
import { testEnvironment } from "../testing/rig.ts";
import type { TraceEvent } from "../trace/types.ts";
import { BlkDevice } from "./blk.ts";

const limit = { timeout: 10_000 };
const SLOT = 0x1000;

interface Given {
  readonly maxInFlight?: number;
}

/** A disk of 128 sectors whose every event is noted. */
function disk(given: Given = {}) {
  const events: TraceEvent[] = [];
  const backend = new ManualBlockBackend({ capacity: 64 * 1024 });
  const device = new BlkDevice({ backend, environment: testEnvironment, ...given });
  device.tracer = { emit: (event) => void events.push(event) };
  const raw = new RawDevice(device, FeatureSet.of(VIRTIO_F_VERSION_1, VIRTIO_BLK_F_FLUSH), { size: 16 });
  const offer = (i: number, type: number, sector: number, bytes: number): void => {
    const at = RAW_DATA + i * SLOT;
    const header = new DataView(new ArrayBuffer(16));
    header.setUint32(0, type, true);
    header.setUint32(8, sector, true);
    raw.memory.write(at, new Uint8Array(header.buffer));
    const data = bytes === 0 ? [] : [{ address: at + 512, length: bytes }];
    const reads = type === VIRTIO_BLK_T_IN;
    const out = [{ address: at, length: 16 }, ...(reads ? [] : data)];
    raw.offer(0, out, [...(reads ? data : []), { address: at + 32, length: 1 }]);
  };
  const take = (): TraceEvent[] => events.splice(0);
  return { backend, device, raw, offer, take };
}

/** Kind and what tells events of a kind apart. */
const brief = (events: readonly TraceEvent[]): string[] =>
  events.map((event) => {
    const head = "head" in event ? ` ${event.head}` : "slot" in event ? ` ${event.slot}` : "";
    return `${event.kind}${head}`;
  });

test("a write, from pop to push", limit, () => {
  const { backend, raw, offer, take } = disk();
  take();
  offer(0, VIRTIO_BLK_T_OUT, 3, 1024);
  raw.kick(0);
  assert.deepEqual(take(), [
    { kind: "pop", queue: 0, head: 0, readable: 2, writable: 1, readableBytes: 1040, writableBytes: 1 },
    { kind: "request-begin", queue: 0, head: 0, type: "OUT", sector: 3, length: 1024 },
    { kind: "io-begin", slot: 0, op: "write", offset: 1536, length: 1024 },
  ]);
  backend.answerAll();
  assert.deepEqual(take(), [
    { kind: "io-end", slot: 0, result: "ok" },
    { kind: "request-end", queue: 0, head: 0, status: "OK" },
    { kind: "push", queue: 0, head: 0, written: 1 },
  ]);
});

test("neighbours are merged; a flush, a failure, a type that there is not, a sector past the end", limit, () => {
  const { backend, raw, offer, take } = disk();
  take();
  for (const i of [0, 1, 2]) offer(i, VIRTIO_BLK_T_IN, i, 512);
  raw.kick(0);
  const events = take();
  const heads = events.flatMap((event) => (event.kind === "pop" ? [event.head] : []));
  assert.deepEqual(brief(events), [
    ...heads.map((head) => `pop ${head}`),
    `request-begin ${heads[0]}`,
    `request-begin ${heads[1]}`,
    `merge ${heads[1]}`,
    `request-begin ${heads[2]}`,
    `merge ${heads[2]}`,
    "io-begin 0",
  ]);
  assert.ok(events.every((event) => event.kind !== "merge" || event.into === heads[0]));
  assert.deepEqual(events.at(-1), { kind: "io-begin", slot: 0, op: "read", offset: 0, length: 1536 });
  backend.fail = ({ op }) => op === BLOCK_WRITE;
  backend.answerAll();
  take();
  offer(3, VIRTIO_BLK_T_FLUSH, 0, 0);
  offer(4, VIRTIO_BLK_T_OUT, 0, 512);
  offer(5, 99, 0, 0);
  offer(6, VIRTIO_BLK_T_IN, 128, 512);
  raw.kick(0);
  backend.answerAll();
  const more = take();
  assert.deepEqual(
    more.flatMap((event) => (event.kind === "request-begin" ? [event.type] : [])),
    ["FLUSH", "OUT", 99, "IN"],
  );
  const status = new Map(more.flatMap((event) => (event.kind === "request-end" ? [[event.head, event.status]] : [])));
  const popped = more.flatMap((event) => (event.kind === "pop" ? [event.head] : []));
  assert.deepEqual(
    popped.map((head) => status.get(head)),
    ["OK", "IOERR", "UNSUPP", "IOERR"],
  );
  assert.deepEqual(
    more.flatMap((event) => (event.kind === "io-end" ? [event.result] : [])),
    ["ok", "error"],
  );
});

test("what does not fit is put back, and begins once", limit, () => {
  const { backend, raw, offer, take } = disk({ maxInFlight: 1 });
  take();
  offer(0, VIRTIO_BLK_T_OUT, 0, 512);
  offer(1, VIRTIO_BLK_T_OUT, 9, 512);
  raw.kick(0);
  const first = take();
  assert.deepEqual(
    first.map(({ kind }) => kind),
    ["pop", "pop", "request-begin", "io-begin", "unpop"],
  );
  while (backend.waiting.length > 0) backend.answerAll();
  const then = take();
  assert.equal(then.filter(({ kind }) => kind === "request-begin").length, 1);
  assert.deepEqual(then.filter(({ kind }) => kind === "push").length, 2);
});

test("features, queues, configuration, faults, a stop", limit, () => {
  const { device, raw, take } = disk();
  const all = take();
  assert.deepEqual(
    all.map(({ kind }) => kind),
    ["features", "queue"],
  );
  assert.deepEqual(all[0], { kind: "features", features: "0x100000200", accepted: true });
  assert.ok(all[1]?.kind === "queue" && "state" in all[1] && all[1].state === "start");
  assert.equal(all[1].format, "split");
  assert.equal(all[1].size, 16);
  assert.equal(device.setFeatures(FeatureSet.of(100)), false);
  device.config.write(32, 1, 0);
  device.config.update(() => undefined);
  device.driverFault("a reason", false);
  raw.offer(0, [{ address: RAW_DATA, length: 1 }], []);
  raw.kick(0);
  device.reset();
  assert.deepEqual(
    take().filter(({ kind }) => kind !== "pop" && kind !== "unpop"),
    [
      { kind: "features", features: FeatureSet.of(100).toString(), accepted: false },
      { kind: "config", by: "driver", offset: 32, length: 1 },
      { kind: "config", by: "device" },
      { kind: "fault", reason: "a reason", fatal: false },
      { kind: "fault", reason: "queue 0: a request header of 1 bytes", fatal: true },
      { kind: "queue", queue: 0, state: "stop" },
    ],
  );
});
