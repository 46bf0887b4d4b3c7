import assert from "node:assert/strict";
import { test } from "node:test";
import { GuestMemory } from "../memory/guest-memory.ts";
import { MemoryRegion } from "../memory/memory-region.ts";
import { VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT } from "../spec/ring.ts";
import { type RawDescriptor, RawPackedRing, RawSplitRing, writeSplitDescriptor } from "../testing/raw-ring.ts";
import { NO_FEATURES } from "../testing/ring-contract.ts";
import {
  type DeviceRig,
  END,
  memoryWithRom,
  offerPacked,
  offerSplit,
  type PackedRig,
  packedRig,
  packedTable,
  ROM,
  readable,
  SIZE,
  type SplitRig,
  splitRig,
  splitTable,
  TABLE,
  writable,
} from "../testing/ring-rigs.ts";
import { statements } from "../testing/statements.ts";
import {
  ChainBatch,
  createDeviceQueue,
  createDriverQueue,
  packedLayout,
  type QueueFaultKind,
  type QueueFeatures,
  splitLayout,
} from "./index.ts";

// Each malformation, for each ring format, and the fault the device's side ends in; then what looks odd and is allowed.

const NEXT = VIRTQ_DESC_F_NEXT;
const INDIRECT = VIRTQ_DESC_F_INDIRECT;
const LIMIT = { timeout: 20_000 };

/** What any chain can have wrong with it, in either format. */
const CHAINS: [name: string, kind: QueueFaultKind, chain: RawDescriptor[]][] = [
  ["a buffer where there is no memory", "buffer-address", [readable(16, 0x50000)]],
  ["a buffer over the end of memory", "buffer-address", [readable(32, ROM + 0x1000 - 16)]],
  ["an address of 2^64-1", "buffer-address", [readable(1, 2n ** 64n - 1n)]],
  ["an address and length that wrap at 2^64", "buffer-address", [readable(0x2000, 2n ** 64n - 0x1000n)]],
  ["an address past 2^53", "buffer-address", [readable(16, 2n ** 53n + 1n)]],
  ["a writable buffer in read-only memory", "buffer-address", [writable(16, ROM)]],
  ["a writable buffer that runs into read-only memory", "buffer-address", [writable(32, END - 16)]],
  ["a length of 4 GiB", "buffer-address", [readable(0xffffffff)]],
  ["readable behind writable", "order", [writable(), readable()]],
  ["readable behind an empty writable", "order", [writable(0), readable()]],
  ["more than 2^32 bytes", "chain-bytes", [readable(16), readable(0xffffffff)]],
];

for (const [name, kind, chain] of CHAINS) {
  test(`device, split: ${name}`, LIMIT, () => {
    const rig = splitRig();
    offerSplit(rig, chain);
    breaks(rig, kind);
  });
  test(`device, split, in a table: ${name}`, LIMIT, () => {
    const rig = splitRig();
    offerSplit(rig, [splitTable(rig, chain)]);
    breaks(rig, kind);
  });
  test(`device, packed: ${name}`, LIMIT, () => {
    const rig = packedRig();
    offerPacked(rig, chain);
    breaks(rig, kind);
  });
  test(`device, packed, in a table: ${name}`, LIMIT, () => {
    const rig = packedRig();
    offerPacked(rig, [packedTable(rig, chain)]);
    breaks(rig, kind);
  });
}

/** A good chain is delivered first, then the queue breaks and does nothing any more. */
function breaks({ queue, batch }: DeviceRig, kind: QueueFaultKind, before = 0): void {
  assert.equal(queue.pop(batch, SIZE), before);
  if (queue.fault === undefined) assert.equal(queue.pop(batch, SIZE), 0);
  assert.equal(queue.fault?.kind, kind, queue.fault?.reason);
  assert.ok((queue.fault?.reason.length ?? 0) > 10);
  assert.deepEqual(
    [queue.pop(batch, SIZE), queue.available(), queue.enableKicks(), queue.flush()],
    [0, false, false, false],
  );
}

