import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE } from "../spec/ring.ts";
import { readSplitDescriptor } from "../testing/raw-ring.ts";
import { DRIVER_FEATURES, WatchedSplitDriver, watchDriver } from "../testing/ring-watch.ts";
import { statements } from "../testing/statements.ts";
import type { QueueFeatures } from "./index.ts";

// What the driver's side of a split queue writes, seen from the other side.

const LIMIT = { timeout: 60_000 };
const SIZE = 8;
const NEXT = VIRTQ_DESC_F_NEXT;
const WRITE = VIRTQ_DESC_F_WRITE;
const INDIRECT = VIRTQ_DESC_F_INDIRECT;

const QUEUES = "driver: Basic Facilities of a Virtio Device / Virtqueues";
const TABLE = `${QUEUES} / The Virtqueue Descriptor Table`;
const TABLES = `${TABLE} / Indirect Descriptors`;
const USED_NOTIFICATION = `${QUEUES} / Used Buffer Notification Suppression`;
const AVAILABLE_NOTIFICATION = `${QUEUES} / Available Buffer Notification Suppression`;

const create = (features: Partial<QueueFeatures>) => new WatchedSplitDriver(features, SIZE, true);

type Descriptor = ReturnType<typeof readSplitDescriptor>;

/** The descriptors of a chain, ring entries first, then those of its table. */
function chainOf(driver: WatchedSplitDriver, head: number): { ring: Descriptor[]; table: Descriptor[] } {
  const ring: Descriptor[] = [];
  let index = head;
  do {
    ring.push(driver.ring.readDescriptor(index));
    index = ring.at(-1)?.next ?? 0;
    assert.ok(ring.length <= SIZE, "the chain ends");
  } while (((ring.at(-1)?.flags ?? 0) & NEXT) !== 0);
  const last = ring.at(-1) as Descriptor;
  if ((last.flags & INDIRECT) === 0) return { ring, table: [] };
  const table = Array.from({ length: last.length / 16 }, (_, i) =>
    readSplitDescriptor(driver.view, Number(last.address) + 16 * i),
  );
  return { ring, table };
}

/** Calls `check` for each chain as it becomes available. */
function eachChain(check: (driver: WatchedSplitDriver, head: number) => void): void {
  let chains = 0;
  watchDriver(create, (driver) => {
    let seen = 0;
    return () => {
      for (; seen !== driver.ring.availIdx; seen = (seen + 1) & 0xffff, chains++)
        check(driver, driver.ring.readAvail(seen));
    };
  });
  assert.ok(chains > 200, `only ${chains} chains`);
}

test(
  statements(
    "device-writable elements come behind device-readable ones",
    "driver: Basic Facilities of a Virtio Device / Message Framing #1",
  ),
  LIMIT,
  () => {
    let mixed = 0;
    eachChain((driver, head) => {
      const { ring, table } = chainOf(driver, head);
      const kinds = (table.length > 0 ? table : ring).map(({ flags }) => ((flags & WRITE) !== 0 ? "w" : "r")).join("");
      assert.match(kinds, /^r*w*$/);
      if (/rw/.test(kinds)) mixed++;
    });
    assert.ok(mixed > 50, `only ${mixed} chains had both`);
  },
);

test(statements("a chain of more than 2^32 bytes is refused, and every chain ends", `${TABLE} #1`), LIMIT, () => {
  for (const features of DRIVER_FEATURES) {
    const driver = create(features);
    const address = new Float64Array(4).fill(driver.buffer(0));
    const most = { address, length: Uint32Array.of(2 ** 31, 2 ** 31 - 1, 1, 1) };
    assert.throws(() => driver.queue.add(most, 0, 2, 2, 1), { code: "ERR_VIRTKIT_CHAIN" });
    assert.throws(() => driver.queue.add(most, 0, 0, 4, 1), { code: "ERR_VIRTKIT_CHAIN" });
    driver.queue.publish();
    assert.equal(driver.ring.availIdx, 0);
    assert.equal(driver.queue.add(most, 0, 2, 1, 1), true);
    driver.queue.publish();
    assert.equal(driver.ring.availIdx, 1);
  }
  eachChain((driver, head) => void chainOf(driver, head));
});

test(
  statements("IN_ORDER: next is 0 for the last descriptor of the table, else one more", `${TABLE} #2`),
  LIMIT,
  () => {
    let links = 0;
    watchDriver(
      (features) => create({ ...features, inOrder: true, indirect: false }),
      (driver) => {
        let seen = 0;
        return () => {
          for (; seen !== driver.ring.availIdx; seen = (seen + 1) & 0xffff) {
            const head = driver.ring.readAvail(seen);
            for (const [i, { flags, next }] of chainOf(driver, head).ring.entries()) {
              if ((flags & NEXT) === 0) continue;
              links++;
              assert.equal(next, (head + i + 1) % SIZE);
            }
          }
        };
      },
    );
    assert.ok(links > 200, `only ${links} links`);
  },
);

