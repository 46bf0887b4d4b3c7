import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { FeatureSet } from "../common/feature-set.ts";
import { VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { cut, RAW_DATA, RawDevice } from "../testing/raw-device.ts";
import { testEnvironment } from "../testing/rig.ts";
import { statements } from "../testing/statements.ts";
import { RngDevice } from "./rng.ts";

const limit = { timeout: 30_000 };
const FEATURES = FeatureSet.of(VIRTIO_F_VERSION_1, VIRTIO_F_INDIRECT_DESC);

function bench() {
  const source = { name: "ones", fill: (into: Uint8Array) => void into.fill(1) };
  const device = new RngDevice({ source, environment: testEnvironment, queueSize: 64 });
  return { device, raw: new RawDevice(device, FEATURES) };
}

test(
  statements(
    "rng: buffers of any cut are filled wholly, others stay as they are",
    "device: Basic Facilities of a Virtio Device / Message Framing #1",
  ),
  limit,
  () => {
    const chain = fc.record({
      out: fc.nat(50),
      in: fc.nat(2000),
      cuts: fc.array(fc.nat(2000), { maxLength: 10 }),
      indirect: fc.boolean(),
    });
    fc.assert(
      fc.property(fc.array(chain, { maxLength: 20 }), (chains) => {
        const { device, raw } = bench();
        let odd = 0;
        let n = 0;
        for (const { out, in: in_, cuts, indirect } of chains) {
          if (out + in_ === 0) continue;
          const pieces = (at: number, length: number) => (length === 0 ? [] : cut(at, length, cuts));
          const at = RAW_DATA + 0xf000;
          raw.memory.write(at, new Uint8Array(4000));
          const expected = raw.bytes();
          raw.offer(0, pieces(RAW_DATA, out), pieces(at, in_), indirect);
          raw.kick(0);
          expected.fill(1, at - RAW_DATA, at - RAW_DATA + in_);
          assert.deepEqual(raw.bytes(), expected);
          assert.equal(raw.used(0)[n++]?.length, in_);
          odd += Number(out > 0) + Number(in_ === 0);
        }
        assert.equal(device.faults, odd);
        assert.equal(device.broken, undefined);
      }),
      { numRuns: 100 },
    );
  },
);

test("rng: one request costs 64 KiB at most", limit, () => {
  const { device, raw } = bench();
  raw.offer(0, [], [{ address: RAW_DATA, length: 0x20000 }]);
  raw.kick(0);
  assert.deepEqual(raw.used(0), [{ id: 0, length: 0x10000 }]);
  assert.equal(device.bytes, 0x10000);
});
