import assert from "node:assert/strict";
import { test } from "node:test";
import { MemoryBlockBackend } from "../backend/block/memory.ts";
import { BlkDevice, type ZonedProperties } from "../device/blk.ts";
import type { RunningQueue } from "../device/running-queue.ts";
import {
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_ZONE_APPEND,
  VIRTIO_BLK_T_ZONE_CLOSE,
  VIRTIO_BLK_T_ZONE_FINISH,
  VIRTIO_BLK_T_ZONE_OPEN,
  VIRTIO_BLK_T_ZONE_REPORT,
  VIRTIO_BLK_T_ZONE_RESET,
  VIRTIO_BLK_T_ZONE_RESET_ALL,
  VIRTIO_BLK_ZS_CLOSED,
  VIRTIO_BLK_ZS_EMPTY,
  VIRTIO_BLK_ZS_EOPEN,
  VIRTIO_BLK_ZS_FULL,
  VIRTIO_BLK_ZT_CONV,
} from "../spec/blk.ts";
import { readChains, withPeer } from "../testing/peer.ts";
import { testEnvironment } from "../testing/rig.ts";
import { statements } from "../testing/statements.ts";
import { uniform } from "../testing/zoned-blk.ts";
import type { ChainBatch } from "../virtqueue/index.ts";
import { BlkDriver } from "./blk.ts";

const OPERATION = "driver: Device Types / Block Device / Device Operation";
const limit = { timeout: 20_000 };
const ZONE = 65536;
const CAPACITY = 40960;
const BLOCK = 4096;

interface Request {
  readonly type: number;
  readonly sector: number;
  readonly bytes: number;
}

/** Ten zones, the first two conventional; says which requests came. */
class WatchedBlk extends BlkDevice {
  readonly requests: Request[] = [];

  constructor(zoned: ZonedProperties = {}, queues = 1) {
    super({
      backend: new MemoryBlockBackend({ capacity: 10 * ZONE }),
      environment: testEnvironment,
      physicalBlockSize: BLOCK,
      numQueues: queues,
      zoned: { zoneSize: ZONE, zoneCapacity: CAPACITY, conventionalZones: 2, maxAppendSize: 2 * BLOCK, ...zoned },
    });
  }

  /** Requests of these types since the last call, all if none is named. */
  take(...types: number[]): Request[] {
    return this.requests.splice(0).filter(({ type }) => types.length === 0 || types.includes(type));
  }

  protected override onChains(running: RunningQueue, batch: ChainBatch): boolean {
    for (const { out } of readChains(this.memory, running.index, batch)) {
      const view = new DataView(out.buffer, out.byteOffset, 16);
      const sector = Number(view.getBigUint64(8, true));
      this.requests.push({ type: view.getUint32(0, true), sector, bytes: out.length - 16 });
    }
    return super.onChains(running, batch);
  }
}

async function up(zoned: ZonedProperties = {}) {
  const device = new WatchedBlk(zoned);
  const { driver, close } = await withPeer(device, BlkDriver.type);
  const { zones } = driver;
  assert.ok(zones);
  return { device, driver, zones, close };
}

const refused = { code: "ERR_VIRTKIT_BLK_ZONE" };
const data = (length: number, byte = 7): Uint8Array => new Uint8Array(length).fill(byte);

test(
  statements("zoned blk driver: a report begins in the zone that is asked for", `${OPERATION} #14`),
  limit,
  async () => {
    const { device, zones, close } = await up();
    for (const [offset, first] of [
      [0, 0],
      [3 * ZONE, 3],
      [3 * ZONE + 12345, 3],
      [10 * ZONE - 1, 9],
    ] as const) {
      const found = await zones.report(offset, 2);
      assert.deepEqual([found[0]?.offset, found.length], [first * ZONE, Math.min(2, 10 - first)]);
      for (const { sector } of device.take(VIRTIO_BLK_T_ZONE_REPORT)) assert.equal(sector < 10 * (ZONE / 512), true);
    }
    await zones.report(3 * ZONE + 12345, 1);
    const [request] = device.take();
    assert.equal(Math.floor(((request?.sector ?? 0) * 512) / ZONE), 3);
    assert.deepEqual(await zones.report(10 * ZONE), []);
    assert.deepEqual(device.take(), []);
    const all = await zones.report();
    assert.deepEqual(
      all.map(({ type }) => type === VIRTIO_BLK_ZT_CONV),
      [true, true, ...new Array(8).fill(false)],
    );
    assert.deepEqual([all[2]?.capacity, all[2]?.writePointer], [CAPACITY, 2 * ZONE]);
    await close();
  },
);

