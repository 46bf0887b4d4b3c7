import assert from "node:assert/strict";
import { test } from "node:test";
import { VIRTQ_DESC_F_WRITE } from "../spec/ring.ts";
import { RawPackedRing, RawSplitRing } from "../testing/raw-ring.ts";
import { NO_FEATURES } from "../testing/ring-contract.ts";
import { BUFFER, memoryWithRom, SIZE } from "../testing/ring-rigs.ts";
import {
  createDriverQueue,
  type DriverQueue,
  packedLayout,
  type QueueFaultKind,
  type QueueFeatures,
  splitLayout,
} from "./index.ts";

// Each way a device can answer wrongly, and the fault the driver's queue ends in.

const WRITE = VIRTQ_DESC_F_WRITE;
const LIMIT = { timeout: 20_000 };

interface DriverRig<Ring> {
  readonly queue: DriverQueue;
  readonly ring: Ring;
}

function driverRig(packed: false, features?: Partial<QueueFeatures>): DriverRig<RawSplitRing>;
function driverRig(packed: true, features?: Partial<QueueFeatures>): DriverRig<RawPackedRing>;
function driverRig(packed: boolean, features: Partial<QueueFeatures> = {}): DriverRig<RawSplitRing | RawPackedRing> {
  const { memory, view } = memoryWithRom();
  const place = (packed ? packedLayout : splitLayout)(0, SIZE);
  const queue = createDriverQueue(memory, place, { ...NO_FEATURES, packed, ...features });
  const sg = { address: Float64Array.of(BUFFER), length: Uint32Array.of(16) };
  for (let token = 0; token < 3; token++) queue.add(sg, 0, 0, 1, token);
  queue.publish();
  queue.add(sg, 0, 0, 1, 3);
  return { queue, ring: packed ? new RawPackedRing(view, place) : new RawSplitRing(view, place) };
}

const tokens = new Uint32Array(8);
const lengths = new Uint32Array(8);

function driverBreaks(queue: DriverQueue, kind: QueueFaultKind, before = 0): void {
  assert.equal(queue.get(tokens, lengths, 8), before);
  if (queue.fault === undefined) assert.equal(queue.get(tokens, lengths, 8), 0);
  assert.equal(queue.fault?.kind, kind, queue.fault?.reason);
  assert.deepEqual([queue.get(tokens, lengths, 8), queue.publish(), queue.enableCallbacks()], [0, false, false]);
}

/** Head and buffer ids are given out from 0 on, so 0..2 are in flight, 3 is not published. */
const RETURNS: [name: string, kind: QueueFaultKind, id: number, length: number][] = [
  ["an id past the queue", "descriptor-index", SIZE, 0],
  ["an id that was never added", "duplicate", 5, 0],
  ["an id that was not published", "duplicate", 3, 0],
  ["more bytes than there is room for", "used-length", 0, 17],
  ["2^32-1 bytes", "used-length", 0, 0xffffffff],
];

for (const [name, kind, id, length] of RETURNS)
  for (const inOrder of [false, true]) {
    const order = inOrder ? ", in order" : "";
    test(`driver, split${order}: ${name}`, LIMIT, () => {
      const { queue, ring } = driverRig(false, { inOrder });
      ring.use(id, length);
      driverBreaks(queue, kind);
    });
    test(`driver, packed${order}: ${name}`, LIMIT, () => {
      const { queue, ring } = driverRig(true, { inOrder });
      ring.writeUsed(0, id, length, RawPackedRing.used(true) | WRITE);
      driverBreaks(queue, kind);
    });
  }

test("driver, split: idx past what is in flight", LIMIT, () => {
  for (const idx of [4, 0xffff]) {
    const { queue, ring } = driverRig(false);
    ring.usedIdx = idx;
    driverBreaks(queue, "index-jump");
  }
});

test("driver: an id used twice", LIMIT, () => {
  const split = driverRig(false);
  split.ring.use(1, 0);
  split.ring.use(1, 0);
  driverBreaks(split.queue, "duplicate", 1);
  const packed = driverRig(true);
  packed.ring.writeUsed(0, 1, 0, RawPackedRing.used(true));
  packed.ring.writeUsed(1, 1, 0, RawPackedRing.used(true));
  driverBreaks(packed.queue, "duplicate", 1);
});

test("driver, split, in order: an element that answers more than idx says", LIMIT, () => {
  const { queue, ring } = driverRig(false, { inOrder: true });
  ring.use(2, 0);
  driverBreaks(queue, "duplicate");
});

test("driver, in order: one element answers all chains up to the one it names (§2.7.9, §2.8.8)", LIMIT, () => {
  const split = driverRig(false, { inOrder: true });
  split.ring.writeUsed(0, 1, 5);
  split.ring.usedIdx = 2;
  const packed = driverRig(true, { inOrder: true });
  packed.ring.writeUsed(0, 1, 5, RawPackedRing.used(true) | WRITE);
  for (const { queue } of [split, packed]) {
    // The batch may be taken in parts.
    assert.equal(queue.get(tokens, lengths, 1), 1);
    assert.deepEqual([tokens[0], lengths[0]], [0, 16], "skipped ones count as wholly written");
    assert.equal(queue.enableCallbacks(), true);
    assert.equal(queue.get(tokens, lengths, 8), 1);
    assert.deepEqual([tokens[0], lengths[0]], [1, 5]);
    assert.equal(queue.inFlight, 2);
  }
});

test("driver, split, legacy: a length that is too large is cut (§2.7.8.1)", LIMIT, () => {
  const { queue, ring } = driverRig(false, { legacy: true });
  ring.use(0, 4096);
  assert.equal(queue.get(tokens, lengths, 8), 1);
  assert.equal(lengths[0], 16);
});

test("driver, packed: without the WRITE flag a length that cannot be is ignored", LIMIT, () => {
  const { queue, ring } = driverRig(true);
  ring.writeUsed(0, 0, 4096, RawPackedRing.used(true));
  assert.equal(queue.get(tokens, lengths, 8), 1);
  assert.equal(lengths[0], 0);
});

test("driver: the kick's data is the next position (§2.9)", LIMIT, () => {
  const split = driverRig(false);
  assert.equal(split.queue.kickData(), 3);
  const packed = driverRig(true);
  assert.equal(packed.queue.kickData(), 0x8003);
  packed.queue.publish();
  assert.equal(packed.queue.kickData(), 0x8004);
});