const SPLIT: [name: string, kind: QueueFaultKind, features: Partial<QueueFeatures>, make: (rig: SplitRig) => void][] = [
  [
    "idx further ahead than the ring is long",
    "index-jump",
    {},
    ({ ring }) => Object.assign(ring, { availIdx: SIZE + 1 }),
  ],
  ["idx that goes back", "index-jump", {}, ({ ring }) => Object.assign(ring, { availIdx: 0xffff })],
  ["a head past the table", "descriptor-index", {}, ({ ring }) => ring.offer(SIZE)],
  [
    "next past the table",
    "descriptor-index",
    {},
    (rig) => {
      rig.ring.writeDescriptor(0, { ...readable(), flags: NEXT, next: SIZE });
      rig.ring.offer(0);
    },
  ],
  [
    "a descriptor that is its own next",
    "chain-length",
    {},
    (rig) => {
      rig.ring.writeDescriptor(0, { ...readable(), flags: NEXT, next: 0 });
      rig.ring.offer(0);
    },
  ],
  [
    "a loop of the whole table",
    "chain-length",
    {},
    (rig) => {
      for (let i = 0; i < SIZE; i++) rig.ring.writeDescriptor(i, { ...readable(), flags: NEXT, next: (i + 1) % SIZE });
      rig.ring.offer(0);
    },
  ],
  [
    "an indirect table that was not negotiated",
    "indirect",
    {},
    (rig) => offerSplit(rig, [splitTable(rig, [readable()])]),
  ],
  [
    "an indirect table in an indirect table",
    "indirect",
    { indirect: true },
    (rig) => offerSplit(rig, [splitTable(rig, [{ ...readable(16), flags: INDIRECT }])]),
  ],
  [
    "an indirect table with NEXT",
    "indirect",
    { indirect: true },
    (rig) => offerSplit(rig, [splitTable(rig, [readable()]), readable()]),
  ],
  [
    "next past the indirect table",
    "descriptor-index",
    { indirect: true },
    (rig) => offerSplit(rig, [splitTable(rig, [{ ...readable(), flags: NEXT, next: 2 }, readable()])]),
  ],
  [
    "a loop in an indirect table",
    "chain-length",
    { indirect: true },
    (rig) => offerSplit(rig, [splitTable(rig, [readable(), { ...readable(), flags: NEXT, next: 0 }])]),
  ],
];

for (const [name, kind, features, make] of SPLIT)
  test(`device, split: ${name}`, LIMIT, () => {
    const rig = splitRig(features);
    make(rig);
    breaks(rig, kind);
  });

test("device, split: a head that is in flight", LIMIT, () => {
  const rig = splitRig();
  offerSplit(rig, [readable()]);
  rig.ring.offer(0);
  breaks(rig, "duplicate", 1);
});

for (const length of [0, 8, 17, 65537 * 16])
  for (const packed of [false, true])
    test(`device, ${packed ? "packed" : "split"}: an indirect table of ${length} bytes`, LIMIT, () => {
      const table = { address: TABLE, length, flags: INDIRECT };
      const rig = packed ? packedRig() : splitRig();
      if (packed) offerPacked(rig as PackedRig, [table]);
      else offerSplit(rig as SplitRig, [table]);
      breaks(rig, "indirect");
    });

for (const packed of [false, true])
  test(`device, ${packed ? "packed" : "split"}: an indirect table outside memory`, LIMIT, () => {
    const table = { address: 0x70000, length: 16, flags: INDIRECT };
    const rig = packed ? packedRig() : splitRig();
    if (packed) offerPacked(rig as PackedRig, [table]);
    else offerSplit(rig as SplitRig, [table]);
    breaks(rig, "buffer-address");
  });

const PACKED: [name: string, kind: QueueFaultKind, features: Partial<QueueFeatures>, make: (rig: PackedRig) => void][] =
  [
    [
      "a next descriptor that is not available",
      "flags",
      {},
      ({ ring }) => ring.writeDescriptor(0, { ...readable(), flags: NEXT | RawPackedRing.available(true) }),
    ],
    [
      "a mark of use where nothing can be used yet",
      "flags",
      {},
      ({ ring }) => ring.writeDescriptor(0, { ...readable(), flags: RawPackedRing.used(true) }),
    ],
    [
      "a chain that goes round the whole ring and on",
      "chain-length",
      {},
      ({ ring }) => {
        for (let i = 0; i < SIZE; i++)
          ring.writeDescriptor(i, { ...readable(), flags: NEXT | RawPackedRing.available(true) });
      },
    ],
    [
      "an indirect table that was not negotiated",
      "indirect",
      {},
      (rig) => offerPacked(rig, [packedTable(rig, [readable()])]),
    ],
    [
      "an indirect table with NEXT",
      "indirect",
      { indirect: true },
      (rig) => offerPacked(rig, [packedTable(rig, [readable()]), readable()]),
    ],
    [
      "an indirect table at the end of a list",
      "indirect",
      { indirect: true },
      (rig) => offerPacked(rig, [readable(), packedTable(rig, [readable()])]),
    ],
  ];

