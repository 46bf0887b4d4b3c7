import assert from "node:assert/strict";
import { test } from "node:test";
import { VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE } from "../spec/ring.ts";
import { RawPackedRing, readPackedDescriptor } from "../testing/raw-ring.ts";
import { DRIVER_FEATURES, WatchedPackedDriver, watchDriver } from "../testing/ring-watch.ts";
import { statements } from "../testing/statements.ts";
import type { QueueFeatures } from "./index.ts";

// What the driver's side of a packed queue writes, seen from the other side.

const LIMIT = { timeout: 60_000 };
const SIZE = 7;
const NEXT = VIRTQ_DESC_F_NEXT;
const WRITE = VIRTQ_DESC_F_WRITE;
const INDIRECT = VIRTQ_DESC_F_INDIRECT;
const BOTH = RawPackedRing.used(true);

const QUEUES = "driver: Basic Facilities of a Virtio Device / Packed Virtqueues";
// The specification spells it so.
const TABLE = "driver: Basic Facilities of a Virtio Device / PAcked Virtqueues / The Virtqueue Descriptor Table";
const LISTS = `${QUEUES} / Scatter-Gather Support`;
const TABLES = `${QUEUES} / The Virtqueue Descriptor Table / Indirect Descriptors`;

const create = (features: Partial<QueueFeatures>) => new WatchedPackedDriver(features, SIZE, true);

type Descriptor = ReturnType<typeof readPackedDescriptor>;

/** The descriptors of a chain that takes `slots` from `first` on, and those of its table. */
function chainOf(
  driver: WatchedPackedDriver,
  first: number,
  slots: number,
): { ring: Descriptor[]; table: Descriptor[] } {
  const ring = Array.from({ length: slots }, (_, i) => driver.ring.readDescriptor((first + i) % SIZE));
  const last = ring.at(-1) as Descriptor;
  if ((last.flags & INDIRECT) === 0) return { ring, table: [] };
  const table = Array.from({ length: last.length / 16 }, (_, i) =>
    readPackedDescriptor(driver.view, Number(last.address) + 16 * i),
  );
  return { ring, table };
}

/** Calls `check` for each chain as it becomes available. */
function eachChain(check: (chain: ReturnType<typeof chainOf>, driver: WatchedPackedDriver) => void): void {
  let chains = 0;
  watchDriver(create, (driver) => () => {
    const before = driver.inFlight.length;
    driver.look();
    for (const { first, slots } of driver.inFlight.slice(before)) {
      check(chainOf(driver, first, slots), driver);
      chains++;
    }
  });
  assert.ok(chains > 200, `only ${chains} chains`);
}

const ringBytes = (driver: WatchedPackedDriver): Uint8Array =>
  new Uint8Array(driver.view.buffer, driver.place.desc, 16 * SIZE);

test(
  statements(
    "a descriptor stays as it is from when it is available until it was seen used and the chain came back",
    `${TABLE} #1`,
    `${TABLE} #2`,
    "driver: General Initialization And Device Operation / Device Cleanup #1",
  ),
  LIMIT,
  () => {
    let held = 0;
    watchDriver(create, (driver) => {
      let before = ringBytes(driver).slice();
      let range: number[] = [];
      return (step) => {
        const now = ringBytes(driver);
        // What the device itself wrote is no affair of the driver's.
        if (step.op !== "use")
          for (const slot of range)
            assert.deepEqual(now.slice(16 * slot, 16 * slot + 16), before.slice(16 * slot, 16 * slot + 16));
        driver.look();
        before = now.slice();
        range = Array.from({ length: driver.shown - driver.returned }, (_, i) => (driver.returned + i) % SIZE);
        held += range.length;
      };
    });
    assert.ok(held > 1000, `only ${held} descriptors were watched`);
  },
);

test(statements("a kick names the next descriptor that is not yet available", `${TABLE} #3`), LIMIT, () => {
  let wrapped = 0;
  watchDriver(create, (driver) => () => {
    driver.look();
    const { index, wrap } = driver.available;
    assert.equal(driver.queue.kickData(), index | (wrap ? 0x8000 : 0));
    if (!wrap) wrapped++;
  });
  assert.ok(wrapped > 100, `only ${wrapped} in a second lap`);
});

test(statements("device-writable elements come behind device-readable ones", `${LISTS} #3`), LIMIT, () => {
  let mixed = 0;
  eachChain(({ ring, table }) => {
    const kinds = (table.length > 0 ? table : ring).map(({ flags }) => ((flags & WRITE) !== 0 ? "w" : "r")).join("");
    assert.match(kinds, /^r*w*$/);
    if (/rw/.test(kinds)) mixed++;
  });
  assert.ok(mixed > 50, `only ${mixed} chains had both`);
});

