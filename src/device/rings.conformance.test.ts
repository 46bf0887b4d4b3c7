import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { MemoryBlockBackend } from "../backend/block/index.ts";
import { FeatureSet } from "../common/feature-set.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import { VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT } from "../spec/blk.ts";
import { VIRTIO_F_INDIRECT_DESC, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE } from "../spec/ring.ts";
import { LOOP_COPYQ, LoopDevice } from "../testing/loop-device.ts";
import { cut, RAW_DATA, RAW_DATA_BYTES, RawDevice, type RawPiece } from "../testing/raw-device.ts";
import { RawPackedRing } from "../testing/raw-ring.ts";
import { testEnvironment } from "../testing/rig.ts";
import { statements } from "../testing/statements.ts";
import { BlkDevice } from "./blk.ts";
import { type DeviceCore, RING_FEATURES } from "./core.ts";
import { RngDevice } from "./rng.ts";

// What every device keeps to in guest memory, tried with devices that read, that write and that do both.

const limit = { timeout: 60_000 };
const FEATURES = FeatureSet.of(VIRTIO_F_VERSION_1, VIRTIO_F_INDIRECT_DESC);
const QUEUES = "device: Basic Facilities of a Virtio Device / Virtqueues";
const TABLE = `${QUEUES} / The Virtqueue Descriptor Table`;

const OUT = RAW_DATA;
const IN = RAW_DATA + RAW_DATA_BYTES / 2 - 1000;
const FILL = 0xa5;

interface Subject {
  readonly name: string;
  /** Writable bytes that a request has at least. */
  readonly least: number;
  create(): DeviceCore;
  /** What the driver's readable bytes are; `in_` is the room for the answer. */
  request(out: number, in_: number): Uint8Array;
  /** What has to stand in the writable buffers, as far as the device says that it wrote; undefined where that is its affair. */
  answer(request: Uint8Array, in_: number): Uint8Array | undefined;
}

const pattern = (length: number): Uint8Array => Uint8Array.from({ length }, (_, i) => (i * 31 + 7) & 0xff);
const disk = pattern(64 * 512);
const blkRequest = (type: number, data: Uint8Array): Uint8Array => {
  const request = new Uint8Array(16 + data.length);
  new DataView(request.buffer).setUint32(0, type, true);
  request.set(data, 16);
  return request;
};
const createDisk = (): DeviceCore => {
  const backend = new MemoryBlockBackend({ capacity: disk.length, contents: disk });
  return new BlkDevice({ backend, environment: testEnvironment, queueSize: 64, ringFeatures: RING_FEATURES });
};

const SUBJECTS: readonly Subject[] = [
  {
    name: "loop",
    least: 0,
    create: () => new LoopDevice(),
    request: (out) => pattern(out),
    answer: (request, in_) => request.subarray(0, in_),
  },
  {
    name: "rng",
    least: 0,
    create: () =>
      new RngDevice({
        source: { name: "nines", fill: (into) => void into.fill(9) },
        environment: testEnvironment,
        queueSize: 64,
        ringFeatures: RING_FEATURES,
      }),
    request: (out) => pattern(out),
    answer: (_request, in_) => new Uint8Array(in_).fill(9),
  },
  {
    name: "blk, reads",
    least: 1,
    create: createDisk,
    request: () => blkRequest(VIRTIO_BLK_T_IN, new Uint8Array(0)),
    answer: (_request, in_) => (in_ % 512 === 1 ? Uint8Array.of(...disk.subarray(0, in_ - 1), 0) : undefined),
  },
  {
    name: "blk, writes",
    least: 1,
    create: createDisk,
    request: (out) => blkRequest(VIRTIO_BLK_T_OUT, pattern(512 * (1 + (out % 3)))),
    answer: (_request, in_) => (in_ === 1 ? Uint8Array.of(0) : undefined),
  },
];

interface Run {
  readonly subject: Subject;
  readonly raw: RawDevice;
  readonly out: readonly RawPiece[];
  readonly in_: readonly RawPiece[];
  readonly request: Uint8Array;
  readonly room: number;
  /** All of guest memory before the kick. */
  readonly before: Uint8Array;
}

