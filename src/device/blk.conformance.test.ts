import assert from "node:assert/strict";
import { test } from "node:test";
import { MemoryBlockBackend } from "../backend/block/memory.ts";
import { BLOCK_FLUSH, BLOCK_WRITE, type BlockBackend } from "../backend/block/types.ts";
import { FeatureSet } from "../common/feature-set.ts";
import {
  VIRTIO_BLK_CFG_WRITEBACK,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_S_IOERR,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
} from "../spec/blk.ts";
import { VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { ManualBlockBackend } from "../testing/manual-block.ts";
import { RawBlk } from "../testing/raw-blk.ts";
import { RAW_DATA, RawDevice } from "../testing/raw-device.ts";
import { testEnvironment } from "../testing/rig.ts";
import { statements } from "../testing/statements.ts";
import { uniform } from "../testing/zoned-blk.ts";
import { BlkDevice, type BlkProperties } from "./blk.ts";

const INIT = "device: Device Types / Block Device / Device Initialization";
const OPERATION = "device: Device Types / Block Device / Device Operation";
const limit = { timeout: 20_000 };
const MODERN = FeatureSet.of(VIRTIO_F_VERSION_1);

const memory = (): MemoryBlockBackend => new MemoryBlockBackend({ capacity: 65536 });
const make = (properties: BlkProperties = {}, backend: BlockBackend = memory()): BlkDevice =>
  new BlkDevice({ backend, environment: testEnvironment, ...properties });

const VARIANTS: readonly BlkProperties[] = [
  {},
  { configWce: false },
  { readOnly: true },
  { writeCache: "off" },
  { numQueues: 3, maxSegments: 7, serial: "x" },
  { zoned: { zoneSize: 65536 } },
];

test(statements("blk: FLUSH is offered, with the cache's switch and without", `${INIT} #1`), limit, () => {
  let switches = 0;
  for (const properties of VARIANTS) {
    const { offeredFeatures } = make(properties);
    switches += Number(offeredFeatures.has(VIRTIO_BLK_F_CONFIG_WCE));
    assert.equal(offeredFeatures.has(VIRTIO_BLK_F_FLUSH), true);
  }
  assert.equal(switches, VARIANTS.length - 1);
});

test(statements("blk: writeback starts as 0 for a driver that cannot flush", `${INIT} #2`), limit, () => {
  for (const [features, writeback] of [
    [MODERN.with(VIRTIO_BLK_F_CONFIG_WCE), 0],
    [MODERN.with(VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH), 1],
  ] as const) {
    const device = make();
    new RawDevice(device, features);
    assert.equal(device.config.read(VIRTIO_BLK_CFG_WRITEBACK, 1), writeback);
  }
});

test(statements("blk: the padding of the configuration is 0 and stays so", `${INIT} #3`), limit, () => {
  for (const properties of VARIANTS) {
    const device = make(properties);
    const padding = () => [33, 57, 58, 59].map((at) => device.config.read(at, 1));
    assert.deepEqual(padding(), [0, 0, 0, 0]);
    for (let at = 0; at < device.config.size; at += 4) device.config.write(at, 4, 0xffffffff);
    assert.deepEqual(padding(), [0, 0, 0, 0]);
  }
});

test(
  statements("blk: a read-only disk, whether the driver accepted RO or not", `${OPERATION} #1`, `${OPERATION} #2`),
  limit,
  () => {
    for (const features of [MODERN, MODERN.with(VIRTIO_BLK_F_RO)]) {
      const backend = new MemoryBlockBackend({ capacity: 65536, contents: new Uint8Array(65536).fill(5) });
      const device = make({ readOnly: true }, backend);
      assert.equal(device.offeredFeatures.has(VIRTIO_BLK_F_RO), true);
      const blk = new RawBlk(device, features);
      assert.equal(blk.ask(VIRTIO_BLK_T_OUT, { sector: 3, out: new Uint8Array(1024) }).status, VIRTIO_BLK_S_IOERR);
      assert.equal(uniform(backend.peek(0, 65536)), 5);
      assert.equal(blk.ask(VIRTIO_BLK_T_IN, { sector: 3, room: 512 }).status, VIRTIO_BLK_S_OK);
    }
  },
);

/** Hands one request in and answers what the back end is given; returns that, and when the request was used. */
function operations(features: FeatureSet, type: number, setUp: (device: BlkDevice) => void = () => undefined) {
  const backend = new ManualBlockBackend({ capacity: 65536 });
  const device = make({}, backend);
  const raw = new RawDevice(device, features);
  setUp(device);
  const header = new Uint8Array(16);
  header[0] = type;
  raw.memory.write(RAW_DATA, header);
  const data = type === VIRTIO_BLK_T_OUT ? [{ address: RAW_DATA + 512, length: 512 }] : [];
  raw.offer(0, [{ address: RAW_DATA, length: 16 }, ...data], [{ address: RAW_DATA + 4096, length: 1 }]);
  raw.kick(0);
  const steps: [op: number, usedBefore: number][] = [];
  for (let next = backend.waiting[0]; next !== undefined; next = backend.waiting[0]) {
    steps.push([next.op, raw.used(0).length]);
    backend.answer(next);
    backend.completed();
  }
  assert.equal(raw.used(0).length, 1);
  return steps;
}

test(
  statements("blk: a stable write was flushed before it is used, a flush is one of the back end's", `${OPERATION} #6`),
  limit,
  () => {
    const durable = [
      [BLOCK_WRITE, 0],
      [BLOCK_FLUSH, 0],
    ];
    const cache = MODERN.with(VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH);
    assert.deepEqual(operations(MODERN, VIRTIO_BLK_T_OUT), durable, "neither feature was accepted");
    assert.deepEqual(operations(MODERN.with(VIRTIO_BLK_F_CONFIG_WCE), VIRTIO_BLK_T_OUT), durable);
    const off = (device: BlkDevice): void => device.config.write(VIRTIO_BLK_CFG_WRITEBACK, 1, 0);
    assert.deepEqual(operations(cache, VIRTIO_BLK_T_OUT, off), durable, "writeback is 0");
    assert.deepEqual(operations(cache, VIRTIO_BLK_T_OUT), [[BLOCK_WRITE, 0]], "volatile");
    assert.deepEqual(operations(cache, VIRTIO_BLK_T_FLUSH), [[BLOCK_FLUSH, 0]]);
  },
);
