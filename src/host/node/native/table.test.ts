import assert from "node:assert/strict";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import fc from "fast-check";
import { assertNothingLeft, heldResources } from "../../../testing/resources.ts";
import { nativeProblem } from "./load.ts";
import { MappedMemory } from "./memory.ts";
import { FSYNC_DATA, OP_FALLOCATE, OP_FSYNC, OP_READ, OP_WRITE, RequestTable, RWF_NOWAIT } from "./table.ts";

const limit = { timeout: 60_000, skip: nativeProblem() ?? false };
const folder = fs.mkdtempSync(join(tmpdir(), "virtkit-table-"));
after(() => fs.rmSync(folder, { recursive: true, force: true }));

const EFAULT = 14;
const EINVAL = 22;
const ENOBUFS = 105;

function segment(table: RequestTable, row: number, region: number, offset: number, length: number): void {
  table.segmentRegion[row] = region;
  table.segmentOffset[row] = offset;
  table.segmentLength[row] = length;
}

function request(table: RequestTable, row: number, op: number, fd: number, position: number, segments: number[]): void {
  table.op[row] = op;
  table.fd[row] = fd;
  table.position[row] = position;
  table.first[row] = segments[0] as number;
  table.count[row] = segments[1] as number;
  table.flags[row] = 0;
}

test("a batch of reads and writes in pieces", limit, () => {
  const path = join(folder, "image");
  fs.writeFileSync(path, Buffer.alloc(65536, 0xaa));
  const fd = fs.openSync(path, "r+");
  const memory = MappedMemory.allocate(65536);
  const bytes = new Uint8Array(memory.window());
  const table = new RequestTable(8, 8);
  bytes.fill(1, 0, 100);
  bytes.fill(2, 1000, 1100);
  segment(table, 0, memory.id, 0, 100);
  segment(table, 1, memory.id, 1000, 100);
  segment(table, 2, memory.id, 4096, 200);
  request(table, 0, OP_WRITE, fd, 500, [0, 2]);
  request(table, 1, OP_READ, fd, 500, [2, 1]);
  request(table, 2, OP_FSYNC, fd, 0, [0, 0]);
  table.flags[2] = FSYNC_DATA;
  request(table, 3, OP_FALLOCATE, fd, 8192, [0, 0]);
  table.flags[3] = 3;
  table.length[3] = 4096;
  request(table, 4, OP_READ, fd, 65500, [2, 1]);
  assert.equal(table.run(0, 5), 0);
  assert.deepEqual([...table.result.subarray(0, 5)], [200, 200, 0, 0, 36]);
  assert.deepEqual([...bytes.subarray(4096 + 36, 4096 + 200)], [...Array(64).fill(1), ...Array(100).fill(2)]);
  assert.equal(fs.readFileSync(path)[8192], 0);
  table.flags[1] = RWF_NOWAIT;
  table.run(1, 1);
  assert.ok([200, -11, -95].includes(table.result[1] as number));
  table.close();
  assert.equal(table.op.length, 0);
  memory.unmap();
  fs.closeSync(fd);
});

