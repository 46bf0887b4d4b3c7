import assert from "node:assert/strict";
import { test } from "node:test";
import { FeatureSet } from "../common/feature-set.ts";
import { BalloonDriver } from "../driver/balloon.ts";
import {
  VIRTIO_BALLOON_CFG_FREE_PAGE_HINT_CMD_ID,
  VIRTIO_BALLOON_CMD_ID_DONE,
  VIRTIO_BALLOON_CMD_ID_MIN,
  VIRTIO_BALLOON_CMD_ID_STOP,
  VIRTIO_BALLOON_F_FREE_PAGE_HINT,
  VIRTIO_BALLOON_FREE_PAGE_VQ,
} from "../spec/balloon.ts";
import { VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { RAW_DATA, RawDevice } from "../testing/raw-device.ts";
import { createRig, RIG_CONFIGS, testEnvironment } from "../testing/rig.ts";
import { statements } from "../testing/statements.ts";
import { BalloonDevice } from "./balloon.ts";
import { RING_FEATURES } from "./core.ts";

const HINTING = "device: Device Types / Memory Balloon Device / Device Operation / Free Page Hinting";
const limit = { timeout: 20_000 };
const PAGE = 4096;
const QUEUE = VIRTIO_BALLOON_FREE_PAGE_VQ;
const WANTED = FeatureSet.of(VIRTIO_F_VERSION_1, VIRTIO_BALLOON_F_FREE_PAGE_HINT);

/** A balloon that a test sends hints to by hand. */
class Hinter {
  readonly host = {
    release: () => assert.fail("a hinted page was given away"),
    restore: () => assert.fail("nothing was deflated"),
  };
  readonly device = new BalloonDevice({ environment: testEnvironment, freePageHinting: true, host: this.host });
  readonly bench = new RawDevice(this.device, WANTED);
  /** Pages that were taken, counted from the first. */
  readonly taken: number[] = [];

  start(): Promise<void> {
    return this.device.startHinting((address, length) => {
      for (let at = address; at < address + length; at += PAGE) this.taken.push((at - RAW_DATA) / PAGE);
    });
  }

  get id(): number {
    return this.device.config.read(VIRTIO_BALLOON_CFG_FREE_PAGE_HINT_CMD_ID, 4);
  }

  command(id: number): void {
    const bytes = new DataView(new ArrayBuffer(4));
    bytes.setUint32(0, id, true);
    this.bench.memory.write(RAW_DATA, new Uint8Array(bytes.buffer));
    this.bench.offer(QUEUE, [{ address: RAW_DATA, length: 4 }], []);
    this.bench.kick(QUEUE);
  }

  page(index: number): void {
    this.bench.offer(QUEUE, [], [{ address: RAW_DATA + index * PAGE, length: PAGE }]);
    this.bench.kick(QUEUE);
  }
}

test(statements("balloon: each round of hints has another command id", `${HINTING} #1`), limit, async () => {
  const hinter = new Hinter();
  const ids: number[] = [];
  for (let round = 0; round < 6; round++) {
    const ended = hinter.start();
    ids.push(hinter.id);
    // Of six rounds the driver only ends one.
    if (round === 2) {
      hinter.command(hinter.id);
      hinter.command(VIRTIO_BALLOON_CMD_ID_STOP);
    } else if (round % 2 === 0) hinter.device.stopHinting();
    else hinter.device.finishHinting();
    await ended;
  }
  assert.equal(new Set(ids).size, ids.length);
  assert.equal(
    ids.every((id) => id >= VIRTIO_BALLOON_CMD_ID_MIN),
    true,
  );
});

test(statements("balloon: pages under another command id are ignored", `${HINTING} #2`), limit, async () => {
  const hinter = new Hinter();
  hinter.page(1);
  const first = hinter.start();
  const old = hinter.id;
  hinter.page(2);
  hinter.command(old + 1);
  hinter.page(3);
  hinter.command(VIRTIO_BALLOON_CMD_ID_STOP);
  hinter.command(old);
  hinter.page(4);
  assert.deepEqual(hinter.taken, [4]);
  const second = hinter.start();
  await first;
  hinter.page(5);
  hinter.command(hinter.id);
  hinter.page(6);
  hinter.command(VIRTIO_BALLOON_CMD_ID_STOP);
  await second;
  hinter.page(7);
  assert.deepEqual(hinter.taken, [4, 6]);
  assert.equal(hinter.device.counters.hinted, 2 * PAGE);
  assert.equal(hinter.bench.used(QUEUE).length, 12, "every buffer is used");
  assert.equal(hinter.device.faults, 0);
});

test(
  statements(
    "balloon: DONE when the hints are no longer needed; hinted pages stay as they are",
    `${HINTING} #3`,
    `${HINTING} #4`,
  ),
  limit,
  async () => {
    const hinter = new Hinter();
    hinter.bench.memory.write(RAW_DATA, new Uint8Array(8 * PAGE).fill(0x5a));
    const ended = hinter.start();
    hinter.command(hinter.id);
    hinter.page(3);
    hinter.page(4);
    const id = hinter.id;
    hinter.device.finishHinting();
    await ended;
    assert.equal(hinter.id, VIRTIO_BALLOON_CMD_ID_DONE);
    const before = hinter.bench.bytes();
    hinter.page(5);
    hinter.command(id);
    hinter.page(6);
    const after = hinter.bench.bytes();
    before.set(after.subarray(0, 4));
    assert.deepEqual(Buffer.compare(before, after), 0);
    assert.deepEqual(hinter.taken, [3, 4]);
    hinter.device.finishHinting();
    assert.equal(hinter.id, VIRTIO_BALLOON_CMD_ID_DONE);
  },
);

test("balloon: hints that cannot be, and a reset meanwhile", limit, async () => {
  const hinter = new Hinter();
  hinter.bench.offer(QUEUE, [{ address: RAW_DATA, length: 3 }], []);
  hinter.bench.kick(QUEUE);
  assert.equal(hinter.device.faults, 1);
  const ended = assert.rejects(hinter.start(), { code: "ERR_VIRTKIT_RESET" });
  hinter.device.reset();
  await ended;
  assert.equal(hinter.id, VIRTIO_BALLOON_CMD_ID_STOP);
  await assert.rejects(hinter.start(), { code: "ERR_VIRTKIT_FEATURES" });
});

for (const config of RIG_CONFIGS)
  test(
    `balloon, ${config.transport}, ${config.name}: the guest's free memory is hinted and given back`,
    limit,
    async () => {
      const device = new BalloonDevice({
        environment: testEnvironment,
        ringFeatures: RING_FEATURES,
        freePageHinting: true,
        freePageReporting: true,
      });
      const { driver, dma, close } = await createRig(device, BalloonDriver.type, config, {
        memoryBytes: 2 * 1024 * 1024,
      });
      const free = dma.free;
      for (let round = 0; round < 2; round++) {
        let bytes = 0;
        await device.startHinting((_address, length) => {
          bytes += length;
        });
        assert.deepEqual([driver.hinted, device.counters.hinted], [bytes, (round + 1) * bytes]);
        assert.equal(bytes > free - 64 * PAGE, true);
        device.finishHinting();
        while (dma.free < free) await new Promise((resolve) => setImmediate(resolve));
      }
      await driver.reportFreePages(3);
      assert.deepEqual([device.counters.reported, device.faults], [3 * PAGE, 0]);
      await close();
    },
  );
