import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { GuestMemory } from "./guest-memory.ts";
import { MemoryRegion } from "./memory-region.ts";

const LIMIT = { timeout: 10_000 };

/** 0x1000..0x2000, 0x2000..0x2400 right behind it, a read-only 0x4000..0x4100, and one far up. */
function memoryOf(): GuestMemory {
  return new GuestMemory([
    new MemoryRegion(0x4000, new ArrayBuffer(0x100), { readOnly: true }),
    new MemoryRegion(0x1000, new ArrayBuffer(0x1000)),
    new MemoryRegion(2 ** 40, new ArrayBuffer(0x1000), { byteOffset: 0x800, size: 0x400 }),
    new MemoryRegion(0x2000, new ArrayBuffer(0x400)),
  ]);
}

test("locate finds the region that holds the whole range, and no other", LIMIT, () => {
  const memory = memoryOf();
  const bytes = memory.regions.map(({ base, end, readOnly }) => ({ base, end, readOnly }));
  const somewhere = fc.oneof(
    fc.integer({ min: 0, max: 0x5000 }),
    fc.integer({ min: 2 ** 40 - 16, max: 2 ** 40 + 0x410 }),
    fc.constantFrom(2 ** 53, 2 ** 64, Number.NaN, -1),
  );
  fc.assert(
    fc.property(somewhere, fc.integer({ min: 0, max: 0x1100 }), fc.boolean(), (address, length, write) => {
      const wanted = bytes.findIndex(
        ({ base, end, readOnly }) =>
          address >= base && address < end && address + length <= end && !(write && readOnly),
      );
      assert.equal(memory.locate(address, length, write), wanted);
    }),
    { numRuns: 2000 },
  );
});

test("the columns say the same as the regions", LIMIT, () => {
  const { columns, regions } = memoryOf();
  assert.deepEqual(
    regions.map(({ base, end, readOnly }) => [base, end, readOnly ? 0 : 1]),
    regions.map((_, i) => [columns.base[i], columns.end[i], columns.writable[i]]),
  );
});

test("a copy runs over the border of neighbours, and is all or nothing", LIMIT, () => {
  const memory = memoryOf();
  const marks: [number, number][] = [];
  memory.observeWrites((address, length) => marks.push([address, length]));
  const bytes = Uint8Array.from({ length: 32 }, (_, i) => i + 1);
  assert.equal(memory.write(0x1ff0, bytes), true);
  const back = new Uint8Array(32);
  assert.equal(memory.read(0x1ff0, back), true);
  assert.deepEqual(back, bytes);
  assert.deepEqual(marks, [[0x1ff0, 32]]);
  assert.equal(memory.write(0x23f0, bytes), false);
  assert.equal(memory.write(0x4000, bytes), false);
  assert.equal(marks.length, 1);
  assert.equal(
    memory.regions[1]?.u8.every((byte, i) => byte === (i < 16 ? i + 17 : 0)),
    true,
  );
  const untouched = new Uint8Array(32).fill(9);
  assert.equal(memory.read(0x23f0, untouched), false);
  assert.ok(untouched.every((byte) => byte === 9));
});

test("contiguous ends at the region's end", LIMIT, () => {
  const memory = memoryOf();
  assert.deepEqual(
    [memory.contiguous(0x1ff0, 64), memory.contiguous(0x1ff0, 4), memory.contiguous(0x3000, 4)],
    [16, 4, 0],
  );
});

test("a region that is no longer in the map is empty; one that stays is the same", LIMIT, () => {
  const memory = memoryOf();
  const [first, second] = memory.regions as [MemoryRegion, MemoryRegion];
  memory.setRegions([first]);
  assert.deepEqual([first.u8.length, second.u8.length, second.u32.length, second.view.byteLength], [0x1000, 0, 0, 0]);
  assert.equal(memory.locate(0x2000, 1, false), -1);
  assert.equal(memory.columns.base.length, 1);
});

test("a region moves to another buffer", LIMIT, () => {
  const region = new MemoryRegion(0, new ArrayBuffer(64));
  const other = new Uint32Array(32).fill(7);
  region.setBuffer(other.buffer, 64);
  assert.equal(region.u32[0], 7);
  region.u8[0] = 1;
  assert.equal(other[16], 0x00000001);
});

test("what cannot be a map is refused", LIMIT, () => {
  const region = (base: number, size: number): MemoryRegion => new MemoryRegion(base, new ArrayBuffer(size));
  assert.throws(() => new GuestMemory([region(0, 64), region(32, 64)]), { code: "ERR_VIRTKIT_MEMORY_OVERLAP" });
  for (const bad of [
    () => region(8, 64),
    () => region(-16, 64),
    () => region(0, 0),
    () => region(0, 24),
    () => region(2 ** 53, 64),
    () => new MemoryRegion(0, new ArrayBuffer(64), { byteOffset: 2, size: 32 }),
    () => new MemoryRegion(0, new ArrayBuffer(64), { byteOffset: 32, size: 64 }),
  ])
    assert.throws(bad, { code: "ERR_VIRTKIT_MEMORY_REGION" });
});
