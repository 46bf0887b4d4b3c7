import assert from "node:assert/strict";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { assertNothingLeft, heldResources } from "../../../testing/resources.ts";
import { loadNative, nativeProblem } from "./load.ts";
import { MappedMemory } from "./memory.ts";
import { DescriptorSocket } from "./sockets.ts";
import { FSYNC_DATA, OP_FALLOCATE, OP_FSYNC, OP_READ, OP_WRITE, RequestTable } from "./table.ts";
import { type OnCompletions, Uring } from "./uring.ts";

/** Why the host has no io_uring, or false. */
function refusal(): string | false {
  const problem = nativeProblem();
  if (problem !== undefined) return problem;
  const opened = Uring.open(1, () => undefined);
  if ("refused" in opened) return `io_uring is not allowed here: ${opened.refused}`;
  void opened.ring.close();
  return false;
}

const limit = { timeout: 60_000, skip: refusal() };
const folder = fs.mkdtempSync(join(tmpdir(), "virtkit-uring-"));
after(() => fs.rmSync(folder, { recursive: true, force: true }));
let files = 0;

function openRing(entries: number, onCompletions: OnCompletions): Uring {
  const opened = Uring.open(entries, onCompletions);
  if ("refused" in opened) throw new Error(opened.refused);
  return opened.ring;
}

/** A file whose byte at each offset says where it is, memory for 64 requests of 4 KiB, and a table that reads the one into the other. */
function rig(size = 1 << 20) {
  const path = join(folder, `image${files++}`);
  const content = Buffer.alloc(size);
  for (let i = 0; i < size; i++) content[i] = (i >> 12) % 251;
  fs.writeFileSync(path, content);
  const fd = fs.openSync(path, "r+");
  const memory = MappedMemory.allocate(64 * 4096);
  const table = new RequestTable(64, 128);
  for (let i = 0; i < 64; i++) {
    table.op[i] = OP_READ;
    table.fd[i] = fd;
    table.position[i] = i * 4096;
    table.first[i] = i;
    table.count[i] = 1;
    table.tag[i] = 1000 + i;
    table.segmentRegion[i] = memory.id;
    table.segmentOffset[i] = i * 4096;
    table.segmentLength[i] = 4096;
  }
  const bytes = new Uint8Array(memory.window());
  const close = () => {
    table.close();
    memory.unmap();
    fs.closeSync(fd);
  };
  return { fd, memory, table, bytes, close };
}

test("a batch is read, each request reported once by its tag", limit, async () => {
  const { table, bytes, close } = rig();
  const seen = new Map<number, number>();
  const ring = openRing(64, (count) => {
    for (let i = 0; i < count; i++) {
      assert.ok(!seen.has(ring.tags[i] as number));
      seen.set(ring.tags[i] as number, ring.results[i] as number);
    }
  });
  assert.equal(ring.submit(table, 0, 64), 64);
  await ring.drain();
  assert.deepEqual([...seen.keys()].sort(), Array.from({ length: 64 }, (_, i) => 1000 + i).sort());
  assert.ok([...seen.values()].every((result) => result === 4096));
  for (let i = 0; i < 64; i++) assert.equal(bytes[i * 4096 + 4095], i);
  await ring.close();
  assert.throws(() => ring.submit(table, 0, 1), { code: "ERR_VIRTKIT_URING_CLOSED" });
  close();
});

test("writes in pieces, fsync, fallocate; what is wrong with one is its own result", limit, async () => {
  const { fd, memory, table, bytes, close } = rig();
  const results = new Map<number, number>();
  const ring = openRing(8, (count) => {
    for (let i = 0; i < count; i++) results.set(ring.tags[i] as number, ring.results[i] as number);
  });
  bytes.fill(7, 0, 8192);
  table.op[0] = OP_WRITE;
  table.position[0] = 100_000;
  table.count[0] = 2;
  table.op[1] = OP_FSYNC;
  table.flags[1] = FSYNC_DATA;
  table.op[2] = OP_FALLOCATE;
  table.flags[2] = 3;
  table.position[2] = 0;
  table.length[2] = 4096;
  table.segmentOffset[3] = memory.length;
  table.op[4] = 99;
  table.fd[5] = 9999;
  assert.equal(ring.submit(table, 0, 6), 6);
  await ring.drain();
  const outcome = [1000, 1001, 1002, 1003, 1004, 1005].map((tag) => results.get(tag));
  assert.deepEqual(outcome, [8192, 0, 0, -14, -22, -9]);
  const read = Buffer.alloc(8193);
  fs.readSync(fd, read, 0, 8193, 100_000);
  assert.ok(read.subarray(0, 8192).every((byte) => byte === 7));
  assert.notEqual(read[8192], 7);
  await ring.close();
  close();
});