for (const [name, kind, features, make] of PACKED)
  test(`device, packed: ${name}`, LIMIT, () => {
    const rig = packedRig(features);
    make(rig);
    breaks(rig, kind);
  });

test("device, packed: a buffer id that is in flight", LIMIT, () => {
  const rig = packedRig();
  offerPacked(rig, [readable()], 0, 5);
  offerPacked(rig, [readable()], 1, 5);
  breaks(rig, "duplicate", 1);
});

test("device, packed: descriptors in flight that are made available again", LIMIT, () => {
  const rig = packedRig();
  for (let i = 0; i < SIZE; i++) offerPacked(rig, [readable()], i);
  assert.equal(rig.queue.pop(rig.batch, SIZE), SIZE);
  rig.batch.clear();
  rig.ring.writeDescriptor(0, { ...readable(), id: 9, flags: RawPackedRing.available(false) });
  breaks(rig, "index-jump");
});

/** Odd, but allowed: [name, chain, readable segments, writable segments]. */
const ALLOWED: [name: string, chain: RawDescriptor[], readable: number, writable: number][] = [
  ["empty buffers add nothing, wherever they are", [readable(0, 2n ** 60n), readable(), writable(0)], 1, 0],
  ["a chain of nothing but an empty buffer", [readable(0)], 0, 0],
  ["a readable buffer over the border of two regions is two segments", [readable(32, END - 16)], 2, 0],
  ["a chain as long as the queue", Array.from({ length: SIZE }, () => writable(1)), 0, SIZE],
  ["reserved flags are not looked at", [{ ...readable(), flags: 0x0070 }], 1, 0],
];

for (const [name, chain, readables, writables] of ALLOWED) {
  const is = ({ queue, batch }: DeviceRig): void => {
    assert.equal(queue.pop(batch, SIZE), 1, queue.fault?.reason);
    assert.deepEqual([batch.readable[0], batch.writable[0]], [readables, writables]);
    assert.equal(queue.fault, undefined);
  };
  test(`device, split: ${name}`, LIMIT, () => {
    const rig = splitRig();
    offerSplit(rig, chain);
    is(rig);
  });
  test(`device, packed: ${name}`, LIMIT, () => {
    const rig = packedRig();
    offerPacked(rig, chain);
    is(rig);
  });
}

test("device: indirect tables may be longer than the queue and lie at any address", LIMIT, () => {
  for (const address of [TABLE, TABLE + 1, TABLE + 2]) {
    const entries = Array.from({ length: 3 * SIZE }, () => writable(4));
    const split = splitRig();
    offerSplit(split, [splitTable(split, entries, address)]);
    assert.equal(split.queue.pop(split.batch, 1), 1, split.queue.fault?.reason);
    const packed = packedRig();
    // Flags other than WRITE mean nothing in a packed table.
    const noisy = entries.map((d) => ({ ...d, flags: d.flags | NEXT | INDIRECT | RawPackedRing.used(true) }));
    offerPacked(packed, [packedTable(packed, noisy, address)]);
    assert.equal(packed.queue.pop(packed.batch, 1), 1, packed.queue.fault?.reason);
    assert.deepEqual([split.batch.writable[0], packed.batch.writable[0]], [3 * SIZE, 3 * SIZE]);
  }
});

test("device, split: next past the table, where something like a descriptor lies", LIMIT, () => {
  const { memory, view } = memoryWithRom();
  const place = { ...splitLayout(0, SIZE), driver: 0x1000, device: 0x2000 };
  const ring = new RawSplitRing(view, place);
  const queue = createDeviceQueue(memory, place, NO_FEATURES);
  ring.writeDescriptor(0, { ...readable(), flags: NEXT, next: SIZE });
  ring.writeDescriptor(SIZE, readable());
  ring.offer(0);
  breaks({ queue, view, batch: new ChainBatch(SIZE) }, "descriptor-index");
});

