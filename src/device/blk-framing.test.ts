import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { MemoryBlockBackend } from "../backend/block/memory.ts";
import { BLOCK_WRITE } from "../backend/block/types.ts";
import { FeatureSet } from "../common/feature-set.ts";
import {
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_GET_ID,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
} from "../spec/blk.ts";
import { VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { ManualBlockBackend } from "../testing/manual-block.ts";
import { cut, RAW_DATA, RAW_DATA_BYTES, RawDevice, type RawPiece } from "../testing/raw-device.ts";
import { testEnvironment } from "../testing/rig.ts";
import { statements } from "../testing/statements.ts";
import { BlkDevice } from "./blk.ts";

const limit = { timeout: 30_000 };
const FEATURES = FeatureSet.of(VIRTIO_F_VERSION_1, VIRTIO_F_INDIRECT_DESC, VIRTIO_BLK_F_FLUSH);
const DISK = 64 * 1024;
/** Where the tests put things: header, data and status each far from the others. The border of two regions is in the data. */
const HEADER = RAW_DATA + 0x100;
const DATA = RAW_DATA + RAW_DATA_BYTES / 2 - 0x700;
const STATUS = RAW_DATA + RAW_DATA_BYTES - 0x100;

const pattern = (length: number, seed: number): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * 31 + seed) & 0xff);

const header = (type: number, sector: number): Uint8Array => {
  const bytes = new DataView(new ArrayBuffer(16));
  bytes.setUint32(0, type, true);
  bytes.setBigUint64(8, BigInt.asUintN(64, BigInt(sector)), true);
  return new Uint8Array(bytes.buffer);
};

type Backend = MemoryBlockBackend | ManualBlockBackend;
const BACKENDS: [string, boolean, () => Backend][] = [
  ["at hand", true, () => new MemoryBlockBackend({ capacity: DISK, contents: pattern(DISK, 3) })],
  ["in place", true, () => new ManualBlockBackend({ capacity: DISK, contents: pattern(DISK, 3) })],
  ["staged", false, () => new ManualBlockBackend({ capacity: DISK, contents: pattern(DISK, 3) })],
];

function bench(make: () => Backend, fixed: boolean) {
  const backend = make();
  const device = new BlkDevice({ backend, environment: testEnvironment, serial: "serial-of-20-letters" });
  const raw = new RawDevice(device, FEATURES, { size: 64, fixed });
  const run = (out: readonly RawPiece[], in_: readonly RawPiece[], indirect = false) => {
    const before = raw.used(0).length;
    raw.offer(0, out, in_, indirect);
    raw.kick(0);
    if (backend instanceof ManualBlockBackend) while (backend.waiting.length > 0) backend.answerAll();
    return raw.used(0)[before];
  };
  const disk = (): Uint8Array => (backend instanceof ManualBlockBackend ? backend.disk : backend).peek(0, DISK);
  const byte = (address: number): number => {
    const one = new Uint8Array(1);
    raw.memory.read(address, one);
    return one[0] as number;
  };
  return { backend, device, raw, run, disk, byte };
}

interface Layout {
  readonly name: string;
  /** Cuts in header + data to the device, and in data + status from it. */
  readonly out: readonly number[];
  readonly in: readonly number[];
}

const LAYOUTS: readonly Layout[] = [
  { name: "as Linux does", out: [16], in: [1024] },
  { name: "everything in one descriptor for each direction", out: [], in: [] },
  { name: "a header in single bytes", out: Array.from({ length: 17 }, (_, i) => i), in: [1024] },
  { name: "a header in two halves", out: [7], in: [512] },
  { name: "a header that runs into the data", out: [20], in: [1000] },
  { name: "data in odd pieces", out: [16, 17, 100, 999], in: [1, 2, 513, 1023] },
  { name: "a status behind a piece of data", out: [16], in: [1020] },
];