test(
  statements("INDIRECT only where it was negotiated, and never inside a table", `${TABLES} #1`, `${TABLES} #2`),
  LIMIT,
  () => {
    let tables = 0;
    eachChain((driver, head) => {
      const { ring, table } = chainOf(driver, head);
      if (!driver.features.indirect) assert.ok(ring.every(({ flags }) => (flags & INDIRECT) === 0));
      assert.ok(table.every(({ flags }) => (flags & INDIRECT) === 0));
      tables += Number(table.length > 0);
    });
    assert.ok(tables > 50, `only ${tables} tables`);
  },
);

test(statements("INDIRECT and NEXT do not come together", `${TABLES} #4`), LIMIT, () => {
  eachChain((driver, head) => {
    for (const { flags } of chainOf(driver, head).ring) assert.notEqual(flags & (INDIRECT | NEXT), INDIRECT | NEXT);
  });
});

test(
  statements("IN_ORDER: the entries of a table follow each other, next counts from 1", `${TABLES} #5`),
  LIMIT,
  () => {
    let entries = 0;
    eachChain((driver, head) => {
      if (!driver.features.inOrder) return;
      const { table } = chainOf(driver, head);
      for (const [i, { flags, next }] of table.entries()) {
        const last = i === table.length - 1;
        assert.equal(flags & NEXT, last ? 0 : NEXT);
        if (!last) assert.equal(next, i + 1);
        entries++;
      }
    });
    assert.ok(entries > 50, `only ${entries} entries`);
  },
);

test(
  statements(
    "descriptors and tables of a chain stay as they are while the device has it",
    "driver: General Initialization And Device Operation / Device Cleanup #1",
  ),
  LIMIT,
  () => {
    let held = 0;
    watchDriver(create, (driver) => {
      const before = new Map<number, string>();
      const picture = (head: number): string =>
        JSON.stringify(chainOf(driver, head), (_, value: unknown) => (typeof value === "bigint" ? `${value}` : value));
      return () => {
        for (const [head, was] of before)
          if (driver.inFlight.some(({ id }) => id === head)) assert.equal(picture(head), was);
        driver.look();
        before.clear();
        for (const { id } of driver.inFlight) before.set(id, picture(id));
        held += before.size;
      };
    });
    assert.ok(held > 1000, `only ${held} chains were watched`);
  },
);

test(statements("the available index only grows", `${QUEUES} / The Virtqueue Available Ring #1`), LIMIT, () => {
  watchDriver(create, (driver) => {
    let before = 0;
    let added = 0;
    const look = (): void => {
      const grown = (driver.ring.availIdx - before) & 0xffff;
      assert.ok(grown <= SIZE, `from ${before} to ${driver.ring.availIdx}`);
      before = driver.ring.availIdx;
      added += grown;
    };
    // Each store into the rings, not only what is left behind a call.
    driver.memory.observeWrites(look);
    return () => {
      look();
      assert.ok(added >= driver.queue.inFlight - SIZE);
    };
  });
});

test(
  statements(
    "flags of the available ring: 0 or 1, and with EVENT_IDX only 0",
    `${USED_NOTIFICATION} #1`,
    `${USED_NOTIFICATION} #2`,
  ),
  LIMIT,
  () => {
    const seen = new Set<string>();
    watchDriver(create, (driver) => {
      const look = (): void => {
        const { availFlags } = driver.ring;
        seen.add(`${driver.features.eventIdx} ${availFlags}`);
        assert.ok(availFlags === 0 || (availFlags === 1 && !driver.features.eventIdx), `flags ${availFlags}`);
      };
      look();
      driver.memory.observeWrites(look);
      return look;
    });
    assert.deepEqual([...seen].sort(), ["false 0", "false 1", "true 0"]);
  },
);

test(
  statements("the used ring's flags are 0 when a queue is made, whatever lay there", `${AVAILABLE_NOTIFICATION} #1`),
  LIMIT,
  () => {
    for (const features of DRIVER_FEATURES) assert.equal(create(features).ring.usedFlags, 0);
  },
);

/** Adds and publishes chains one at a time or several at once, and tells whether the driver wants to notify. */
function notifications(
  features: Partial<QueueFeatures>,
  prepare: (driver: WatchedSplitDriver, published: number) => void,
  expect: (driver: WatchedSplitDriver, from: number, to: number, event: number) => boolean | undefined,
): void {
  const property = fc.property(fc.array(fc.integer({ min: 1, max: SIZE }), { maxLength: 40 }), (batches) => {
    const driver = new WatchedSplitDriver(features, SIZE, false);
    for (const count of batches) {
      const from = driver.ring.availIdx;
      prepare(driver, from);
      const { availEvent } = driver.ring;
      for (let i = 0; i < count; i++) assert.equal(driver.add(1, 0), true);
      const notify = driver.queue.publish();
      const expected = expect(driver, from, from + count, availEvent);
      if (expected !== undefined) assert.equal(notify, expected, `from ${from}, ${count} chains, event ${availEvent}`);
      driver.look();
      while (driver.inFlight.length > 0) driver.use(0);
      driver.get();
    }
  });
  fc.assert(property, { numRuns: 200 });
}

