import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { GuestMemory } from "../memory/guest-memory.ts";
import { MemoryRegion } from "../memory/memory-region.ts";
import { ChainBatch, ChainReader, ChainWriter } from "./index.ts";

const LIMIT = { timeout: 20_000 };

/** A batch of one chain: `readable` and `writable` say how long the segments are; they lie apart, in two regions. */
function chainOf(readable: number[], writable: number[]): { memory: GuestMemory; batch: ChainBatch; places: number[] } {
  const memory = new GuestMemory([
    new MemoryRegion(0x1000, new ArrayBuffer(0x1000)),
    new MemoryRegion(0x8000, new ArrayBuffer(0x1000)),
  ]);
  const batch = new ChainBatch(1, 64);
  const places: number[] = [];
  const next = [16, 16];
  [...readable, ...writable].forEach((length, s) => {
    const region = s % 2;
    const offset = next[region] as number;
    next[region] = offset + length + 3;
    batch.region[s] = region;
    batch.offset[s] = offset;
    batch.length[s] = length;
    places.push((memory.regions[region] as MemoryRegion).base + offset);
  });
  batch.count = 1;
  batch.segments = readable.length + writable.length;
  batch.readable[0] = readable.length;
  batch.writable[0] = writable.length;
  batch.readableBytes[0] = readable.reduce((a, b) => a + b, 0);
  batch.writableBytes[0] = writable.reduce((a, b) => a + b, 0);
  return { memory, batch, places };
}

/** All bytes of segments, in order. */
function flat(memory: GuestMemory, places: number[], lengths: number[]): number[] {
  return lengths.flatMap((length, i) => {
    const bytes = new Uint8Array(length);
    memory.read(places[i] as number, bytes);
    return [...bytes];
  });
}

const lengthsOf = fc.array(fc.integer({ min: 1, max: 90 }), { minLength: 1, maxLength: 6 });

test("a reader sees the segments as one stretch, however it is cut", LIMIT, () => {
  fc.assert(
    fc.property(lengthsOf, fc.array(fc.integer({ min: 0, max: 100 })), (lengths, steps) => {
      const { memory, batch, places } = chainOf(lengths, [5]);
      lengths.forEach((length, i) => {
        memory.write(
          places[i] as number,
          Uint8Array.from({ length }, (_, n) => i * 37 + n),
        );
      });
      const all = flat(memory, places, lengths);
      const reader = new ChainReader(memory).from(batch, 0);
      let at = 0;
      steps.forEach((step, i) => {
        assert.deepEqual([reader.position, reader.remaining], [at, all.length - at]);
        const kind = i % 4;
        if (kind === 0) {
          const into = new Uint8Array(step);
          const count = reader.bytes(into);
          assert.equal(count, Math.min(step, all.length - at));
          assert.deepEqual([...into.subarray(0, count)], all.slice(at, at + count));
          at += count;
        } else if (kind === 1) {
          const count = reader.skip(step);
          assert.equal(count, Math.min(step, all.length - at));
          at += count;
        } else {
          const size = kind === 2 ? 4 : 8;
          const value = size === 4 ? reader.u32() : reader.u64();
          const bytes = all.slice(at, at + size);
          const fits = bytes.length === size;
          assert.equal(value, fits ? bytes.reduce((sum, byte, n) => sum + byte * 256 ** n, 0) : -1);
          if (fits) at += size;
        }
      });
    }),
  );
});

test("a writer fills the segments in order, reports each byte and nothing else", LIMIT, () => {
  fc.assert(
    fc.property(lengthsOf, fc.array(fc.uint8Array({ maxLength: 150 }), { maxLength: 8 }), (lengths, parts) => {
      const { memory, batch, places } = chainOf([4], lengths);
      const marked = new Set<number>();
      memory.observeWrites((address, length) => {
        for (let i = 0; i < length; i++) marked.add(address + i);
      });
      const writer = new ChainWriter(memory).to(batch, 0);
      const wanted: number[] = [];
      const total = lengths.reduce((a, b) => a + b, 0);
      for (const part of parts) {
        const fits = Math.min(part.length, total - wanted.length);
        assert.equal(writer.bytes(part), fits);
        wanted.push(...part.subarray(0, fits));
      }
      assert.equal(writer.position, wanted.length);
      assert.deepEqual(flat(memory, places.slice(1), lengths).slice(0, wanted.length), wanted);
      assert.equal(marked.size, wanted.length);
      const touched = memory.regions.reduce(
        (sum, { u8 }) => sum + u8.reduce((n, byte) => n + (byte === 0 ? 0 : 1), 0),
        0,
      );
      assert.equal(touched, wanted.filter((byte) => byte !== 0).length);
    }),
  );
});

test("numbers are little-endian and run over the border of two segments", LIMIT, () => {
  const { memory, batch, places } = chainOf([1], [3, 2, 20]);
  const writer = new ChainWriter(memory).to(batch, 0);
  assert.equal(writer.u8(0x11), true);
  assert.equal(writer.u32(0x55443322), true);
  assert.equal(writer.u16(0x7766), true);
  assert.equal(writer.u64(2 ** 40 + 5), true);
  assert.deepEqual(
    flat(memory, places.slice(1), [3, 2, 20]).slice(0, 15),
    [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 5, 0, 0, 0, 0, 1, 0, 0],
  );
  assert.equal(writer.fill(0xee, 100), 10);
  assert.deepEqual([writer.u8(1), writer.u16(1), writer.u32(1), writer.u64(1)], [false, false, false, false]);
});

test("a number that does not fit leaves the cursor where it is", LIMIT, () => {
  const { memory, batch } = chainOf([3], [3]);
  const reader = new ChainReader(memory).from(batch, 0);
  assert.deepEqual(
    [reader.u32(), reader.u64(), reader.position, reader.u16(), reader.u16(), reader.u8()],
    [-1, -1, 0, 0, -1, 0],
  );
  const writer = new ChainWriter(memory).to(batch, 0);
  assert.deepEqual([writer.u32(1), writer.position], [false, 0]);
});

test("seek goes to any byte, the status at the end of a request above all", LIMIT, () => {
  const { memory, batch, places } = chainOf([1], [7, 1]);
  const writer = new ChainWriter(memory).to(batch, 0);
  assert.equal(writer.seek(7), true);
  writer.u8(9);
  assert.deepEqual(flat(memory, places.slice(2), [1]), [9]);
  assert.equal(writer.seek(3), true);
  assert.deepEqual([writer.position, writer.remaining], [3, 5]);
  assert.equal(writer.seek(9), false);
  assert.equal(writer.remaining, 0);
});

test("a cursor over memory that went away has nothing left", LIMIT, () => {
  const { memory, batch } = chainOf([8], [8]);
  const reader = new ChainReader(memory).from(batch, 0);
  const writer = new ChainWriter(memory).to(batch, 0);
  memory.setRegions([]);
  assert.equal(reader.u32(), -1);
  assert.equal(writer.bytes(new Uint8Array(8)), 0);
  assert.equal(new ChainReader(memory).bytes(new Uint8Array(1)), 0);
});