const everything = (raw: RawDevice): Uint8Array => {
  const all = new Uint8Array(RAW_DATA + RAW_DATA_BYTES);
  raw.memory.read(0, all);
  return all;
};
const read = (raw: RawDevice, address: number, length: number): Uint8Array => {
  const bytes = new Uint8Array(length);
  raw.memory.read(address, bytes);
  return bytes;
};

/** Requests in any cut through every subject; `prepare` is called before each kick, `check` behind it. */
function eachRequest(
  prepare: (run: Run) => void,
  check: (run: Run, used: { id: number; length: number }) => void,
): void {
  const cuts = fc.array(fc.nat(3000), { maxLength: 8 });
  const room = fc.oneof(fc.constantFrom(0, 1, 513, 1025), fc.nat(2000));
  const request = fc.record({ out: fc.nat(1500), room, outCuts: cuts, inCuts: cuts, indirect: fc.boolean() });
  const property = fc.property(
    fc.constantFrom(...SUBJECTS),
    fc.array(request, { minLength: 1, maxLength: 8 }),
    (subject, list) => {
      const raw = new RawDevice(subject.create(), FEATURES);
      for (const { out, room: wanted, outCuts, inCuts, indirect } of list) {
        const room = Math.max(wanted, subject.least);
        const bytes = subject.request(out, room);
        if (bytes.length + room === 0) continue;
        raw.memory.write(OUT, bytes);
        raw.memory.write(IN, new Uint8Array(room).fill(FILL));
        const pieces = (at: number, length: number, where: number[]) => (length === 0 ? [] : cut(at, length, where));
        const outPieces = pieces(OUT, bytes.length, outCuts);
        const inPieces = pieces(IN, room, inCuts);
        raw.offer(LOOP_COPYQ, outPieces, inPieces, indirect);
        const run = { subject, raw, out: outPieces, in_: inPieces, request: bytes, room, before: everything(raw) };
        prepare(run);
        const count = raw.used(LOOP_COPYQ).length;
        raw.kick(LOOP_COPYQ);
        const used = raw.used(LOOP_COPYQ);
        assert.equal(used.length, count + 1, `${subject.name}: ${raw.needsReset}`);
        check(run, used[count] as { id: number; length: number });
      }
    },
  );
  fc.assert(property, { numRuns: 300 });
}

test(
  statements(
    "a device changes nothing but writable buffers and its used ring: no readable buffer, no descriptor, no table",
    `${TABLE} #1`,
    `${TABLE} #2`,
  ),
  limit,
  () => {
    let written = 0;
    eachRequest(
      () => undefined,
      ({ raw, in_, before, subject }) => {
        const after = everything(raw);
        const { place } = raw.rings[LOOP_COPYQ] as { place: { device: number; size: number } };
        for (const { address, length } of [...in_, { address: place.device, length: 6 + 8 * place.size }]) {
          if (!Buffer.from(before.buffer, address, length).equals(after.subarray(address, address + length))) written++;
          before.set(after.subarray(address, address + length), address);
        }
        assert.ok(Buffer.from(before.buffer).equals(after), subject.name);
      },
    );
    assert.ok(written > 1000, `only ${written} writes`);
  },
);

test(
  statements(
    "the bytes that a used length counts are there before the used index says so",
    `${QUEUES} / The Virtqueue Used Ring #2`,
  ),
  limit,
  () => {
    let compared = 0;
    let checked: Uint8Array | undefined;
    eachRequest(
      ({ raw, room, subject, request }) => {
        checked = undefined;
        const ring = raw.rings[LOOP_COPYQ];
        const usedIdx = (ring?.place.device ?? 0) + 2;
        const answer = subject.answer(request, room);
        raw.memory.observeWrites((address, length) => {
          if (address > usedIdx || address + length <= usedIdx) return;
          const { length: said } = ring?.readUsed(ring.usedIdx - 1) ?? { length: 0 };
          assert.ok(said <= room, `${said} of ${room}`);
          checked = read(raw, IN, said);
          if (answer !== undefined) assert.deepEqual(checked, answer.subarray(0, said), subject.name);
        });
      },
      ({ raw, subject }, used) => {
        raw.memory.observeWrites(undefined);
        assert.equal(checked?.length, used.length, `${subject.name}: the index was seen to change`);
        compared += used.length;
      },
    );
    assert.ok(compared > 10_000, `only ${compared} bytes`);
  },
);

