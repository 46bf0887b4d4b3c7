import assert from "node:assert/strict";
import { test } from "node:test";
import { FeatureSet } from "../common/feature-set.ts";
import { VIRTIO_ID_RNG } from "../spec/ids.ts";
import { PeerDevice, withPeer } from "../testing/peer.ts";
import { statements } from "../testing/statements.ts";
import { RngDriver } from "./rng.ts";

const OPERATION = "driver: Device Types / Entropy Device / Device Operation";
const limit = { timeout: 20_000 };

const peer = (): PeerDevice =>
  new PeerDevice({ deviceId: VIRTIO_ID_RNG, queues: 1, features: FeatureSet.EMPTY, config: new Uint8Array(0) });

test(
  statements(
    "rng driver: only bytes that the device says it wrote count, and nothing readable is sent",
    `${OPERATION} #1`,
    `${OPERATION} #2`,
  ),
  limit,
  async () => {
    const device = peer();
    const { driver, close } = await withPeer(device, RngDriver.type);
    const lengths = [3, 1, 100, 4096];
    let next = 0;
    device.answer = (chain) => {
      // What it says it wrote counts up; the rest of the buffer is full of something else.
      const written = Math.min(lengths.shift() ?? 4096, chain.room);
      const bytes = new Uint8Array(chain.room).fill(0xff);
      for (let i = 0; i < written; i++) bytes[i] = next++ % 200;
      device.use(chain, bytes, written);
      return undefined;
    };
    assert.deepEqual(
      [...(await driver.read(1000))],
      Array.from({ length: 1000 }, (_, i) => i % 200),
    );
    assert.equal(device.chains.length, 4);
    for (const { pieces, room } of device.chains) {
      assert.equal(
        pieces.every(({ writable }) => writable),
        true,
      );
      assert.equal(room > 0, true);
    }
    await close();
  },
);

test("rng driver: a device that gives nothing is an error", limit, async () => {
  const device = peer();
  const { driver, close } = await withPeer(device, RngDriver.type);
  device.answer = () => new Uint8Array(0);
  await assert.rejects(driver.read(10), { code: "ERR_VIRTKIT_RNG" });
  await close();
});