test(
  statements(
    "without EVENT_IDX flags 0 asks for a notification, whatever avail_event says",
    `${AVAILABLE_NOTIFICATION} #2`,
    `${AVAILABLE_NOTIFICATION} #3`,
  ),
  LIMIT,
  () => {
    let n = 0;
    notifications(
      {},
      (driver) => {
        driver.ring.usedFlags = n++ % 3 === 0 ? 1 : 0;
        driver.ring.availEvent = (n * 7919) & 0xffff;
      },
      (driver) => driver.ring.usedFlags === 0,
    );
  },
);

test(
  statements(
    "with EVENT_IDX a chain placed at avail_event asks for a notification, whatever flags says",
    `${AVAILABLE_NOTIFICATION} #4`,
    `${AVAILABLE_NOTIFICATION} #5`,
  ),
  LIMIT,
  () => {
    let n = 0;
    notifications(
      { eventIdx: true },
      (driver, published) => {
        driver.ring.usedFlags = n++ % 2;
        driver.ring.availEvent = (published + (n % 11) - 2) & 0xffff;
      },
      (_driver, from, to, event) => {
        for (let position = from; position < to; position++) if ((position & 0xffff) === event) return true;
        return false;
      },
    );
  },
);

test(
  statements(
    "descriptors and the ring entry lie there before the index does, by a sequentially consistent store",
    `${QUEUES} / Supplying Buffers to The Device / Updating idx #1`,
  ),
  LIMIT,
  (t) => {
    const driver = create({ indirect: true });
    const order: string[] = [];
    const real = Atomics.store.bind(Atomics);
    t.mock.method(Atomics, "store", (words: Uint16Array, index: number, value: number) => {
      const at = words.byteOffset + 2 * index;
      if (at === driver.place.driver + 2) {
        // From this store on the device may look: by then everything else has to be there.
        const before = new Uint8Array(driver.view.buffer.slice(0));
        order.push(`idx ${value}`);
        real(words, index, value);
        const after = new Uint8Array(driver.view.buffer.slice(0));
        before.set(after.subarray(at, at + 2), at);
        assert.deepEqual(before, after);
        for (let position = value - 2; position < value; position++) {
          const { table } = chainOf(driver, driver.ring.readAvail(position));
          assert.deepEqual(
            table.map(({ address, length }) => [Number(address), length]),
            [0, 1, 2].map((i) => [driver.buffer(i), 16]),
          );
        }
        return value;
      }
      return real(words, index, value);
    });
    for (let round = 1; round <= 3; round++) {
      driver.add(1, 2);
      driver.add(2, 1);
      const memory = new Uint8Array(driver.view.buffer);
      driver.queue.publish();
      const left = memory.slice();
      driver.queue.publish();
      assert.deepEqual(memory, left);
      assert.equal(order.pop(), `idx ${2 * round}`);
      driver.look();
      while (driver.inFlight.length > 0) driver.use(0);
      driver.get();
    }
  },
);

for (const eventIdx of [false, true])
  test(
    statements(
      `${eventIdx ? "avail_event is" : "flags are"} read behind a full barrier: an atomic load after the store of idx`,
      `${QUEUES} / Supplying Buffers to The Device / Notifying The Device #1`,
    ),
    LIMIT,
    (t) => {
      const driver = create({ eventIdx });
      const word = eventIdx ? driver.place.device + 4 + 8 * SIZE : driver.place.device;
      const seen: string[] = [];
      const real = { store: Atomics.store.bind(Atomics), load: Atomics.load.bind(Atomics) };
      t.mock.method(Atomics, "store", (words: Uint16Array, index: number, value: number) => {
        if (words.byteOffset + 2 * index === driver.place.driver + 2) {
          seen.push("store idx");
          // The device changes its mind before the store, and that has to be seen.
          if (eventIdx) driver.ring.availEvent = 0;
          else driver.ring.usedFlags = 0;
        }
        return real.store(words, index, value);
      });
      t.mock.method(Atomics, "load", (words: Uint16Array, index: number) => {
        if (words.byteOffset + 2 * index === word) seen.push("load");
        return real.load(words, index);
      });
      if (eventIdx) driver.ring.availEvent = 9;
      else driver.ring.usedFlags = 1;
      driver.add(1, 0);
      assert.equal(driver.queue.publish(), true);
      assert.deepEqual(seen, ["store idx", "load"]);
    },
  );
