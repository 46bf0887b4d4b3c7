import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { blockBackendContract, whole } from "../../testing/block-backend.ts";
import { BlockClient } from "../../testing/block-client.ts";
import { ManualBlockBackend } from "../../testing/manual-block.ts";
import { MemoryBlockBackend } from "./memory.ts";
import { OverlayBlockBackend } from "./overlay.ts";
import { SparseBits } from "./sparse-bits.ts";
import {
  BLOCK_DISCARD,
  BLOCK_FLUSH,
  BLOCK_IO_ERROR,
  BLOCK_OK,
  BLOCK_READ,
  BLOCK_WRITE,
  BLOCK_WRITE_ZEROES,
} from "./types.ts";

const limit = { timeout: 30_000 };
const KIB = 1024;

blockBackendContract("overlay in memory", async (capacity) => ({
  backend: new OverlayBlockBackend(new MemoryBlockBackend({ capacity }), new MemoryBlockBackend({ capacity })),
}));
blockBackendContract("overlay of disks that answer out of order", async (capacity) => ({
  backend: new OverlayBlockBackend(
    new ManualBlockBackend({ capacity, auto: 3 }),
    new ManualBlockBackend({ capacity, auto: 17 }),
  ),
}));

const bytes = (length: number, value: number): Uint8Array => new Uint8Array(length).fill(value);
const write = (offset: number, data: Uint8Array) => ({ op: BLOCK_WRITE, offset, pieces: [whole(data)] });
const read = (offset: number, into: Uint8Array) => ({ op: BLOCK_READ, offset, pieces: [whole(into)] });

test("overlay: reads are of what was written last, block by block, and the base never changes", limit, async () => {
  const BLOCKS = 64;
  const change = fc.record({
    op: fc.constantFrom(BLOCK_READ, BLOCK_WRITE, BLOCK_WRITE, BLOCK_WRITE_ZEROES, BLOCK_DISCARD),
    block: fc.nat(BLOCKS - 1),
    blocks: fc.integer({ min: 1, max: 24 }),
    value: fc.integer({ min: 1, max: 255 }),
  });
  await fc.assert(
    fc.asyncProperty(fc.array(change, { maxLength: 40 }), fc.boolean(), async (changes, inline) => {
      const capacity = BLOCKS * 512;
      const contents = Uint8Array.from({ length: capacity }, (_, i) => 1 + (i % 251));
      const make = (options: { contents?: Uint8Array }) =>
        inline
          ? new MemoryBlockBackend({ capacity, ...options })
          : new ManualBlockBackend({ capacity, auto: 9, ...options });
      const base = make({ contents });
      const client = new BlockClient(new OverlayBlockBackend(base, make({})));
      const model = contents.slice();
      for (const { op, block, blocks, value } of changes) {
        const offset = block * 512;
        const length = Math.min(blocks, BLOCKS - block) * 512;
        if (op === BLOCK_READ) {
          const into = bytes(length, 0xee);
          assert.deepEqual(await client.run(read(offset, into)), [BLOCK_OK]);
          assert.ok(Buffer.compare(into, model.subarray(offset, offset + length)) === 0);
        } else if (op === BLOCK_WRITE) {
          model.fill(value, offset, offset + length);
          assert.deepEqual(await client.run(write(offset, bytes(length, value))), [BLOCK_OK]);
        } else {
          model.fill(0, offset, offset + length);
          assert.deepEqual(await client.run({ op, offset, length, pieces: [] }), [BLOCK_OK]);
        }
      }
      const all = bytes(capacity, 0xee);
      await client.run(read(0, all));
      assert.ok(Buffer.compare(all, model) === 0);
      const below = base instanceof ManualBlockBackend ? base.disk : base;
      assert.ok(Buffer.compare(below.peek(0, capacity), contents) === 0, "the base changed");
    }),
    { numRuns: 60 },
  );
});

test("overlay: parts of one cluster written at once do not lose each other", limit, async () => {
  const capacity = 64 * KIB;
  const base = new MemoryBlockBackend({ capacity, contents: bytes(capacity, 9) });
  const scratch = new ManualBlockBackend({ capacity, auto: 5 });
  const client = new BlockClient(new OverlayBlockBackend(base, scratch));
  const writes = Array.from({ length: 32 }, (_, i) => write(i * 1024, bytes(512, i + 100)));
  assert.deepEqual(await client.run(...writes), new Array(32).fill(BLOCK_OK));
  const all = bytes(capacity, 0);
  await client.run(read(0, all));
  for (let i = 0; i < 32; i++) assert.deepEqual([all[i * 1024], all[i * 1024 + 512]], [i + 100, 9]);
});

