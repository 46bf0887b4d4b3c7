import assert from "node:assert/strict";
import { test } from "node:test";
import { MemoryBlockBackend } from "../backend/block/index.ts";
import { BlkDevice } from "../device/blk.ts";
import { RING_FEATURES } from "../device/core.ts";
import { RngDevice } from "../device/rng.ts";
import type { RunningQueue } from "../device/running-queue.ts";
import { VIRTIO_F_INDIRECT_DESC, VIRTIO_F_RING_PACKED } from "../spec/features.ts";
import { setUpDriver } from "../testing/driver-rig.ts";
import { LoopDriver } from "../testing/loop-device.ts";
import { RawSplitRing } from "../testing/raw-ring.ts";
import { testEnvironment } from "../testing/rig.ts";
import { statements } from "../testing/statements.ts";
import type { ChainBatch, QueueConfig } from "../virtqueue/index.ts";
import { BlkDriver } from "./blk.ts";
import { DRIVER_RING_FEATURES } from "./features.ts";
import { RngDriver } from "./rng.ts";

// What drivers do with their rings, seen from the device and from the transport.

const limit = { timeout: 30_000 };
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));
const SPLIT = "driver: Basic Facilities of a Virtio Device / Virtqueues";
const PACKED = "driver: Basic Facilities of a Virtio Device / Packed Virtqueues";

for (const packed of [false, true])
  test(
    statements(
      `${packed ? "packed" : "split"}: each part of a queue that the device is told of is aligned, whatever else was allocated`,
      packed ? `${PACKED} #1` : `${SPLIT} #1`,
    ),
    limit,
    async () => {
      const ringFeatures = packed ? DRIVER_RING_FEATURES : DRIVER_RING_FEATURES.without(VIRTIO_F_RING_PACKED);
      for (const size of [1, 2, 3, 4, 7, 16, 63, 64]) {
        const { context, enabled } = setUpDriver();
        for (let i = 0; i < size; i++) context.dma.alloc(1 + 16 * i);
        const driver = new LoopDriver({ ...context, ringFeatures });
        driver.queueSize = size;
        await driver.start();
        assert.equal(enabled.length, 2);
        for (const { config } of enabled) {
          const alignment = packed ? [16, 4, 4] : [16, 2, 4];
          assert.deepEqual(
            [config.desc, config.driver, config.device].map((address, i) => address % (alignment[i] as number)),
            [0, 0, 0],
          );
        }
      }
    },
  );

for (const packed of [false, true])
  test(
    statements(
      `${packed ? "packed" : "split"}: notifications without a used buffer do no harm`,
      `${SPLIT} / Used Buffer Notification Suppression #3`,
    ),
    limit,
    async () => {
      const { context, enabled, device } = setUpDriver();
      const ringFeatures = packed ? DRIVER_RING_FEATURES : DRIVER_RING_FEATURES.without(VIRTIO_F_RING_PACKED);
      const driver = new LoopDriver({ ...context, ringFeatures });
      await driver.start();
      const spurious = () => {
        for (let i = 0; i < 5; i++) for (const { interrupt } of enabled) interrupt();
      };
      spurious();
      for (let round = 0; round < 5; round++) {
        const held = driver.hold(Uint8Array.of(round));
        let done = false;
        void held.then(() => {
          done = true;
        });
        while (device.held.length === 0) await turn();
        spurious();
        await turn();
        assert.equal(done, false);
        device.finish();
        assert.deepEqual(await held, Uint8Array.of(round));
        spurious();
        assert.deepEqual(await driver.copy(Uint8Array.of(7)), Uint8Array.of(7));
      }
      assert.equal(driver.state, "ready");
      assert.deepEqual(driver.events, ["set up", "ready"]);
    },
  );

/** A transport whose device says that it wrote `length` bytes of each buffer at most, whatever it wrote. */
function understated(rig: ReturnType<typeof setUpDriver<BlkDevice | RngDevice>>, length: number): void {
  const { overrides, inner, context } = rig;
  let seen = 0;
  overrides.enableQueue = (index: number, config: QueueConfig, interrupt: () => void) =>
    inner.enableQueue(index, config, () => {
      const [region] = context.transport.memory.regions;
      const ring = new RawSplitRing(region?.view ?? assert.fail(), config);
      for (; seen !== ring.usedIdx; seen++) {
        const used = ring.readUsed(seen);
        ring.writeUsed(seen, used.id, Math.min(used.length, length));
      }
      interrupt();
    });
}

test(
  statements("data behind the used length is not taken for an answer", `${SPLIT} / The Virtqueue Used Ring #1`),
  limit,
  async () => {
    let request = 0;
    const source = { name: "counter", fill: (into: Uint8Array) => void into.fill(++request) };
    const rng = setUpDriver<BlkDevice | RngDevice>(new RngDevice({ source, environment: testEnvironment }));
    understated(rng, 3);
    const random = new RngDriver(rng.context);
    await random.start();
    assert.deepEqual(await random.read(10), Uint8Array.of(1, 1, 1, 2, 2, 2, 3, 3, 3, 4));

    for (const length of [0, 1, 511]) {
      const backend = new MemoryBlockBackend({ capacity: 1 << 20 });
      const disk = setUpDriver<BlkDevice | RngDevice>(new BlkDevice({ backend, environment: testEnvironment }));
      understated(disk, length);
      const driver = new BlkDriver(disk.context);
      await driver.start();
      await assert.rejects(driver.read(0, 512), { code: "ERR_VIRTKIT_BLK_IO" }, `${length} bytes`);
    }
  },
);

/** Notes how many descriptors each chain has. */
class CountingDisk extends BlkDevice {
  readonly chains: number[] = [];
  protected override onChains(running: RunningQueue, batch: ChainBatch): boolean {
    for (let c = 0; c < batch.count; c++)
      this.chains.push((batch.readable[c] as number) + (batch.writable[c] as number));
    return super.onChains(running, batch);
  }
}

for (const indirect of [false, true])
  test(
    statements(
      `packed, ${indirect ? "indirect" : "direct"}: no list is longer than the device allows`,
      indirect
        ? `${PACKED} / The Virtqueue Descriptor Table / Indirect Descriptors #3`
        : `${PACKED} / Scatter-Gather Support #1`,
    ),
    limit,
    async () => {
      for (const segMax of [1, 2, 5]) {
        const backend = new MemoryBlockBackend({ capacity: 1 << 20 });
        const ringFeatures = indirect ? RING_FEATURES : RING_FEATURES.without(VIRTIO_F_INDIRECT_DESC);
        const device = new CountingDisk({
          backend,
          environment: testEnvironment,
          ringFeatures,
          segMax,
          sizeMax: 4096,
          queueSize: 16,
        });
        const { context } = setUpDriver(device);
        const driver = new BlkDriver(context);
        await driver.start();
        assert.ok(driver.features.has(VIRTIO_F_RING_PACKED));
        const data = Uint8Array.from({ length: 20 * 4096 }, (_, i) => i >> 4);
        await driver.write(0, data);
        assert.deepEqual(await driver.read(0, data.length), data);
        // A header and a status besides the data.
        assert.equal(Math.max(...device.chains), segMax + 2);
        await driver.remove();
      }
    },
  );