test(
  statements(
    "notifications for nothing, and for queues that do not exist, do nothing",
    `${QUEUES} / Available Buffer Notification Suppression #3`,
  ),
  limit,
  () => {
    for (const subject of SUBJECTS) {
      const raw = new RawDevice(subject.create(), FEATURES);
      const request = subject.request(8, 1);
      const spurious = (): void => {
        const before = everything(raw);
        const { length } = raw.notified;
        for (let i = 0; i < 5; i++) for (const queue of [LOOP_COPYQ, 1, 7, 0xffff]) raw.kick(queue);
        assert.ok(Buffer.from(before).equals(everything(raw)), subject.name);
        assert.deepEqual([raw.notified.length, raw.needsReset], [length, undefined]);
      };
      spurious();
      for (let i = 1; i < 4; i++) {
        raw.memory.write(OUT, request);
        raw.offer(LOOP_COPYQ, [{ address: OUT, length: request.length }], [{ address: IN, length: 1 }]);
        raw.kick(LOOP_COPYQ);
        spurious();
        assert.equal(raw.used(LOOP_COPYQ).length, i);
      }
    }
  },
);

test(
  statements(
    "packed: a device changes nothing but writable buffers and used descriptors",
    "device: Basic Facilities of a Virtio Device / Packed Virtqueues / The Virtqueue Descriptor Table #1",
  ),
  limit,
  () => {
    const cuts = fc.array(fc.nat(2000), { maxLength: 6 });
    const property = fc.property(
      fc.constantFrom(...SUBJECTS),
      fc.nat(1500),
      fc.nat(1500),
      cuts,
      cuts,
      (subject, out, wanted, outCuts, inCuts) => {
        const memory = GuestMemory.allocate(0x20000);
        const place = { size: 32, desc: 0, driver: 0x1000, device: 0x1010 };
        const ring = new RawPackedRing(memory.regions[0]?.view as DataView, place);
        const device = subject.create();
        device.attach({ memory, notifyQueue: () => {}, notifyConfig: () => {}, notifyNeedsReset: assert.fail });
        assert.ok(device.setFeatures(FeatureSet.of(VIRTIO_F_VERSION_1, VIRTIO_F_RING_PACKED)));
        assert.equal(device.startQueue(LOOP_COPYQ, place), undefined);
        const room = Math.max(wanted, subject.least);
        const request = subject.request(out, room);
        const inAt = 0x8000;
        const outAt = 0x10000;
        memory.write(outAt, request);
        const outPieces = request.length === 0 ? [] : cut(outAt, request.length, outCuts);
        const inPieces = room === 0 ? [] : cut(inAt, room, inCuts);
        const pieces = [...outPieces, ...inPieces];
        if (pieces.length === 0) return;
        for (const [i, piece] of pieces.entries()) {
          const flags =
            (i < outPieces.length ? 0 : VIRTQ_DESC_F_WRITE) | (i < pieces.length - 1 ? VIRTQ_DESC_F_NEXT : 0);
          ring.writeDescriptor(i, { ...piece, id: 5, flags: flags | RawPackedRing.available(true) });
        }
        const all = memory.regions[0]?.u8 as Uint8Array;
        const before = all.slice();
        device.kick(LOOP_COPYQ);
        assert.equal(ring.readDescriptor(0).flags & 0x8080, RawPackedRing.used(true), subject.name);
        // A used descriptor has length, id and flags; the device event structure is the device's own.
        for (const [from, to] of [
          [8, 16],
          [place.device, place.device + 4],
          [inAt, inAt + room],
        ] as const)
          before.set(all.subarray(from, to), from);
        assert.ok(Buffer.from(before.buffer).equals(all), subject.name);
      },
    );
    fc.assert(property, { numRuns: 300 });
  },
);
