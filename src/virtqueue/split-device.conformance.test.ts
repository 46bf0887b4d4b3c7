import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { GuestMemory } from "../memory/guest-memory.ts";
import { VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE } from "../spec/ring.ts";
import { RawSplitRing, writeSplitDescriptor } from "../testing/raw-ring.ts";
import { NO_FEATURES } from "../testing/ring-contract.ts";
import { statements } from "../testing/statements.ts";
import { ChainBatch, createDeviceQueue, type QueueFeatures, type QueueState, splitLayout } from "./index.ts";

// What the device's side of a split queue does, in front of a driver that is written by hand.

const LIMIT = { timeout: 60_000 };
const SIZE = 8;
const TABLE = 0x4000;
const BUFFER = 0x8000;

const QUEUES = "device: Basic Facilities of a Virtio Device / Virtqueues";
const INDIRECT = `${QUEUES} / The Virtqueue Descriptor Table / Indirect Descriptors`;
const USED_NOTIFICATION = `${QUEUES} / Used Buffer Notification Suppression`;
const AVAILABLE_NOTIFICATION = `${QUEUES} / Available Buffer Notification Suppression`;

function setUp(features: Partial<QueueFeatures> = {}, state?: QueueState) {
  const memory = GuestMemory.allocate(0x10000);
  const place = splitLayout(0, SIZE);
  const view = memory.regions[0]?.view as DataView;
  const ring = new RawSplitRing(view, place);
  ring.availIdx = ring.usedIdx = state?.availIndex ?? 0;
  const queue = createDeviceQueue(memory, place, { ...NO_FEATURES, ...features }, state);
  const batch = new ChainBatch(SIZE);
  /** Takes all that is available. */
  const pop = (): number[] => {
    batch.clear();
    const count = queue.pop(batch, SIZE);
    return [...batch.id.subarray(0, count)];
  };
  /** `count` chains of one writable buffer each are offered, used and published together. */
  const round = (count: number): boolean => {
    for (let i = 0; i < count; i++) {
      ring.writeDescriptor(i, { address: BUFFER + 16 * i, length: 16, flags: VIRTQ_DESC_F_WRITE });
      ring.offer(i);
    }
    const ids = pop();
    assert.equal(ids.length, count, queue.fault?.reason);
    for (const id of ids) queue.push(id, id);
    return queue.flush();
  };
  return { memory, view, place, ring, queue, batch, pop, round };
}

const counts = fc.array(fc.integer({ min: 1, max: SIZE }), { minLength: 1, maxLength: 40 });

test(statements("WRITE means nothing in the descriptor that refers to a table", `${INDIRECT} #1`), LIMIT, () => {
  // In front of nothing, and behind a direct descriptor, which is another way through the code.
  for (const direct of [0, 1])
    for (const flag of [0, VIRTQ_DESC_F_WRITE])
      for (const kind of [0, VIRTQ_DESC_F_WRITE]) {
        const { queue, ring, view, pop, batch } = setUp({ indirect: true });
        writeSplitDescriptor(view, TABLE, { address: BUFFER, length: 5, flags: kind });
        if (direct === 1) ring.writeDescriptor(0, { address: BUFFER, length: 1, flags: VIRTQ_DESC_F_NEXT, next: 1 });
        ring.writeDescriptor(direct, { address: TABLE, length: 16, flags: VIRTQ_DESC_F_INDIRECT | flag });
        ring.offer(0);
        assert.deepEqual(pop(), [0], queue.fault?.reason);
        assert.deepEqual([batch.readableBytes[0], batch.writableBytes[0]], kind === 0 ? [direct + 5, 0] : [direct, 5]);
      }
});

test(statements("any number of direct descriptors in front of a table", `${INDIRECT} #2`), LIMIT, () => {
  const property = fc.property(
    fc.nat(SIZE - 1),
    fc.integer({ min: 1, max: 20 }),
    fc.nat(20),
    (direct, entries, out) => {
      const { queue, ring, view, pop, batch } = setUp({ indirect: true });
      const flags = (i: number) => (i < out ? 0 : VIRTQ_DESC_F_WRITE);
      for (let i = 0; i < direct; i++)
        ring.writeDescriptor(i, { address: BUFFER + i, length: 1, flags: flags(i) | VIRTQ_DESC_F_NEXT, next: i + 1 });
      for (let i = 0; i < entries; i++)
        writeSplitDescriptor(view, TABLE + 16 * i, {
          address: BUFFER + direct + i,
          length: 1,
          flags: flags(direct + i) | (i < entries - 1 ? VIRTQ_DESC_F_NEXT : 0),
          next: i + 1,
        });
      ring.writeDescriptor(direct, { address: TABLE, length: 16 * entries, flags: VIRTQ_DESC_F_INDIRECT });
      ring.offer(0);
      assert.deepEqual(pop(), [0], queue.fault?.reason);
      const total = direct + entries;
      assert.deepEqual([batch.readable[0], batch.writable[0]], [Math.min(out, total), Math.max(total - out, 0)]);
      assert.deepEqual(
        [...batch.offset.subarray(0, total)],
        Array.from({ length: total }, (_, i) => BUFFER + i),
      );
      queue.push(0, 0);
      queue.flush();
      assert.deepEqual(ring.readUsed(0), { id: 0, length: 0 });
    },
  );
  fc.assert(property, { numRuns: 300 });
});