test("a place outside of its mapping fails that request alone", limit, () => {
  const path = join(folder, "outside");
  fs.writeFileSync(path, Buffer.alloc(8192, 1));
  const fd = fs.openSync(path, "r+");
  const memory = MappedMemory.allocate(8192);
  const readOnly = MappedMemory.map(fd, { length: 8192, readOnly: true });
  const table = new RequestTable(16, 16);
  const places: [number, number, number][] = [
    [memory.id, 0, 8193],
    [memory.id, 8192, 1],
    [memory.id, -1, 1],
    [memory.id, Number.NaN, 1],
    [memory.id, Number.POSITIVE_INFINITY, 1],
    [memory.id, 4096, 0xffffffff],
    [memory.id + 1024, 0, 1],
    [1023, 0, 1],
    [readOnly.id, 0, 1],
    [memory.id, 0, 8192],
  ];
  places.forEach((place, i) => {
    segment(table, i, ...place);
    request(table, i, OP_READ, fd, 0, [i, 1]);
  });
  assert.equal(table.run(0, places.length), places.length - 1);
  assert.deepEqual([...table.result.subarray(0, places.length)], [...Array(places.length - 1).fill(-EFAULT), 8192]);
  assert.equal(table.copyIn(8, 1, new Uint8Array(1)), -EFAULT);
  assert.equal(table.copyOut(8, 1, new Uint8Array(1)), 1);
  request(table, 0, OP_WRITE, fd, 0, [8, 1]);
  request(table, 1, OP_READ, fd, 0, [15, 2]);
  request(table, 2, OP_READ, fd, 0, [9, 0]);
  request(table, 3, OP_READ, fd, 0, [9, 1025]);
  request(table, 4, OP_READ, fd, -1, [9, 1]);
  request(table, 5, 77, fd, 0, [9, 1]);
  table.run(0, 6);
  assert.deepEqual([...table.result.subarray(0, 6)], [1, -EINVAL, -EINVAL, -EINVAL, -EINVAL, -EINVAL]);
  assert.throws(() => table.run(10, 7), { code: "ERR_VIRTKIT_NATIVE_ARGUMENT" });
  table.close();
  const next = new RequestTable(1, 1);
  assert.throws(() => table.run(0, 1), { code: "ERR_VIRTKIT_NATIVE_ARGUMENT" });
  next.close();
  memory.unmap();
  readOnly.unmap();
  fs.closeSync(fd);
});

test("copies gather and scatter as a loop in JavaScript does", limit, () => {
  const memory = MappedMemory.allocate(4096);
  const bytes = new Uint8Array(memory.window());
  const table = new RequestTable(1, 64);
  const piece = fc.record({ offset: fc.integer({ min: 0, max: 4200 }), length: fc.integer({ min: 0, max: 300 }) });
  const property = fc.property(fc.array(piece, { maxLength: 64 }), fc.nat(6000), (pieces, room) => {
    bytes.forEach((_, i) => {
      bytes[i] = (i * 7) % 251;
    });
    pieces.forEach(({ offset, length }, i) => {
      segment(table, i, memory.id, offset, length);
    });
    const total = pieces.reduce((sum, { length }) => sum + length, 0);
    const inside = pieces.every(({ offset, length }) => offset + length <= 4096);
    const expected = !inside ? -EFAULT : total > room ? -ENOBUFS : total;
    const out = new Uint8Array(room);
    assert.equal(table.copyOut(0, pieces.length, out), expected);
    if (expected < 0) return assert.ok(out.every((byte) => byte === 0));
    const flat = pieces.flatMap(({ offset, length }) => [...bytes.subarray(offset, offset + length)]);
    assert.deepEqual([...out.subarray(0, total)], flat);
    const mirror = bytes.slice();
    let at = 0;
    for (const { offset, length } of pieces) {
      for (let i = 0; i < length; i++) mirror[offset + i] = (out[at++] as number) ^ 0xff;
    }
    const back = out.map((byte) => byte ^ 0xff);
    assert.equal(table.copyIn(0, pieces.length, back), total);
    assert.deepEqual(bytes, mirror);
  });
  fc.assert(property, { numRuns: 200 });
  table.close();
  memory.unmap();
});

test("1,000 tables leave nothing behind, and there is an end to them", limit, () => {
  const before = heldResources();
  for (let i = 0; i < 1000; i++) new RequestTable(16, 16).close();
  assertNothingLeft(before);
  const tables: RequestTable[] = [];
  const fill = () => {
    for (let i = 0; i < 100; i++) tables.push(new RequestTable(1, 1));
  };
  assert.throws(fill, { code: "ERR_VIRTKIT_SYSTEM" });
  for (const table of tables) table.close();
  assert.throws(() => new RequestTable(0, 1), { code: "ERR_VIRTKIT_NATIVE_ARGUMENT" });
});