test("zoned blk driver: a disk of more zones than one report holds", limit, async () => {
  const device = new BlkDevice({
    backend: new MemoryBlockBackend({ capacity: 150 * ZONE }),
    environment: testEnvironment,
    zoned: { zoneSize: ZONE },
  });
  const { driver, close } = await withPeer(device, BlkDriver.type);
  const zones = await driver.zones?.report();
  assert.deepEqual(
    zones?.map(({ offset }) => offset),
    Array.from({ length: 150 }, (_, i) => i * ZONE),
  );
  await close();
});

test(
  statements("zoned blk driver: zones are named by their first sector", `${OPERATION} #13`, `${OPERATION} #15`),
  limit,
  async () => {
    const { device, zones, close } = await up();
    const steps = [
      [VIRTIO_BLK_T_ZONE_OPEN, (at: number) => zones.open(at)],
      [VIRTIO_BLK_T_ZONE_CLOSE, (at: number) => zones.close(at)],
      [VIRTIO_BLK_T_ZONE_FINISH, (at: number) => zones.finish(at)],
      [VIRTIO_BLK_T_ZONE_RESET, (at: number) => zones.reset(at)],
    ] as const;
    for (const [, ask] of steps)
      for (const wrong of [3 * ZONE + 512, 3 * ZONE + 100, 1, -ZONE, 10 * ZONE, Number.NaN])
        await assert.rejects(ask(wrong), refused);
    assert.deepEqual(device.take(), []);
    for (const [type, ask] of steps) {
      if (type === VIRTIO_BLK_T_ZONE_FINISH) await zones.open(3 * ZONE);
      device.take();
      await ask(3 * ZONE);
      assert.deepEqual(device.take(), [{ type, sector: (3 * ZONE) / 512, bytes: 0 }]);
    }
    await close();
  },
);

test(statements("zoned blk driver: RESET_ALL at sector 0", `${OPERATION} #16`), limit, async () => {
  const { device, driver, zones, close } = await up();
  await driver.write(4 * ZONE, data(BLOCK));
  device.take();
  await zones.resetAll();
  assert.deepEqual(device.take(), [{ type: VIRTIO_BLK_T_ZONE_RESET_ALL, sector: 0, bytes: 0 }]);
  await driver.write(4 * ZONE, data(BLOCK));
  await close();
});

test(
  statements(
    "zoned blk driver: appends name the zone, are made of the granularity and no larger than may be",
    `${OPERATION} #17`,
    `${OPERATION} #18`,
    `${OPERATION} #19`,
  ),
  limit,
  async () => {
    const { device, driver, zones, close } = await up();
    for (const [at, length] of [
      [3 * ZONE + BLOCK, BLOCK],
      [3 * ZONE, 512],
      [3 * ZONE, BLOCK + 512],
      [3 * ZONE, 3 * BLOCK],
      [3 * ZONE, 0],
      [0, BLOCK],
      [10 * ZONE, BLOCK],
    ] as const)
      await assert.rejects(zones.append(at, data(length)), refused);
    assert.deepEqual(device.take(VIRTIO_BLK_T_ZONE_APPEND), []);
    const places = await Promise.all([1, 2, 2].map((blocks) => zones.append(3 * ZONE, data(blocks * BLOCK, blocks))));
    assert.deepEqual(places, [3 * ZONE, 3 * ZONE + BLOCK, 3 * ZONE + 3 * BLOCK]);
    assert.deepEqual(
      device.take(VIRTIO_BLK_T_ZONE_APPEND),
      [1, 2, 2].map((blocks) => ({ type: VIRTIO_BLK_T_ZONE_APPEND, sector: (3 * ZONE) / 512, bytes: blocks * BLOCK })),
    );
    assert.equal(uniform(await driver.read(3 * ZONE + BLOCK, 4 * BLOCK)), 2);
    await close();
    const none = await up({ maxAppendSize: 0 });
    await assert.rejects(none.zones.append(3 * ZONE, data(BLOCK)), refused);
    assert.deepEqual(none.device.take(VIRTIO_BLK_T_ZONE_APPEND), []);
    await none.close();
  },
);

