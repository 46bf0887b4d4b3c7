import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  BLOCK_DISCARD,
  BLOCK_FLUSH,
  BLOCK_IO_ERROR,
  BLOCK_MAX_PIECES,
  BLOCK_MAY_UNMAP,
  BLOCK_OK,
  BLOCK_READ,
  BLOCK_SECURE_ERASE,
  BLOCK_UNSUPPORTED,
  BLOCK_WRITE,
  BLOCK_WRITE_ZEROES,
  type BlockBackend,
} from "../backend/block/types.ts";
import { type Ask, BlockClient, type Piece } from "./block-client.ts";

/** Makes a writable, zeroed disk of this capacity. `undo` is called at the end, after `close`. */
export type MakeBlockBackend = (capacity: number) => Promise<{ backend: BlockBackend; undo?: () => Promise<void> }>;

const limit = { timeout: 60_000 };
const BLOCKS = 256;

export const whole = (buffer: Uint8Array): Piece => ({ buffer, offset: 0, length: buffer.length });

/** One buffer as pieces cut at these offsets, each in a larger buffer of its own with something around it. */
function scatter(bytes: Uint8Array, cuts: readonly number[]): Piece[] {
  const borders = [0, ...[...new Set(cuts.map((n) => n % bytes.length))].sort((a, b) => a - b), bytes.length];
  return borders.slice(1).flatMap((end, i) => {
    const start = borders[i] as number;
    if (end === start) return [];
    const buffer = new Uint8Array(end - start + 24).fill(0xa5);
    buffer.set(bytes.subarray(start, end), 11);
    return [{ buffer, offset: 11, length: end - start }];
  });
}

function gather(pieces: readonly Piece[]): Buffer {
  for (const { buffer, offset, length } of pieces) {
    const outside = [...buffer.subarray(0, offset), ...buffer.subarray(offset + length)];
    assert.ok(
      outside.every((byte) => byte === 0xa5),
      "bytes around a piece were touched",
    );
  }
  return Buffer.concat(pieces.map(({ buffer, offset, length }) => buffer.subarray(offset, offset + length)));
}