test(
  statements(
    "without EVENT_IDX flags 0 gets a notification for whatever was used, used_event is not looked at",
    `${USED_NOTIFICATION} #1`,
    `${USED_NOTIFICATION} #2`,
  ),
  LIMIT,
  () => {
    const event = fc.oneof(fc.nat(64), fc.nat(0xffff));
    const property = fc.property(fc.array(fc.tuple(fc.integer({ min: 1, max: SIZE }), fc.nat(1), event)), (rounds) => {
      const { ring, round } = setUp();
      for (const [count, flags, usedEvent] of rounds) {
        ring.availFlags = flags;
        ring.usedEvent = usedEvent;
        assert.equal(round(count), flags === 0);
      }
    });
    fc.assert(property, { numRuns: 300 });
  },
);

test(
  statements(
    "with EVENT_IDX a used element at used_event gets a notification, flags is not looked at",
    `${USED_NOTIFICATION} #3`,
    `${USED_NOTIFICATION} #4`,
  ),
  LIMIT,
  () => {
    let notified = 0;
    const start = fc.constantFrom(0, 1, 0x7ff8, 0xffe0, 0xfffb, 0xffff);
    const property = fc.property(
      start,
      counts,
      fc.array(fc.integer({ min: -3, max: 12 }), { minLength: 40 }),
      (index, rounds, events) => {
        const { ring, round } = setUp(
          { eventIdx: true },
          { availIndex: index, availWrap: true, usedIndex: index, usedWrap: true },
        );
        // A queue that starts from a state notifies once in any case.
        ring.usedEvent = (index - 5) & 0xffff;
        if (index !== 0) assert.equal(round(1), true);
        for (const [i, count] of rounds.entries()) {
          const from = ring.usedIdx;
          ring.usedEvent = (from + (events[i] as number)) & 0xffff;
          ring.availFlags = i % 2;
          const due = Array.from({ length: count }, (_, n) => (from + n) & 0xffff).includes(ring.usedEvent);
          assert.equal(round(count), due, `used ${from} to ${from + count}, event ${ring.usedEvent}`);
          notified += Number(due);
        }
      },
    );
    fc.assert(property, { numRuns: 300 });
    assert.ok(notified > 300, `only ${notified} were due`);
  },
);

test(
  statements(
    "the used element, length included, lies there before the index does",
    `${QUEUES} / The Virtqueue Used Ring #1`,
  ),
  LIMIT,
  (t) => {
    const { ring, queue, pop, place } = setUp();
    const real = Atomics.store.bind(Atomics);
    let stores = 0;
    t.mock.method(Atomics, "store", (words: Uint16Array, index: number, value: number) => {
      if (words.byteOffset + 2 * index === place.device + 2) {
        stores++;
        for (let position = ring.usedIdx; position !== value; position++)
          assert.deepEqual(ring.readUsed(position), { id: position % SIZE, length: 7 + (position % SIZE) });
      }
      return real(words, index, value);
    });
    for (let n = 0; n < 40; n += 4) {
      for (let i = n; i < n + 4; i++) {
        ring.writeDescriptor(i % SIZE, { address: BUFFER, length: 16, flags: VIRTQ_DESC_F_WRITE });
        ring.offer(i % SIZE);
      }
      for (const id of pop()) queue.push(id, 7 + id);
      assert.equal(ring.usedIdx, n, "nothing shows before it is published");
      queue.flush();
      assert.equal(ring.usedIdx, n + 4);
    }
    assert.equal(stores, 10);
  },
);

test(
  statements(
    "flags of the used ring: 0 or 1, and with EVENT_IDX only 0",
    `${AVAILABLE_NOTIFICATION} #1`,
    `${AVAILABLE_NOTIFICATION} #2`,
  ),
  LIMIT,
  () => {
    const seen = new Set<string>();
    const calls = fc.array(fc.constantFrom("on", "off", "round"), { size: "max", maxLength: 60 });
    const property = fc.property(calls, fc.boolean(), (list, eventIdx) => {
      const { memory, ring, queue, round } = setUp({ eventIdx });
      const look = (): void => {
        seen.add(`${eventIdx} ${ring.usedFlags}`);
        assert.ok(ring.usedFlags === 0 || (ring.usedFlags === 1 && !eventIdx), `flags ${ring.usedFlags}`);
      };
      memory.observeWrites(look);
      for (const call of list) {
        if (call === "on") queue.enableKicks();
        else if (call === "off") queue.disableKicks();
        else round(3);
        look();
      }
    });
    fc.assert(property, { numRuns: 200 });
    assert.deepEqual([...seen].sort(), ["false 0", "false 1", "true 0"]);
  },
);
