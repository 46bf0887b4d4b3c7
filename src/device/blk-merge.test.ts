import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { BLOCK_MAX_PIECES, BLOCK_READ, BLOCK_WRITE } from "../backend/block/types.ts";
import { FeatureSet } from "../common/feature-set.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import type { MemoryRegion } from "../memory/memory-region.ts";
import { VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT } from "../spec/blk.ts";
import { VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { ManualBlockBackend } from "../testing/manual-block.ts";
import { RAW_DATA, RawDevice } from "../testing/raw-device.ts";
import { RawSplitRing } from "../testing/raw-ring.ts";
import { testEnvironment } from "../testing/rig.ts";
import { BlkDevice } from "./blk.ts";

const limit = { timeout: 60_000 };
const FEATURES = FeatureSet.of(VIRTIO_F_VERSION_1, VIRTIO_F_INDIRECT_DESC, VIRTIO_BLK_F_FLUSH);
const DISK = 128 * 1024;
/** By request: 16 bytes of header, a status at 32, up to 4 sectors of data at 512. */
const SLOT = 0xa00;

interface Request {
  readonly write: boolean;
  readonly block: number;
  readonly blocks: number;
}

const contents = Uint8Array.from({ length: DISK }, (_, i) => (i * 17 + (i >> 9)) & 0xff);

/** Runs requests with one kick, or with one each, and returns everything that can be seen of them. */
function run(requests: readonly Request[], together: boolean, fixed: boolean, fail = -1) {
  const backend = new ManualBlockBackend({ capacity: DISK, contents });
  backend.fail = ({ offset, length }) => fail >= offset && fail < offset + length;
  const device = new BlkDevice({ backend, environment: testEnvironment });
  const raw = new RawDevice(device, FEATURES, { size: 256, fixed });
  const at = (i: number): number => RAW_DATA + i * SLOT;
  const settle = () => {
    raw.kick(0);
    while (backend.waiting.length > 0) backend.answerAll();
  };
  for (const [i, { write, block, blocks }] of requests.entries()) {
    const header = new DataView(new ArrayBuffer(16));
    header.setUint32(0, write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN, true);
    header.setUint32(8, block, true);
    raw.memory.write(at(i), new Uint8Array(header.buffer));
    raw.memory.write(at(i) + 512, new Uint8Array(blocks * 512).fill(write ? 0x40 + i : 0xff));
    const data = { address: at(i) + 512, length: blocks * 512 };
    const status = { address: at(i) + 32, length: 1 };
    raw.offer(0, [{ address: at(i), length: 16 }, ...(write ? [data] : [])], [...(write ? [] : [data]), status], true);
    if (!together) settle();
  }
  settle();
  const used = raw.used(0).sort((a, b) => a.id - b.id);
  return { backend, device, used, disk: backend.disk.peek(0, DISK), memory: raw.bytes() };
}

/** Requests that often lie side by side, and never over each other. */
const requests = fc
  .array(
    fc.record({ write: fc.boolean(), gap: fc.constantFrom(0, 0, 0, 0, 1, 5), blocks: fc.integer({ min: 1, max: 4 }) }),
    {
      minLength: 1,
      maxLength: 25,
    },
  )
  .map((list) => {
    let block = 0;
    return list.map(({ write, gap, blocks }): Request => {
      const start = block + gap;
      block = start + blocks;
      return { write, block: start, blocks };
    });
  });

test("blk: merged requests do what the same requests do one by one", limit, () => {
  let merged = 0;
  fc.assert(
    fc.property(requests, fc.boolean(), fc.boolean(), (list, fixed, shuffled) => {
      const order = shuffled ? [...list].reverse() : list;
      const one = run(order, false, fixed);
      const all = run(order, true, fixed);
      assert.deepEqual(all.disk, one.disk);
      assert.deepEqual(all.used, one.used);
      assert.deepEqual(all.memory, one.memory);
      assert.equal(one.device.stats.merged, 0);
      assert.equal(all.backend.log.length + all.device.stats.merged, list.length);
      merged += all.device.stats.merged;
    }),
    { numRuns: 150 },
  );
  assert.ok(merged > 50, `only ${merged} requests were ever merged`);
});

test("blk: what is merged: neighbours of one kind, in the order of the disk, nothing else", limit, () => {
  const list: Request[] = [
    { write: false, block: 0, blocks: 2 },
    { write: false, block: 2, blocks: 1 },
    { write: true, block: 3, blocks: 1 },
    { write: true, block: 4, blocks: 2 },
    { write: true, block: 7, blocks: 1 },
    { write: true, block: 6, blocks: 1 },
    { write: false, block: 7, blocks: 1 },
  ];
  const { backend } = run(list, true, true);
  assert.deepEqual(
    backend.log.map(({ op, offset, length, pieces }) => [op, offset / 512, length / 512, pieces]),
    [
      [BLOCK_READ, 0, 3, 2],
      [BLOCK_WRITE, 3, 3, 2],
      [BLOCK_WRITE, 7, 1, 1],
      [BLOCK_WRITE, 6, 1, 1],
      [BLOCK_READ, 7, 1, 1],
    ],
  );
  assert.equal(backend.submits, 1);
});

test("blk: when an I/O fails, all requests in it fail, and no other", limit, () => {
  const list: Request[] = [0, 1, 2, 10, 11].map((block) => ({ write: false, block, blocks: 1 }));
  for (const fixed of [true, false]) {
    const { used, memory, device } = run(list, true, fixed, 512);
    const statuses = list.map((_, i) => memory[i * SLOT + 32]);
    assert.deepEqual(statuses, [1, 1, 1, 0, 0]);
    assert.deepEqual(
      used.map(({ length }) => length),
      [0, 0, 0, 513, 513],
    );
    assert.equal(device.stats.errors, 3);
  }
});

test("blk: vectors have 1024 pieces at most, however many neighbours there are", limit, () => {
  const backend = new ManualBlockBackend({ capacity: DISK, contents });
  const raw = new RawDevice(new BlkDevice({ backend, environment: testEnvironment }), FEATURES, { size: 256 });
  const pieces = Array.from({ length: 112 }, (_, i) => ({ address: RAW_DATA + 1024 + i * 32, length: 32 }));
  for (let i = 0; i < 10; i++) {
    const header = new DataView(new ArrayBuffer(16));
    header.setUint32(8, i * 7, true);
    raw.memory.write(RAW_DATA + i * 16, new Uint8Array(header.buffer));
    raw.offer(
      0,
      [{ address: RAW_DATA + i * 16, length: 16 }],
      [...pieces, { address: RAW_DATA + 512, length: 1 }],
      true,
    );
  }
  raw.kick(0);
  while (backend.waiting.length > 0) backend.answerAll();
  assert.deepEqual(
    backend.log.map((request) => request.pieces),
    [Math.floor(BLOCK_MAX_PIECES / 112) * 112, 112],
  );
  assert.deepEqual(
    raw.used(0).map(({ length }) => length),
    new Array(10).fill(112 * 32 + 1),
  );
});

test("blk: a request in more pieces than a vector has goes through an own buffer", limit, () => {
  const backend = new ManualBlockBackend({ capacity: DISK, contents });
  const device = new BlkDevice({ backend, environment: testEnvironment, queueSize: 2048 });
  const memory = GuestMemory.allocate(0x40000);
  device.attach({
    memory,
    notifyQueue: () => undefined,
    notifyConfig: () => undefined,
    notifyNeedsReset: () => undefined,
  });
  device.setFeatures(FEATURES);
  const place = { size: 2048, desc: 0, driver: 0x8000, device: 0xa000 };
  device.startQueue(0, place);
  const ring = new RawSplitRing((memory.regions[0] as MemoryRegion).view, place);
  for (let i = 0; i < 1538; i++) {
    const address = i === 0 ? 0x20000 : 0x20000 + 16 * i;
    const flags = i === 0 ? 1 : i === 1537 ? 2 : 3;
    ring.writeDescriptor(i, { address, length: i === 1537 ? 1 : 16, flags, next: i + 1 });
  }
  ring.offer(0);
  device.kick(0);
  assert.equal(backend.log[0]?.pieces, 1);
  backend.answerAll();
  assert.deepEqual(ring.readUsed(0), { id: 0, length: 1536 * 16 + 1 });
  const back = new Uint8Array(1536 * 16);
  memory.read(0x20010, back);
  assert.deepEqual(back, contents.slice(0, back.length));
});