/** What every writable block back end has to do; `make` is called once a test. */
export function blockBackendContract(name: string, make: MakeBlockBackend): void {
  const withClient = async (capacity: number, use: (client: BlockClient, backend: BlockBackend) => Promise<void>) => {
    const { backend, undo } = await make(capacity);
    try {
      await use(new BlockClient(backend), backend);
    } finally {
      await backend.close();
      await undo?.();
    }
  };

  test(`${name}: after detach() another front side may come, to the same bytes`, limit, async (t) => {
    await withClient(BLOCKS * 512, async (first, backend) => {
      if (backend.detach === undefined) return t.skip("it serves one front side in its life");
      const written = new Uint8Array(1024).fill(7);
      assert.deepEqual(await first.run({ op: BLOCK_WRITE, offset: 512, pieces: [whole(written)] }), [BLOCK_OK]);
      assert.throws(() => new BlockClient(backend), { code: "ERR_VIRTKIT_ATTACHED" });
      for (const slots of [64, 8]) {
        backend.detach();
        const next = new BlockClient(backend, slots);
        const read = new Uint8Array(1024);
        assert.deepEqual(await next.run({ op: BLOCK_READ, offset: 512, pieces: [whole(read)] }), [BLOCK_OK]);
        assert.deepEqual(read, written);
      }
    });
  });

  test(`${name}: random vectored requests against a plain array of bytes`, limit, async () => {
    const request = fc.record({
      write: fc.boolean(),
      block: fc.nat(BLOCKS - 1),
      blocks: fc.integer({ min: 1, max: 16 }),
      cuts: fc.array(fc.nat(8191), { maxLength: 8 }),
      seed: fc.nat(255),
    });
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.array(request, { minLength: 1, maxLength: 12 }), { maxLength: 12 }),
        async (rounds) => {
          await withClient(BLOCKS * 512, async (client, { blockSize }) => {
            assert.equal(blockSize, 512);
            const model = new Uint8Array(BLOCKS * 512);
            for (const round of rounds) await runRound(client, model, round);
            const all = new Uint8Array(model.length);
            assert.deepEqual(await client.run({ op: BLOCK_READ, offset: 0, pieces: [whole(all)] }), [BLOCK_OK]);
            assert.deepEqual(Buffer.from(all), Buffer.from(model));
          });
        },
      ),
      { numRuns: 25 },
    );
  });

  test(`${name}: the first block, the last, and all of them at once`, limit, async () => {
    await withClient(64 * 1024, async (client) => {
      const first = new Uint8Array(512).fill(1);
      const last = new Uint8Array(512).fill(2);
      const end = 64 * 1024 - 512;
      const wrote = await client.run(
        { op: BLOCK_WRITE, offset: 0, pieces: [whole(first)] },
        { op: BLOCK_WRITE, offset: end, pieces: [whole(last)] },
      );
      assert.deepEqual(wrote, [BLOCK_OK, BLOCK_OK]);
      const all = new Uint8Array(64 * 1024).fill(9);
      await client.run({ op: BLOCK_READ, offset: 0, pieces: [whole(all)] });
      assert.deepEqual([all[0], all[511], all[512], all[end - 1], all[end], all.at(-1)], [1, 1, 0, 0, 2, 2]);
    });
  });

  test(`${name}: a vector of ${BLOCK_MAX_PIECES} pieces`, limit, async () => {
    await withClient(BLOCK_MAX_PIECES * 512, async (client) => {
      const data = Uint8Array.from({ length: BLOCK_MAX_PIECES * 512 }, (_, i) => (i * 7) ^ (i >> 9));
      const pieces = Array.from({ length: BLOCK_MAX_PIECES }, (_, i) => ({
        buffer: data,
        offset: i * 512,
        length: 512,
      }));
      assert.deepEqual(await client.run({ op: BLOCK_WRITE, offset: 0, pieces }), [BLOCK_OK]);
      const back = new Uint8Array(data.length);
      const into = pieces.map(({ offset, length }) => ({ buffer: back, offset, length }));
      assert.deepEqual(await client.run({ op: BLOCK_READ, offset: 0, pieces: into }), [BLOCK_OK]);
      assert.deepEqual(Buffer.from(back), Buffer.from(data));
    });
  });

  test(`${name}: flushes among writes, and what it cannot do`, limit, async () => {
    await withClient(64 * 1024, async (client) => {
      const buffer = new Uint8Array(512).fill(7);
      const asks: Ask[] = Array.from({ length: 30 }, (_, i) =>
        i % 3 === 2
          ? { op: BLOCK_FLUSH, offset: 0, pieces: [] }
          : { op: BLOCK_WRITE, offset: i * 512, pieces: [whole(buffer)] },
      );
      assert.deepEqual(await client.run(...asks), new Array(30).fill(BLOCK_OK));
      const [discard, unknown] = await client.run(
        { op: BLOCK_DISCARD, offset: 32 * 1024, length: 512, pieces: [] },
        { op: 99, offset: 0, length: 512, pieces: [] },
      );
      assert.ok(discard === BLOCK_OK || discard === BLOCK_UNSUPPORTED);
      assert.equal(unknown, BLOCK_UNSUPPORTED);
    });
  });

  test(`${name}: zeros where it takes write zeroes, among data that stays`, limit, async () => {
    await withClient(1024 * 1024, async (client, backend) => {
      for (const [op, offered] of [
        [BLOCK_WRITE_ZEROES, backend.writeZeroes],
        [BLOCK_SECURE_ERASE, backend.secureErase],
      ] as const) {
        for (const flags of [0, BLOCK_MAY_UNMAP]) {
          const data = new Uint8Array(1024 * 1024).fill(0x3c);
          await client.run({ op: BLOCK_WRITE, offset: 0, pieces: [whole(data)] });
          const ranges = [
            [0, 512],
            [1024, 1024],
            [64 * 1024 - 512, 200 * 1024],
            [512 * 1024, 256 * 1024],
            [1024 * 1024 - 1536, 1536],
          ] as const;
          const results = await client.run(
            ...ranges.map(([offset, length]) => ({ op, offset, length, flags, pieces: [] })),
          );
          assert.deepEqual(results, new Array(5).fill(offered === true ? BLOCK_OK : BLOCK_UNSUPPORTED));
          if (offered === true) for (const [offset, length] of ranges) data.fill(0, offset, offset + length);
          const back = new Uint8Array(data.length);
          await client.run({ op: BLOCK_READ, offset: 0, pieces: [whole(back)] });
          assert.ok(Buffer.compare(back, data) === 0);
        }
      }
    });
  });

  test(`${name}: a discard leaves what is around it, and the range can be written again`, limit, async () => {
    await withClient(1024 * 1024, async (client, backend) => {
      const data = new Uint8Array(1024 * 1024).fill(0x3c);
      await client.run({ op: BLOCK_WRITE, offset: 0, pieces: [whole(data)] });
      const [from, length] = [100 * 512, 400 * 1024];
      const result = await client.run({ op: BLOCK_DISCARD, offset: from, length, pieces: [] });
      assert.deepEqual(result, [backend.discard === true ? BLOCK_OK : BLOCK_UNSUPPORTED]);
      const back = new Uint8Array(data.length);
      await client.run({ op: BLOCK_READ, offset: 0, pieces: [whole(back)] });
      assert.ok(back.every((byte, i) => byte === 0x3c || (byte === 0 && i >= from && i < from + length)));
      const again = new Uint8Array(4096).fill(0x5d);
      await client.run({ op: BLOCK_WRITE, offset: from + 512, pieces: [whole(again)] });
      const part = new Uint8Array(4096);
      await client.run({ op: BLOCK_READ, offset: from + 512, pieces: [whole(part)] });
      assert.deepEqual(part, again);
    });
  });

  test(`${name}: one device a back end, close waits and may come twice`, limit, async () => {
    await withClient(64 * 1024, async (client, backend) => {
      assert.throws(() => new BlockClient(backend), { code: "ERR_VIRTKIT_ATTACHED" });
      const writes = Array.from({ length: 10 }, (_, i) => ({
        op: BLOCK_WRITE,
        offset: i * 512,
        pieces: [whole(new Uint8Array(512).fill(i))],
      }));
      const running = client.run(...writes);
      await backend.close();
      assert.equal(client.order.length, 10);
      assert.deepEqual(await running, new Array(10).fill(BLOCK_OK));
      await backend.close();
    });
  });
}