for (const packed of [false, true])
  test(`device, ${packed ? "packed" : "split"}: 2^32 bytes in memory are allowed, one more is not`, LIMIT, () => {
    const quarter = 2 ** 26;
    const memory = GuestMemory.allocate(quarter * 2);
    const view = (memory.regions[0] as MemoryRegion).view;
    const place = (packed ? packedLayout : splitLayout)(0, 128);
    for (const extra of [0, 1]) {
      const queue = createDeviceQueue(memory, place, { ...NO_FEATURES, packed });
      const batch = new ChainBatch(1);
      const chain = Array.from({ length: 64 }, () => readable(quarter, quarter));
      if (extra > 0) chain.push(readable(1));
      new Uint8Array(view.buffer, 0, place.bytes).fill(0);
      if (packed) offerPacked({ queue, view, batch, ring: new RawPackedRing(view, place) }, chain);
      else offerSplit({ queue, view, batch, ring: new RawSplitRing(view, place) }, chain);
      if (extra > 0) breaks({ queue, view, batch }, "chain-bytes");
      else {
        assert.equal(queue.pop(batch, 1), 1, queue.fault?.reason);
        assert.equal(batch.readableBytes[0], 2 ** 32);
      }
    }
  });

test("device: what comes in front of a malformed chain is delivered", LIMIT, () => {
  const split = splitRig();
  offerSplit(split, [readable()], 0);
  offerSplit(split, [readable(16, 0x50000)], 1);
  breaks(split, "buffer-address", 1);
  const packed = packedRig();
  offerPacked(packed, [readable()], 0);
  offerPacked(packed, [readable(16, 0x50000)], 1);
  breaks(packed, "buffer-address", 1);
});

/** A ring of 1024 heads that all name one table of 65536 buffers. */
function hugeTable(bytes: number) {
  const size = 1024;
  const memory = GuestMemory.allocate(4 << 20);
  const view = (memory.regions[0] as MemoryRegion).view;
  const place = splitLayout(0, size);
  const ring = new RawSplitRing(view, place);
  const queue = createDeviceQueue(memory, place, { ...NO_FEATURES, indirect: true });
  const entries = 65536;
  for (let i = 0; i < entries; i++) {
    const last = i + 1 === entries;
    const links = { flags: last ? 0 : NEXT, next: last ? 0 : i + 1 };
    writeSplitDescriptor(view, (1 << 20) + i * 16, { ...readable(bytes), ...links });
  }
  for (let i = 0; i < size; i++) {
    ring.writeDescriptor(i, { address: 1 << 20, length: entries * 16, flags: INDIRECT });
    ring.offer(i);
  }
  return { queue, batch: new ChainBatch(size), size, entries };
}

test("device: a ring full of heads that share one huge table does not eat the memory", LIMIT, () => {
  const { queue, batch, size, entries } = hugeTable(1);
  assert.equal(queue.pop(batch, size), 1);
  assert.ok(batch.length.length <= 4 * entries);
  batch.clear();
  assert.equal(queue.pop(batch, 1), 1, "the rest is not lost");
});

test("device: a batch also ends when many empty buffers were walked", LIMIT, () => {
  const { queue, batch, size } = hugeTable(0);
  assert.equal(queue.pop(batch, size), 1);
  assert.equal(batch.segments, 0);
  batch.clear();
  assert.equal(queue.pop(batch, size), 1, "the rest is not lost");
});

const GEOMETRY: [
  name: string,
  packed: boolean,
  config: Partial<Record<"size" | "desc" | "driver" | "device", number>>,
][] = [
  ["size 0", false, { size: 0 }],
  ["size 3", false, { size: 3 }],
  ["size 65536", false, { size: 65536 }],
  ["size 0, packed", true, { size: 0 }],
  ["size 32769, packed", true, { size: 32769 }],
  ["descriptors not aligned", false, { desc: 8 }],
  ["available ring not aligned", false, { driver: 0x1001 }],
  ["used ring not aligned", false, { device: 0x1002 }],
  ["event suppression not aligned", true, { driver: 0x1002 }],
  ["descriptors outside memory", false, { desc: 0x100000 }],
  ["available ring over the end", false, { driver: ROM + 0x1000 - 8 }],
  ["used ring over the end", false, { device: END + 0x1000 }],
  ["an address past 2^53", true, { desc: 2 ** 60 }],
  ["an address that is no number", true, { desc: Number.NaN }],
];