test("more segments than one submission holds go in several", limit, async () => {
  const { table: small, fd, memory } = rig();
  small.close();
  const table = new RequestTable(16, 1024);
  for (let i = 0; i < 1024; i++) {
    table.segmentRegion[i] = memory.id;
    table.segmentOffset[i] = i * 16;
    table.segmentLength[i] = 16;
  }
  for (let i = 0; i < 16; i++) {
    table.fd[i] = fd;
    table.position[i] = 0;
    table.count[i] = 1024;
    table.tag[i] = i;
  }
  let done = 0;
  const ring = openRing(16, (count) => {
    for (let i = 0; i < count; i++) assert.equal(ring.results[i], 16384);
    done += count;
  });
  assert.equal(ring.submit(table, 0, 16), 16);
  await ring.drain();
  assert.equal(done, 16);
  await ring.close();
  table.close();
  memory.unmap();
  fs.closeSync(fd);
});

test("a full ring takes fewer, and the callback may submit the rest: 20,000 requests end", limit, async () => {
  const { table, close } = rig();
  const total = 20_000;
  let submitted = 0;
  let done = 0;
  await new Promise<void>((resolve) => {
    const more = () => {
      submitted += ring.submit(table, 0, Math.min(32, total - submitted));
    };
    const ring = openRing(16, (count) => {
      for (let i = 0; i < count; i++) assert.equal(ring.results[i], 4096);
      done += count;
      more();
      if (done === total) resolve(ring.close());
    });
    more();
  });
  assert.equal(done, total);
  close();
});

test("what does not end at once is told by the event descriptor, and holds the memory", limit, async () => {
  const { table, memory, close } = rig();
  const [ours, theirs] = DescriptorSocket.pair();
  let results: number[] = [];
  const ring = openRing(4, (count) => {
    results = [...results, ...ring.results.subarray(0, count)];
  });
  for (let round = 0; round < 100; round++) {
    results = [];
    table.fd[0] = ours.fd;
    table.position[0] = 0;
    assert.equal(ring.submit(table, 0, 1), 1);
    assert.equal(ring.outstanding + results.length, 1);
    if (ring.outstanding === 1) assert.throws(() => memory.unmap(), { code: "ERR_VIRTKIT_MEMORY_BUSY" });
    await theirs.send(Buffer.from("late"));
    await ring.drain();
    assert.ok(results[0] === 4 || results[0] === -11, `${results}`);
    if (results[0] === -11) await ours.receive(new Uint8Array(4));
  }
  await ring.close();
  ours.close();
  theirs.close();
  close();
});

test("arming says what came before it, so that nothing waits for a signal that was not given", limit, async () => {
  const { table, close } = rig();
  const native = loadNative();
  const id = native.uringCreate(4);
  // One that the kernel completes, then one that never gets there.
  for (const op of [OP_READ, 99]) {
    table.op[0] = op;
    assert.equal(native.uringArm(id), 0);
    assert.equal(native.uringSubmit(id, table.id, 0, 1), 1);
    while (native.uringArm(id) === 0) await new Promise((resolve) => setImmediate(resolve));
    assert.equal(native.uringReap(id), 1);
  }
  assert.equal(native.uringClose(id), 0);
  close();
});

test("1,000 rings leave nothing behind", limit, async () => {
  const { table, close } = rig();
  const cycle = async () => {
    const ring = openRing(8, () => undefined);
    ring.submit(table, 0, 8);
    await ring.close();
  };
  await cycle();
  const before = heldResources("io_uring");
  for (let i = 0; i < 1000; i++) await cycle();
  assertNothingLeft(before, "io_uring");
  close();
});