interface Random {
  readonly write: boolean;
  readonly block: number;
  readonly blocks: number;
  readonly cuts: readonly number[];
  readonly seed: number;
}

/** Runs requests at once, leaving out those that would race with a write among them. */
async function runRound(client: BlockClient, model: Uint8Array, requests: readonly Random[]): Promise<void> {
  const taken: { start: number; end: number; write: boolean }[] = [];
  const asks: Ask[] = [];
  const checks: (() => void)[] = [];
  for (const { write, block, blocks, cuts, seed } of requests) {
    const start = block * 512;
    const end = Math.min(BLOCKS, block + blocks) * 512;
    if (taken.some((other) => other.start < end && start < other.end && (write || other.write))) continue;
    taken.push({ start, end, write });
    if (write) {
      const data = Uint8Array.from({ length: end - start }, (_, i) => (i * 13 + seed) & 0xff);
      model.set(data, start);
      asks.push({ op: BLOCK_WRITE, offset: start, pieces: scatter(data, cuts) });
    } else {
      const pieces = scatter(new Uint8Array(end - start), cuts);
      const expected = Buffer.from(model.slice(start, end));
      asks.push({ op: BLOCK_READ, offset: start, pieces });
      checks.push(() => assert.deepEqual(gather(pieces), expected));
    }
  }
  assert.deepEqual(await client.run(...asks), new Array(asks.length).fill(BLOCK_OK));
  for (const check of checks) check();
}

/** What a back end that may not be written does; `make` gives one whose bytes are all `byte`. */
export function readOnlyBlockContract(
  name: string,
  byte: number,
  make: () => Promise<{ backend: BlockBackend; undo?: () => Promise<void> }>,
): void {
  test(`${name}: reads, refuses what would change it, and flushes without complaint`, limit, async () => {
    const { backend, undo } = await make();
    assert.equal(backend.readOnly, true);
    const client = new BlockClient(backend);
    const into = new Uint8Array(1024);
    const results = await client.run(
      { op: BLOCK_WRITE, offset: 0, pieces: [whole(new Uint8Array(512))] },
      { op: BLOCK_READ, offset: 0, pieces: [whole(into)] },
      { op: BLOCK_DISCARD, offset: 0, length: 512, pieces: [] },
      { op: BLOCK_FLUSH, offset: 0, pieces: [] },
    );
    assert.deepEqual(results, [BLOCK_IO_ERROR, BLOCK_OK, BLOCK_IO_ERROR, BLOCK_OK]);
    assert.ok(into.every((value) => value === byte));
    await backend.close();
    await undo?.();
  });
}