for (const [name, fixed, make] of BACKENDS) {
  for (const layout of LAYOUTS) {
    for (const indirect of [false, true]) {
      test(
        statements(
          `blk framing, data ${name}, ${layout.name}, ${indirect ? "indirect" : "direct"}`,
          "device: Basic Facilities of a Virtio Device / Message Framing #1",
        ),
        limit,
        () => {
          const { raw, run, disk, byte, device } = bench(make, fixed);
          // The header and the data follow each other, over the border of two regions, and so do data and status.
          const data = pattern(1024, 77);
          raw.memory.write(DATA, header(VIRTIO_BLK_T_OUT, 5));
          raw.memory.write(DATA + 16, data);
          raw.memory.write(STATUS, Uint8Array.of(0xff));
          const wrote = run(cut(DATA, 1040, layout.out), [{ address: STATUS, length: 1 }], indirect);
          assert.deepEqual([wrote?.length, byte(STATUS)], [1, 0]);
          assert.deepEqual(disk().subarray(5 * 512, 5 * 512 + 1024), data);
          raw.memory.write(DATA, new Uint8Array(1025).fill(0xee));
          raw.memory.write(HEADER, header(VIRTIO_BLK_T_IN, 5));
          const read = run(cut(HEADER, 16, layout.out), cut(DATA, 1025, layout.in), indirect);
          assert.deepEqual([read?.length, byte(DATA + 1024)], [1025, 0]);
          const back = new Uint8Array(1024);
          raw.memory.read(DATA, back);
          assert.deepEqual(back, data);
          assert.equal(device.broken, undefined);
        },
      );
    }
  }

  test(`blk framing, data ${name}: lengths and statuses of what is not a plain read or write`, limit, () => {
    const { raw, run, byte, disk, device, backend } = bench(make, fixed);
    const before = disk();
    const ask = (type: number, sector: number, out: RawPiece[], in_: RawPiece[]) => {
      raw.memory.write(HEADER, header(type, sector));
      raw.memory.write(STATUS, Uint8Array.of(0xff));
      const used = run([{ address: HEADER, length: 16 }, ...out], [...in_, { address: STATUS, length: 1 }]);
      return [used?.length, byte(STATUS)];
    };
    const data = (length: number): RawPiece => ({ address: DATA, length });
    assert.deepEqual(ask(VIRTIO_BLK_T_FLUSH, 0, [], []), [1, 0], "flush");
    assert.deepEqual(ask(VIRTIO_BLK_T_FLUSH, 0, [data(512)], []), [1, 0], "flush with data");
    assert.deepEqual(ask(VIRTIO_BLK_T_IN, 0, [], []), [1, 0], "a read of nothing");
    assert.deepEqual(ask(VIRTIO_BLK_T_OUT, 0, [], []), [1, 0], "a write of nothing");
    assert.deepEqual(ask(VIRTIO_BLK_T_IN, DISK / 512, [], []), [1, 0], "a read of nothing at the end");
    assert.deepEqual(ask(VIRTIO_BLK_T_IN, DISK / 512 + 1, [], []), [1, 1], "a read of nothing past the end");
    assert.deepEqual(ask(VIRTIO_BLK_T_IN, 0, [], [data(511)]), [0, 1], "a read of part of a sector");
    assert.deepEqual(ask(VIRTIO_BLK_T_OUT, 0, [data(513)], []), [1, 1], "a write of a sector and a byte");
    assert.deepEqual(ask(VIRTIO_BLK_T_IN, DISK / 512, [], [data(512)]), [0, 1], "a read past the end");
    assert.deepEqual(ask(VIRTIO_BLK_T_OUT, DISK / 512, [data(512)], []), [1, 1], "a write past the end");
    assert.deepEqual(
      ask(VIRTIO_BLK_T_OUT, 0, [data(512)], [data(4)]),
      [0, 0],
      "a write with room in front of the status",
    );
    assert.deepEqual(ask(VIRTIO_BLK_T_GET_ID, 0, [], [data(20)]), [21, 0], "id");
    assert.deepEqual(ask(VIRTIO_BLK_T_GET_ID, 0, [], [data(5)]), [6, 0], "id with little room");
    assert.deepEqual(ask(VIRTIO_BLK_T_GET_ID, 0, [], [data(100)]), [20, 0], "id with too much room");
    assert.deepEqual(ask(VIRTIO_BLK_T_GET_ID, 0, [], []), [1, 0], "id without room");
    assert.deepEqual(ask(99, 0, [], [data(100)]), [0, 2], "an unknown type");
    const id = new Uint8Array(20);
    raw.memory.read(DATA, id);
    assert.equal(Buffer.from(id).toString(), "serial-of-20-letters");
    assert.equal(device.broken, undefined);
    before.set(disk().subarray(0, 512));
    assert.deepEqual(disk(), before, "only the first sector was written");
    if (backend instanceof ManualBlockBackend)
      assert.equal(backend.log.filter(({ op }) => op === BLOCK_WRITE).length, 1);
  });

  test(
    `blk framing, data ${name}: a chain without a whole header or a status breaks the device, not the host`,
    limit,
    () => {
      for (const [out, in_] of [
        [[{ address: HEADER, length: 15 }], [{ address: STATUS, length: 1 }]],
        [[], [{ address: STATUS, length: 1 }]],
        [[{ address: HEADER, length: 16 }], []],
        [[{ address: HEADER, length: 16 }], [{ address: STATUS, length: 0 }]],
      ] as const) {
        const { raw, run, device } = bench(make, fixed);
        const before = raw.bytes();
        assert.equal(run(out, in_), undefined);
        assert.match(raw.needsReset ?? "", /queue 0: a request/);
        assert.equal(run([{ address: HEADER, length: 16 }], [{ address: STATUS, length: 1 }]), undefined);
        assert.deepEqual(raw.bytes(), before);
        device.reset();
        assert.equal(device.broken, undefined);
      }
    },
  );
}