for (const [name, packed, bad] of GEOMETRY)
  test(`both sides, geometry: ${name}`, LIMIT, () => {
    const { memory, view } = memoryWithRom();
    const config = { ...(packed ? packedLayout : splitLayout)(0, SIZE), ...bad };
    const features = { ...NO_FEATURES, packed };
    const device = createDeviceQueue(memory, config, features);
    const driver = createDriverQueue(memory, config, features);
    for (const queue of [device, driver]) assert.equal(queue.fault?.kind, "ring-address");
    assert.equal(device.pop(new ChainBatch(1), 1), 0);
    assert.equal(driver.publish(), false);
    assert.ok(new Uint8Array(view.buffer).every((byte) => byte === 0));
  });

test("device: rings it has to write must not be read-only", LIMIT, () => {
  const { memory } = memoryWithRom();
  const split = { ...splitLayout(0, SIZE), device: ROM };
  assert.equal(createDeviceQueue(memory, split, NO_FEATURES).fault?.kind, "ring-address");
  const packed = { ...packedLayout(0, SIZE), desc: ROM };
  assert.equal(createDeviceQueue(memory, packed, { ...NO_FEATURES, packed: true }).fault?.kind, "ring-address");
  const readOnlyIsEnough = { ...splitLayout(0, SIZE), desc: ROM };
  assert.equal(createDeviceQueue(memory, readOnlyIsEnough, NO_FEATURES).fault, undefined);
});

test("device, packed: a state past the ring", LIMIT, () => {
  const { memory } = memoryWithRom();
  const state = { availIndex: SIZE, availWrap: true, usedIndex: 0, usedWrap: true };
  const features = { ...NO_FEATURES, packed: true };
  assert.equal(createDeviceQueue(memory, packedLayout(0, SIZE), features, state).fault?.kind, "index-jump");
});

for (const packed of [false, true])
  test(`device, ${packed ? "packed" : "split"}: the rings' memory is replaced or goes away`, LIMIT, () => {
    const rig = packed ? packedRig() : splitRig();
    const { queue, batch, view } = rig;
    const memory = GuestMemory.allocate(16);
    const config = (packed ? packedLayout : splitLayout)(0, SIZE);
    const other = createDeviceQueue(memory, config, { ...NO_FEATURES, packed });
    assert.equal(other.fault?.kind, "ring-address");
    if (packed) offerPacked(rig as PackedRig, [readable()]);
    else offerSplit(rig as SplitRig, [readable()]);
    assert.equal(queue.pop(batch, 1), 1);
    const moving = new GuestMemory([new MemoryRegion(0, view.buffer)]);
    const moved = createDeviceQueue(moving, config, { ...NO_FEATURES, packed });
    moving.setRegions([new MemoryRegion(0, view.buffer)]);
    batch.clear();
    assert.equal(moved.pop(batch, 1), 1, "the same addresses are there in another region");
    moving.setRegions([]);
    assert.equal(moved.pop(batch, 1), 0);
    assert.equal(moved.fault?.kind, "ring-address");
  });

test(
  statements("device, in order: what is done too early is held back", "device: Reserved Feature Bits #2"),
  LIMIT,
  () => {
    for (const packed of [false, true]) {
      const rig = packed ? packedRig({ inOrder: true }) : splitRig({ inOrder: true });
      for (let i = 0; i < 3; i++)
        if (packed) offerPacked(rig as PackedRig, [writable()], i);
        else offerSplit(rig as SplitRig, [writable()], i);
      assert.equal(rig.queue.pop(rig.batch, 3), 3);
      rig.queue.push(2, 1);
      rig.queue.push(1, 2);
      assert.equal(rig.queue.flush(), false);
      rig.queue.push(0, 3);
      assert.equal(rig.queue.flush(), true);
      const used = packed
        ? [0, 1, 2].map((i) => (rig as PackedRig).ring.readDescriptor(i))
        : [0, 1, 2].map((i) => (rig as SplitRig).ring.readUsed(i));
      assert.deepEqual(
        used.map(({ id, length }) => [id, length]),
        [
          [0, 3],
          [1, 2],
          [2, 1],
        ],
      );
    }
  },
);

test("device, split, legacy: NOTIFY_ON_EMPTY interrupts when nothing is left, whatever was asked", LIMIT, () => {
  const rig = splitRig({ notifyOnEmpty: true });
  rig.ring.availFlags = 1;
  offerSplit(rig, [readable()], 0);
  offerSplit(rig, [readable()], 1);
  rig.queue.pop(rig.batch, 1);
  rig.queue.push(0, 0);
  assert.equal(rig.queue.flush(), false);
  rig.queue.pop(rig.batch, 1);
  rig.queue.push(1, 0);
  assert.equal(rig.queue.flush(), true);
});
