import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { GuestMemory } from "../memory/guest-memory.ts";
import { VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE } from "../spec/ring.ts";
import { RawPackedRing } from "../testing/raw-ring.ts";
import { NO_FEATURES } from "../testing/ring-contract.ts";
import { statements } from "../testing/statements.ts";
import { ChainBatch, createDeviceQueue, packedLayout } from "./index.ts";

// What the device's side of a packed queue does, in front of a driver that is written by hand.

const LIMIT = { timeout: 60_000 };
const SIZE = 7;
const BUFFER = 0x8000;
const QUEUES = "device: Basic Facilities of a Virtio Device / Packed Virtqueues";
const TABLE = `${QUEUES} / The Virtqueue Descriptor Table`;

function setUp(features: { eventIdx?: boolean; inOrder?: boolean } = {}) {
  const memory = GuestMemory.allocate(0x10000);
  const place = packedLayout(0, SIZE);
  const ring = new RawPackedRing(memory.regions[0]?.view as DataView, place);
  const queue = createDeviceQueue(memory, place, { ...NO_FEATURES, packed: true, ...features });
  const batch = new ChainBatch(SIZE);
  const next = { index: 0, wrap: true };
  let sent = 0;
  /** Makes a list of writable buffers available, with descriptors of its own addresses. Returns those. */
  const offer = (id: number, entries: number): number[] => {
    const slots: { index: number; flags: number; address: number }[] = [];
    for (let i = 0; i < entries; i++) {
      const more = i + 1 < entries ? VIRTQ_DESC_F_NEXT : 0;
      const flags = RawPackedRing.available(next.wrap) | VIRTQ_DESC_F_WRITE | more;
      slots.push({ index: next.index, flags, address: BUFFER + 16 * (sent++ % 1024) });
      next.index = (next.index + 1) % SIZE;
      if (next.index === 0) next.wrap = !next.wrap;
    }
    for (const { index, flags, address } of [...slots].reverse())
      ring.writeDescriptor(index, { address, length: 16, id, flags });
    return slots.map(({ address }) => address);
  };
  /** Takes up to `max` chains: their ids and the addresses of their buffers. */
  const pop = (max = SIZE): { id: number; addresses: number[] }[] => {
    batch.clear();
    const count = queue.pop(batch, max);
    assert.equal(queue.fault, undefined, queue.fault?.reason);
    return Array.from({ length: count }, (_, c) => ({
      id: batch.id[c] as number,
      addresses: [...batch.offset.subarray(batch.first[c], (batch.first[c] as number) + (batch.writable[c] as number))],
    }));
  };
  return { ring, queue, offer, pop };
}

const rounds = fc.array(
  fc.record({
    lists: fc.uniqueArray(fc.record({ id: fc.nat(SIZE - 1), entries: fc.integer({ min: 1, max: 3 }) }), {
      minLength: 1,
      maxLength: 3,
      selector: ({ id }) => id,
    }),
    parts: fc.integer({ min: 1, max: 3 }),
    order: fc.nat(),
  }),
  { maxLength: 40, size: "max" },
);

/** Lists are offered, taken in parts and used in another order; `used` is called for each list as it is used. */
function eachRound(
  check: (rig: ReturnType<typeof setUp>, round: { taken: number[]; completed: number[] }) => void,
): void {
  let lists = 0;
  const property = fc.property(rounds, fc.boolean(), (list, eventIdx) => {
    const rig = setUp({ eventIdx });
    for (const round of list) {
      let free = SIZE;
      const offered: { id: number; addresses: number[] }[] = [];
      for (const { id, entries } of round.lists) {
        if (entries > free) continue;
        free -= entries;
        offered.push({ id, addresses: rig.offer(id, entries) });
      }
      const taken: { id: number; addresses: number[] }[] = [];
      while (taken.length < offered.length) taken.push(...rig.pop(round.parts));
      // Lists in the order of the ring, and descriptors in the order of their lists.
      assert.deepEqual(taken, offered);
      lists += offered.length;
      const ids = taken.map(({ id }) => id);
      const completed = ids.map((_, i) => ids[(i + round.order) % ids.length] as number);
      if (round.order % 2 === 1) completed.reverse();
      check(rig, { taken: ids, completed });
    }
  });
  fc.assert(property, { numRuns: 200 });
  assert.ok(lists > 1000, `only ${lists} lists`);
}