test(
  statements("a list that does not fit wholly is refused, and nothing of it is written", `${LISTS} #4`, `${LISTS} #5`),
  LIMIT,
  () => {
    for (const features of DRIVER_FEATURES.filter(({ indirect }) => indirect === false))
      for (let free = 0; free < SIZE; free++)
        for (let turns = 0; turns < SIZE; turns++) {
          const driver = create(features);
          for (let i = 0; i < turns; i++) {
            driver.add(1, 0);
            driver.queue.publish();
            driver.look();
            driver.use(0);
            driver.get();
          }
          for (let i = free; i < SIZE; i++) assert.equal(driver.add(1, 0), true);
          driver.queue.publish();
          driver.look();
          const [before, chains] = [ringBytes(driver).slice(), driver.inFlight.length];
          for (let more = 1; more <= SIZE - free; more++) {
            assert.equal(driver.add(1, free + more - 1), false);
            assert.equal(driver.queue.publish(), false);
            driver.look();
            assert.deepEqual(ringBytes(driver), before);
            assert.equal(driver.inFlight.length, chains);
          }
          // The device used one descriptor of the list that is in front: room for that one and no more.
          driver.use(0);
          driver.get();
          if (free + 2 <= SIZE) assert.equal(driver.add(free + 1, 1), false);
          assert.equal(driver.add(free, 1), true);
        }
  },
);

/** Calls `check` at the store that makes chains available, before which nothing is; keeps the ring as it was then. */
function atPublish(
  mock: { method(object: typeof Atomics, name: "store", fn: (...args: never[]) => number): unknown },
  driver: WatchedPackedDriver,
  check: () => void,
): { stores: number; ring: Uint8Array } {
  const counter = { stores: 0, ring: new Uint8Array(0) };
  const real = Atomics.store.bind(Atomics);
  mock.method(Atomics, "store", ((words: Uint32Array, index: number, value: number) => {
    const at = words.byteOffset + 4 * index;
    const { desc } = driver.place;
    if (at < desc || at >= desc + 16 * SIZE) return real(words, index, value);
    counter.stores++;
    const count = driver.inFlight.length;
    driver.look();
    assert.equal(driver.inFlight.length, count, "nothing is available before the store");
    const before = ringBytes(driver).slice();
    real(words, index, value);
    const after = ringBytes(driver);
    counter.ring = after.slice();
    const changed = [...after.keys()].filter((i) => after[i] !== before[i]);
    assert.ok(changed.every((i) => i >= at - desc && i < at - desc + 4));
    driver.look();
    assert.ok(driver.inFlight.length > count, "with the store everything is available");
    check();
    return value;
  }) as never);
  return counter;
}

test(
  statements(
    "the first descriptor of a list becomes available last, and none changes afterwards",
    `${LISTS} #6`,
    `${TABLE} #2`,
  ),
  LIMIT,
  (t) => {
    for (const features of DRIVER_FEATURES) {
      const driver = create({ ...features, indirect: false });
      const counter = atPublish(t.mock, driver, () => undefined);
      for (let round = 0; round < 20; round++) {
        driver.add(1, round % 4);
        const before = driver.inFlight.length;
        // Added and not yet published: the list may be there, but not from its first descriptor on.
        driver.look();
        assert.equal(driver.inFlight.length, before);
        driver.add(2, 0);
        driver.queue.publish();
        assert.deepEqual(ringBytes(driver), counter.ring);
        assert.equal(driver.inFlight.length, 2);
        while (driver.inFlight.length > 0) driver.use(0);
        driver.get();
      }
      assert.equal(counter.stores, 20);
      t.mock.restoreAll();
    }
  },
);

test(
  statements(
    "addresses, lengths and tables lie there before the flags do, by a sequentially consistent store",
    `${QUEUES} / Supplying Buffers to The Device / Updating flags #1`,
  ),
  LIMIT,
  (t) => {
    const driver = create({ indirect: true });
    const tables = () => new Uint8Array(driver.view.buffer.slice(0x10000, 0x20000));
    let prepared = tables();
    const counter = atPublish(t.mock, driver, () => {
      assert.deepEqual(tables(), prepared);
      const { first, slots } = driver.inFlight.at(-1) as { first: number; slots: number };
      const { table } = chainOf(driver, first, slots);
      assert.deepEqual(
        table.map(({ address, length }) => [Number(address), length]),
        [0, 1, 2].map((i) => [driver.buffer(i), 16]),
      );
    });
    for (let round = 0; round < 20; round++) {
      driver.add(2, 1);
      prepared = tables();
      driver.queue.publish();
      driver.use(0);
      driver.get();
    }
    assert.equal(counter.stores, 20);
  },
);

test(
  statements("INDIRECT only where it was negotiated, and alone in its list", `${TABLES} #1`, `${TABLES} #4`),
  LIMIT,
  () => {
    let tables = 0;
    eachChain(({ ring }, driver) => {
      const indirect = ring.filter(({ flags }) => (flags & INDIRECT) !== 0).length;
      if (!driver.features.indirect) assert.equal(indirect, 0);
      if (indirect === 0) return;
      tables++;
      assert.equal(ring.length, 1);
      assert.equal((ring[0] as Descriptor).flags & NEXT, 0);
    });
    assert.ok(tables > 50, `only ${tables} tables`);
  },
);

test(statements("entries of a table have no flag but WRITE", `${TABLES} #2`), LIMIT, () => {
  let entries = 0;
  eachChain(({ table }) => {
    for (const { flags } of table) {
      entries++;
      assert.equal(flags & ~WRITE, 0);
    }
  });
  assert.ok(entries > 100, `only ${entries} entries`);
});

test("a new ring shows nothing, whatever lay there", LIMIT, () => {
  for (const features of DRIVER_FEATURES) {
    const driver = create(features);
    for (let i = 0; i < SIZE; i++) assert.equal(driver.ring.readDescriptor(i).flags & BOTH, 0);
    assert.deepEqual(driver.ring.deviceEvent, { offset: 0, wrap: false, flags: 0 });
  }
});
