import assert from "node:assert/strict";
import { test } from "node:test";
import { blockBackendContract, readOnlyBlockContract, whole } from "../../testing/block-backend.ts";
import { BlockClient } from "../../testing/block-client.ts";
import { ManualBlockBackend } from "../../testing/manual-block.ts";
import { MemoryBlockBackend } from "./memory.ts";
import { ReadOnlyBlockBackend } from "./read-only.ts";
import { BLOCK_OK, BLOCK_READ, BLOCK_WRITE, BLOCK_WRITE_ZEROES } from "./types.ts";

blockBackendContract("memory disk", async (capacity) => ({ backend: new MemoryBlockBackend({ capacity }) }));
blockBackendContract("disk that answers out of order", async (capacity) => ({
  backend: new ManualBlockBackend({ capacity, auto: 11 }),
}));

const contents = new Uint8Array(4096).fill(5);
readOnlyBlockContract("read-only memory disk", 5, async () => ({
  backend: new MemoryBlockBackend({ capacity: 4096, contents, readOnly: true }),
}));
readOnlyBlockContract("read-only wrapper", 5, async () => ({
  backend: new ReadOnlyBlockBackend(new MemoryBlockBackend({ capacity: 4096, contents })),
}));
readOnlyBlockContract("read-only wrapper of a slow disk", 5, async () => ({
  backend: new ReadOnlyBlockBackend(new ManualBlockBackend({ capacity: 4096, contents, auto: "ordered" })),
}));

test("memory disk: 5 GiB cost what was written, offsets past 4 GiB are exact", { timeout: 10_000 }, async () => {
  const backend = new MemoryBlockBackend({ capacity: 5 * 2 ** 30 });
  const client = new BlockClient(backend);
  assert.equal(backend.allocated, 0);
  const at = 4 * 2 ** 30 + 512;
  await client.run({ op: BLOCK_WRITE, offset: at, pieces: [whole(new Uint8Array(1024).fill(3))] });
  const around = new Uint8Array(2048).fill(9);
  await client.run({ op: BLOCK_READ, offset: at - 512, pieces: [whole(around)] });
  assert.deepEqual([around[511], around[512], around[1535], around[1536]], [0, 3, 3, 0]);
  assert.ok(backend.allocated <= 128 * 1024);
  await client.run({ op: BLOCK_WRITE_ZEROES, offset: 4 * 2 ** 30, length: 2 ** 20, pieces: [] });
  assert.equal(backend.allocated, 0);
});

test("memory disk: what a smaller size cut off is zero when it grows again", { timeout: 10_000 }, async () => {
  const backend = new MemoryBlockBackend({ capacity: 8192, contents: new Uint8Array(8192).fill(1) });
  const client = new BlockClient(backend);
  backend.resize(512);
  assert.equal(client.capacity, 512);
  backend.resize(8192);
  const all = new Uint8Array(8192);
  assert.deepEqual(await client.run({ op: BLOCK_READ, offset: 0, pieces: [whole(all)] }), [BLOCK_OK]);
  assert.deepEqual([all[511], all[512], all[8191]], [1, 0, 0]);
});

test("memory disk: sizes out of range are refused", { timeout: 10_000 }, () => {
  for (const options of [
    { capacity: 511 },
    { capacity: -512 },
    { capacity: 2 ** 60 },
    { capacity: 4096, blockSize: 3 },
  ])
    assert.throws(() => new MemoryBlockBackend(options), { code: "ERR_VIRTKIT_BLOCK_SIZE" });
  assert.throws(() => new MemoryBlockBackend({ capacity: 512, contents }), { code: "ERR_VIRTKIT_BLOCK_SIZE" });
  assert.throws(() => new MemoryBlockBackend({ capacity: 512 }).peek(0, 513), { code: "ERR_VIRTKIT_BLOCK_RANGE" });
});