test("overlay: a read in many pieces waits for room and comes back whole", limit, async () => {
  const capacity = 256 * KIB;
  const overlay = new OverlayBlockBackend(
    new ManualBlockBackend({ capacity, contents: bytes(capacity, 3), auto: 2 }),
    new ManualBlockBackend({ capacity, auto: 4 }),
  );
  const client = new BlockClient(overlay, 8);
  for (let at = 0; at < capacity; at += 4 * KIB) await client.run(write(at, bytes(512, 7)));
  const [one, two] = [bytes(capacity, 0), bytes(capacity, 0)];
  assert.deepEqual(await client.run(read(0, one), read(0, two)), [BLOCK_OK, BLOCK_OK]);
  for (const all of [one, two]) assert.ok(all.every((byte, i) => byte === (i % 4096 < 512 ? 7 : 3)));
  await overlay.close();
});

test("overlay: until a write is done the old data is there; one that failed leaves it", limit, async () => {
  const capacity = 4096;
  const base = new MemoryBlockBackend({ capacity, contents: bytes(capacity, 1) });
  const scratch = new ManualBlockBackend({ capacity });
  const client = new BlockClient(new OverlayBlockBackend(base, scratch));
  const writing = client.run(write(0, bytes(1024, 2)));
  const into = bytes(512, 0);
  await client.run(read(0, into));
  assert.equal(into[0], 1);
  scratch.fail = () => true;
  scratch.answerAll();
  assert.deepEqual(await writing, [BLOCK_IO_ERROR]);
  await client.run(read(0, into));
  assert.equal(into[0], 1);
  scratch.fail = () => false;
  const flushing = client.run({ op: BLOCK_FLUSH, offset: 0, pieces: [] });
  assert.equal(scratch.waiting[0]?.op, BLOCK_FLUSH);
  scratch.answerAll();
  assert.deepEqual(await flushing, [BLOCK_OK]);
});

test("overlay: what was discarded frees memory; beyond the limit writes fail and reads go on", limit, async () => {
  const capacity = 1024 * KIB;
  const base = new MemoryBlockBackend({ capacity, contents: bytes(capacity, 1) });
  const scratch = new MemoryBlockBackend({ capacity, limit: 256 * KIB });
  const overlay = new OverlayBlockBackend(base, scratch);
  const client = new BlockClient(overlay);
  assert.deepEqual(await client.run(write(0, bytes(256 * KIB, 2))), [BLOCK_OK]);
  assert.deepEqual(await client.run(write(512 * KIB, bytes(512, 2))), [BLOCK_IO_ERROR]);
  await client.run({ op: BLOCK_DISCARD, offset: 0, length: 128 * KIB, pieces: [] });
  assert.equal(scratch.allocated, 128 * KIB);
  assert.equal(overlay.ownedBytes, 256 * KIB);
  assert.deepEqual(await client.run(write(512 * KIB, bytes(512, 2))), [BLOCK_OK]);
  const all = bytes(capacity, 0);
  await client.run(read(0, all));
  assert.deepEqual([all[0], all[128 * KIB], all[512 * KIB], all[512 * KIB + 512]], [0, 2, 2, 1]);
});

test("overlay: smaller and larger again, nothing of the base comes back", limit, async () => {
  const capacity = 64 * KIB;
  const base = new MemoryBlockBackend({ capacity, contents: bytes(capacity, 1) });
  const overlay = new OverlayBlockBackend(base, new MemoryBlockBackend({ capacity }));
  const client = new BlockClient(overlay);
  await client.run(write(32 * KIB, bytes(512, 2)));
  await overlay.resize(16 * KIB);
  assert.equal(client.capacity, 16 * KIB);
  await overlay.resize(128 * KIB);
  const all = bytes(128 * KIB, 7);
  await client.run(read(0, all));
  assert.ok(all.every((byte, i) => byte === (i < 16 * KIB ? 1 : 0)));
  await assert.rejects(overlay.resize(100), { code: "ERR_VIRTKIT_BLOCK_SIZE" });
});

test("overlay: a scratch disk that does not fit is refused", limit, () => {
  const disk = (capacity: number, blockSize = 512) => new MemoryBlockBackend({ capacity, blockSize });
  assert.throws(() => new OverlayBlockBackend(disk(4096), disk(8192)), { code: "ERR_VIRTKIT_BLOCK_SIZE" });
  assert.throws(() => new OverlayBlockBackend(disk(4096), disk(4096, 4096)), { code: "ERR_VIRTKIT_BLOCK_SIZE" });
});

test("sparse bits behave as a set of numbers", limit, () => {
  const range = fc.tuple(fc.nat(9000), fc.nat(300));
  fc.assert(
    fc.property(fc.array(range, { maxLength: 12 }), fc.nat(9300), fc.nat(9300), (ranges, from, cutAt) => {
      const bits = new SparseBits();
      const model = new Set<number>();
      for (const [start, length] of ranges) {
        bits.add(start, start + length);
        for (let bit = start; bit < start + length; bit++) model.add(bit);
      }
      const check = (): void => {
        assert.equal(bits.count, model.size);
        let end = from;
        while (end < 9300 && model.has(end) === model.has(from)) end++;
        assert.equal(bits.has(from), model.has(from));
        assert.equal(bits.runEnd(from, 9300), end);
      };
      check();
      bits.truncate(cutAt);
      for (const bit of [...model]) if (bit >= cutAt) model.delete(bit);
      check();
    }),
    { numRuns: 200 },
  );
});