test(
  "blk framing: random requests in random pieces: a status or a fault, no stray byte, the disk as a plain model has it",
  limit,
  () => {
    const places = fc.record({
      type: fc.oneof(
        fc.constantFrom(VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID),
        fc.nat(0xffff),
      ),
      sector: fc.oneof(fc.nat(130), fc.constantFrom(2 ** 31, 2 ** 32, 2 ** 52, -1)),
      out: fc.oneof(
        fc.nat(8).map((n) => 16 + n * 512),
        fc.nat(3000),
      ),
      in: fc.oneof(
        fc.nat(8).map((n) => 1 + n * 512),
        fc.nat(3000),
      ),
      cutsOut: fc.array(fc.nat(3000), { maxLength: 12 }),
      cutsIn: fc.array(fc.nat(3000), { maxLength: 12 }),
      gap: fc.nat(100),
      indirect: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.constantFrom(...BACKENDS), fc.array(places, { maxLength: 20 }), ([, fixed, make], requests) => {
        const { raw, run, disk, device } = bench(make, fixed);
        const model = disk();
        for (const request of requests) {
          const outAt = DATA - request.gap;
          const inAt = RAW_DATA + 0x1000 + request.gap;
          raw.memory.write(outAt, pattern(4096, request.gap));
          raw.memory.write(outAt, header(request.type, request.sector));
          raw.memory.write(inAt, new Uint8Array(4096).fill(0xcc));
          const memory = raw.bytes();
          const out = request.out === 0 ? [] : cut(outAt, request.out, request.cutsOut);
          const in_ = request.in === 0 ? [] : cut(inAt, request.in, request.cutsIn);
          if (out.length + in_.length === 0) continue;
          const used = run(out, in_, request.indirect);
          const after = raw.bytes();
          const start = inAt - RAW_DATA;
          memory.set(after.subarray(start, start + request.in), start);
          assert.deepEqual(after, memory, "bytes outside the writable buffers");
          if (request.out < 16 || request.in < 1) {
            assert.equal(used, undefined);
            assert.notEqual(device.broken, undefined);
            return;
          }
          const status = after[start + request.in - 1] as number;
          const expected = apply(model, {
            ...request,
            data: memory.subarray(outAt - RAW_DATA + 16, outAt - RAW_DATA + request.out),
          });
          assert.deepEqual([status, used?.length], [expected.status, expected.length]);
          if (expected.data !== undefined)
            assert.deepEqual(after.subarray(start, start + expected.data.length), expected.data);
          assert.deepEqual(disk(), model);
        }
      }),
      { numRuns: 150 },
    );
  },
);

/** What the specification says of a request, done the slow and obvious way. */
function apply(
  disk: Uint8Array,
  request: { type: number; sector: number; in: number; data: Uint8Array },
): { status: number; length: number; data?: Uint8Array } {
  const room = request.in - 1;
  const done = (status: number, written: number) => ({ status, length: written === room ? room + 1 : written });
  const bytes = request.type === VIRTIO_BLK_T_IN ? room : request.data.length;
  const start = request.sector * 512;
  switch (request.type) {
    case VIRTIO_BLK_T_FLUSH:
      return done(0, 0);
    case VIRTIO_BLK_T_GET_ID:
      return done(0, Math.min(room, 20));
    case VIRTIO_BLK_T_IN:
    case VIRTIO_BLK_T_OUT: {
      if (request.sector < 0 || bytes % 512 !== 0 || start + bytes > disk.length) return done(1, 0);
      if (request.type === VIRTIO_BLK_T_IN) return { ...done(0, room), data: disk.slice(start, start + bytes) };
      disk.set(request.data, start);
      return done(0, 0);
    }
    default:
      return done(2, 0);
  }
}