test(
  statements("zoned blk driver: writes are made of the granularity and end within the zone", `${OPERATION} #20`),
  limit,
  async () => {
    const { device, driver, zones, close } = await up();
    const at = 3 * ZONE;
    const sent = () => device.take(VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_ZONE_APPEND);
    for (const [offset, length] of [
      [at, 512],
      [at, BLOCK + 512],
      [at + 512, BLOCK],
      [at, CAPACITY + BLOCK],
      [at + BLOCK, BLOCK],
      [at, 2 * ZONE],
    ] as const)
      await assert.rejects(driver.write(offset, data(length)), refused);
    assert.deepEqual(sent(), []);
    await driver.write(at, data(8 * BLOCK, 1));
    await assert.rejects(driver.write(at + 8 * BLOCK, data(3 * BLOCK)), refused);
    await assert.rejects(driver.write(at, data(BLOCK)), refused);
    await zones.append(at, data(BLOCK, 2));
    await assert.rejects(zones.append(at, data(2 * BLOCK)), refused);
    assert.deepEqual(sent(), [
      { type: VIRTIO_BLK_T_OUT, sector: at / 512, bytes: 8 * BLOCK },
      { type: VIRTIO_BLK_T_ZONE_APPEND, sector: at / 512, bytes: BLOCK },
    ]);
    await driver.write(at + 9 * BLOCK, data(BLOCK, 3));
    assert.equal((await zones.report(at, 1))[0]?.state, VIRTIO_BLK_ZS_FULL);
    await assert.rejects(driver.write(at + 10 * BLOCK, data(BLOCK)), refused);
    await assert.rejects(zones.append(at, data(BLOCK)), refused);
    assert.equal(sent().length, 1);
    // A conventional zone takes everything, across its end too.
    await driver.write(ZONE - 512, data(1024, 9));
    assert.equal(uniform(await driver.read(ZONE - 512, 1024)), 9);
    await close();
  },
);

test("zoned blk driver: states, failures and a start anew", limit, async () => {
  const { device, driver, zones, close } = await up({ maxOpen: 1, maxActive: 2 });
  const state = async (zone: number) => (await zones.report(zone * ZONE, 1))[0]?.state;
  await zones.open(3 * ZONE);
  assert.equal(await state(3), VIRTIO_BLK_ZS_EOPEN);
  await assert.rejects(zones.open(4 * ZONE), refused);
  await assert.rejects(driver.write(4 * ZONE, data(BLOCK)), refused);
  await driver.write(3 * ZONE, data(BLOCK));
  await zones.close(3 * ZONE);
  assert.equal(await state(3), VIRTIO_BLK_ZS_CLOSED);
  await driver.write(4 * ZONE, data(BLOCK));
  await zones.reset(4 * ZONE);
  assert.equal(await state(4), VIRTIO_BLK_ZS_EMPTY);
  device.failZone(4, "offline");
  await assert.rejects(driver.write(4 * ZONE, data(BLOCK)), refused);
  await assert.rejects(driver.read(4 * ZONE, BLOCK), refused);
  await driver.restart();
  assert.equal(uniform(await driver.read(3 * ZONE, BLOCK)), 7);
  await driver.write(3 * ZONE + BLOCK, data(BLOCK));
  // Reads are cut where zones begin, as no request may lie in two.
  device.take();
  await driver.read(5 * ZONE - BLOCK - ZONE / 2 + ZONE, ZONE);
  assert.deepEqual(
    device.take(VIRTIO_BLK_T_IN).map(({ sector }) => sector * 512),
    [5 * ZONE - BLOCK - ZONE / 2 + ZONE, 6 * ZONE],
  );
  await close();
});