test(
  statements(
    "lists are processed in the order of the ring, their descriptors in the order in which NEXT links them",
    `${QUEUES} #1`,
    `${QUEUES} / Scatter-Gather Support #1`,
  ),
  LIMIT,
  () => {
    eachRound(({ queue }, { completed }) => {
      for (const id of completed) queue.push(id, 0);
      queue.flush();
    });
  },
);

test(statements("used descriptors are written in the order in which lists complete", `${QUEUES} #2`), LIMIT, () => {
  const property = fc.property(
    fc.shuffledSubarray([0, 1, 2, 3, 4, 5, 6], { minLength: SIZE }),
    fc.nat(6),
    (order, turns) => {
      const { ring, queue, offer, pop } = setUp();
      for (let i = 0; i < turns; i++) {
        offer(0, 1);
        pop();
        queue.push(0, 0);
        queue.flush();
      }
      for (let id = 0; id < SIZE; id++) offer(id, 1);
      assert.equal(pop().length, SIZE);
      for (const [n, id] of order.entries()) {
        queue.push(id, n + 1);
        if (n % 2 === 1) queue.flush();
      }
      queue.flush();
      for (const [n, id] of order.entries()) {
        const wrap = turns + n < SIZE;
        const used = ring.readDescriptor((turns + n) % SIZE);
        assert.deepEqual([used.id, used.length, used.flags & 0x8080], [id, n + 1, RawPackedRing.used(wrap)]);
      }
    },
  );
  fc.assert(property, { numRuns: 200 });
});

test(
  statements("a descriptor whose AVAIL bit did not change is left alone, in every lap", `${TABLE} #2`),
  LIMIT,
  () => {
    const { ring, queue, offer, pop } = setUp();
    for (let n = 0; n < 5 * SIZE; n++) {
      const at = n % SIZE;
      const wrap = Math.floor(n / SIZE) % 2 === 0;
      assert.deepEqual(pop(), [], "as the device left it in the lap before, or zero at first");
      // Everything is in place but the bit.
      const before = ring.readDescriptor(at);
      const old = RawPackedRing.available(!wrap) | VIRTQ_DESC_F_WRITE;
      ring.writeDescriptor(at, { address: BUFFER, length: 16, id: 3, flags: old & RawPackedRing.used(!wrap) });
      if (n >= SIZE) ring.writeDescriptor(at, { ...before, flags: RawPackedRing.used(!wrap) | VIRTQ_DESC_F_WRITE });
      assert.equal(queue.available(), false);
      assert.deepEqual(pop(), []);
      assert.equal(queue.inFlight, 0);
      const addresses = offer(3, 1);
      assert.deepEqual(pop(), [{ id: 3, addresses }]);
      queue.push(3, 0);
      queue.flush();
    }
  },
);

test(statements("a used descriptor is not touched again until the driver has it", `${TABLE} #3`), LIMIT, (t) => {
  const bytes = (ring: RawPackedRing) => new Uint8Array(ring.view.buffer, 0, 16 * SIZE);
  // AVAIL is bit 7 of the flags, USED bit 15.
  const isUsed = (slot: Uint8Array) => (slot[14] as number) >> 7 === (slot[15] as number) >> 7;
  let current: RawPackedRing | undefined;
  /** The ring as it was when a store showed used descriptors to the driver. */
  let shown = new Uint8Array(0);
  const real = Atomics.store.bind(Atomics);
  t.mock.method(Atomics, "store", (words: Uint32Array, index: number, value: number) => {
    const result = real(words, index, value);
    if (current !== undefined && words.byteOffset + 4 * index < 16 * SIZE) shown = bytes(current).slice();
    return result;
  });
  eachRound(({ ring, queue, pop }, { completed }) => {
    current = ring;
    const start = bytes(ring).slice();
    const slots = Array.from({ length: SIZE }, (_, i) => [16 * i, 16 * i + 16] as const);
    const look = (): void => {
      const now = bytes(ring);
      for (const [from, to] of slots)
        if (isUsed(shown.subarray(from, to)) && !isUsed(start.subarray(from, to)))
          assert.deepEqual(now.subarray(from, to), shown.subarray(from, to));
    };
    for (const [n, id] of completed.entries()) {
      queue.push(id, n);
      if (n > 0) look();
      queue.flush();
      look();
    }
    queue.disableKicks();
    queue.enableKicks();
    assert.deepEqual(pop(), []);
    queue.flush();
    look();
  });
});
