import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { FeatureSet } from "../common/feature-set.ts";
import {
  VIRTIO_BLK_CFG_BLK_SIZE,
  VIRTIO_BLK_CFG_CAPACITY,
  VIRTIO_BLK_CFG_MAX_DISCARD_SECTORS,
  VIRTIO_BLK_CFG_MAX_SECURE_ERASE_SECTORS,
  VIRTIO_BLK_CFG_MAX_WRITE_ZEROES_SECTORS,
  VIRTIO_BLK_CFG_WRITEBACK,
  VIRTIO_BLK_CFG_ZONED_MODEL,
  VIRTIO_BLK_F_BLK_SIZE,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_SECURE_ERASE,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_F_ZONED,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_GET_ID,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_SECURE_ERASE,
  VIRTIO_BLK_T_WRITE_ZEROES,
  VIRTIO_BLK_Z_HA,
  VIRTIO_BLK_Z_HM,
  VIRTIO_BLK_Z_NONE,
  VIRTIO_BLK_ZONED_CFG_SIZE,
} from "../spec/blk.ts";
import { VIRTIO_ID_BLOCK } from "../spec/ids.ts";
import { VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK } from "../spec/status.ts";
import { link, type PeerChain, PeerDevice, until, withPeer } from "../testing/peer.ts";
import { statements } from "../testing/statements.ts";
import { uniform } from "../testing/zoned-blk.ts";
import { BlkDriver } from "./blk.ts";

const INIT = "driver: Device Types / Block Device / Device Initialization";
const OPERATION = "driver: Device Types / Block Device / Device Operation";
const limit = { timeout: 20_000 };

/** Sectors of the disk. */
const SECTORS = 1000;
const MAX_DISCARD = { sectors: 10, segments: 3 };
const MAX_ZEROES = { sectors: 12, segments: 4 };
const MAX_ERASE = { sectors: 14, segments: 2 };

interface Request {
  readonly type: number;
  readonly sector: number;
  readonly data: Uint8Array;
  /** Bytes of data that the device is to write. */
  readonly room: number;
}

const parse = ({ out, room }: PeerChain): Request => {
  const view = new DataView(out.buffer, out.byteOffset, 16);
  return {
    type: view.getUint32(0, true),
    sector: Number(view.getBigUint64(8, true)),
    data: out.subarray(16),
    room: room - 1,
  };
};

/** A disk that answers every request with success, and reads with bytes of 0xab. */
class BlkPeer extends PeerDevice {
  status = 0;

  constructor(model?: number) {
    const config = new DataView(new ArrayBuffer(VIRTIO_BLK_ZONED_CFG_SIZE));
    config.setUint32(VIRTIO_BLK_CFG_CAPACITY, SECTORS, true);
    config.setUint32(VIRTIO_BLK_CFG_BLK_SIZE, 512, true);
    config.setUint8(VIRTIO_BLK_CFG_WRITEBACK, 1);
    for (const [at, { sectors, segments }] of [
      [VIRTIO_BLK_CFG_MAX_DISCARD_SECTORS, MAX_DISCARD],
      [VIRTIO_BLK_CFG_MAX_WRITE_ZEROES_SECTORS, MAX_ZEROES],
      [VIRTIO_BLK_CFG_MAX_SECURE_ERASE_SECTORS, MAX_ERASE],
    ] as const) {
      config.setUint32(at, sectors, true);
      config.setUint32(at + 4, segments, true);
    }
    config.setUint8(VIRTIO_BLK_CFG_ZONED_MODEL, model ?? 0);
    const features = FeatureSet.of(
      VIRTIO_BLK_F_BLK_SIZE,
      VIRTIO_BLK_F_FLUSH,
      VIRTIO_BLK_F_CONFIG_WCE,
      VIRTIO_BLK_F_DISCARD,
      VIRTIO_BLK_F_WRITE_ZEROES,
      VIRTIO_BLK_F_SECURE_ERASE,
    );
    super({
      deviceId: VIRTIO_ID_BLOCK,
      queues: 1,
      features: model === undefined ? features : features.with(VIRTIO_BLK_F_ZONED),
      config: new Uint8Array(config.buffer),
      writable: [[VIRTIO_BLK_CFG_WRITEBACK, 1]],
    });
    this.answer = ({ room }) => {
      const bytes = new Uint8Array(room).fill(0xab);
      bytes[room - 1] = this.status;
      return bytes;
    };
  }

  get requests(): Request[] {
    return this.chains.map(parse);
  }

  resize(sectors: number): void {
    this.config.update((view) => view.setUint32(VIRTIO_BLK_CFG_CAPACITY, sectors, true));
  }
}

/** Whether a call reads the byte at `offset` of the configuration. */
const reads = (call: string, offset: number): boolean => {
  const [name, at, size] = call.split(" ");
  return name === "readConfig" && Number(at) <= offset && offset < Number(at) + Number(size);
};

test(statements("blk driver: writeback is not read before FEATURES_OK", `${INIT} #1`), limit, async () => {
  for (const model of [undefined, VIRTIO_BLK_Z_HM, VIRTIO_BLK_Z_HA]) {
    const { driver, calls, close } = await withPeer(new BlkPeer(model), BlkDriver.type);
    assert.equal(driver.writeback, true);
    const features = calls.findIndex(
      (call) => /^setStatus/.test(call) && Number(call.split(" ")[1]) & VIRTIO_CONFIG_S_FEATURES_OK,
    );
    const first = calls.findIndex((call) => reads(call, VIRTIO_BLK_CFG_WRITEBACK));
    assert.notEqual(features, -1);
    assert.notEqual(first, -1);
    assert.equal(first > features, true);
    await close();
  }
});

test(
  statements("blk driver: disks of every zoned model, DISCARD but for a host-managed one", `${INIT} #2`, `${INIT} #3`),
  limit,
  async () => {
    for (const [model, managed] of [
      [VIRTIO_BLK_Z_NONE, false],
      [VIRTIO_BLK_Z_HM, true],
      [VIRTIO_BLK_Z_HA, false],
    ] as const) {
      const device = new BlkPeer(model);
      const { driver, close } = await withPeer(device, BlkDriver.type);
      assert.equal(device.features.has(VIRTIO_BLK_F_ZONED), true);
      assert.equal(device.features.has(VIRTIO_BLK_F_DISCARD), !managed);
      assert.equal(driver.zones !== undefined, managed);
      if (!managed) await driver.write(512, new Uint8Array(512));
      assert.equal(device.requests.length, managed ? 0 : 1);
      await close();
    }
  },
);

test("blk driver: a zoned model that it does not know fails the device", limit, async () => {
  const { bus, transport, calls } = link(new BlkPeer(3));
  await assert.rejects(bus.bind(BlkDriver.type, transport), { code: "ERR_VIRTKIT_BLK_UNSUPPORTED" });
  const statuses = calls.filter((call) => /^setStatus/.test(call)).map((call) => Number(call.split(" ")[1]));
  assert.equal(
    statuses.some((status) => (status & VIRTIO_CONFIG_S_FEATURES_OK) !== 0),
    false,
  );
  assert.notEqual((statuses.at(-1) ?? 0) & VIRTIO_CONFIG_S_FAILED, 0);
  await bus.close();
});

const codeOf = (promise: Promise<unknown>): Promise<string> =>
  promise.then(
    () => "ok",
    ({ code }: { code?: string }) => code ?? "no code",
  );

/** The ranges that a DISCARD, WRITE_ZEROES or SECURE_ERASE names. */
const rangesOf = ({ data }: Request): { sector: number; sectors: number; flags: number }[] => {
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  return Array.from({ length: Math.floor(data.length / 16) }, (_, i) => ({
    sector: Number(view.getBigUint64(i * 16, true)),
    sectors: view.getUint32(i * 16 + 8, true),
    flags: view.getUint32(i * 16 + 12, true),
  }));
};
const NAMES_RANGES = new Set([VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_T_SECURE_ERASE]);

test(
  statements(
    "blk driver: whatever it is asked for, nothing beyond the disk and no part of a sector is sent",
    `${OPERATION} #1`,
    `${OPERATION} #3`,
  ),
  limit,
  async () => {
    const place = fc.oneof(
      fc.nat(SECTORS * 512 + 5000),
      fc.nat(SECTORS + 8).map((sector) => sector * 512),
    );
    const call = fc.record({ what: fc.nat(4), offset: place, length: place, end: fc.boolean() });
    await fc.assert(
      fc.asyncProperty(
        fc.array(call, { maxLength: 10 }),
        fc.option(fc.integer({ min: 1, max: SECTORS })),
        async (calls, smaller) => {
          const device = new BlkPeer();
          const { driver, close } = await withPeer(device, BlkDriver.type);
          let capacity = SECTORS;
          if (smaller !== null) {
            device.resize(smaller);
            await until(() => driver.capacity === smaller * 512);
            capacity = smaller;
          }
          for (const { what, offset, length: any, end } of calls) {
            const length = end ? Math.max(0, capacity * 512 - offset) : any;
            const good = offset % 512 === 0 && length % 512 === 0 && offset + length <= capacity * 512;
            const made = [
              () => driver.read(offset, length),
              () => driver.write(offset, new Uint8Array(length)),
              () => driver.discard(offset, length),
              () => driver.writeZeroes(offset, length),
              () => driver.secureErase(offset, length),
            ][what] as () => Promise<unknown>;
            assert.equal(await codeOf(made()), good ? "ok" : "ERR_VIRTKIT_BLK_RANGE");
          }
          for (const request of device.requests) {
            const { type, sector, data, room } = request;
            const length = type === VIRTIO_BLK_T_IN ? room : data.length;
            const ranges = NAMES_RANGES.has(type) ? rangesOf(request) : [{ sector, sectors: length / 512 }];
            for (const range of ranges) {
              assert.equal(Number.isInteger(range.sectors), true);
              assert.equal(range.sector + range.sectors <= capacity, true);
            }
          }
          await close();
        },
      ),
      { numRuns: 60 },
    );
  },
);

test(
  statements("blk driver: FLUSH at sector 0, GET_ID of 20 bytes", `${OPERATION} #2`, `${OPERATION} #5`),
  limit,
  async () => {
    const device = new BlkPeer();
    const { driver, close } = await withPeer(device, BlkDriver.type);
    await driver.write(5 * 512, new Uint8Array(512));
    await driver.flush();
    await driver.getId();
    const [, flush, id] = device.requests;
    assert.deepEqual([flush?.type, flush?.sector, flush?.data.length, flush?.room], [VIRTIO_BLK_T_FLUSH, 0, 0, 0]);
    assert.deepEqual([id?.type, id?.data.length, id?.room], [VIRTIO_BLK_T_GET_ID, 0, 20]);
    await close();
  },
);

test(
  statements(
    "blk driver: DISCARD, WRITE_ZEROES and SECURE_ERASE in whole segments, no more than the device takes",
    `${OPERATION} #4`,
    `${OPERATION} #6`,
    `${OPERATION} #7`,
    `${OPERATION} #8`,
    `${OPERATION} #10`,
  ),
  limit,
  async () => {
    for (const [type, most, ask] of [
      [VIRTIO_BLK_T_DISCARD, MAX_DISCARD, (driver: BlkDriver) => driver.discard(7 * 512, 301 * 512)],
      [
        VIRTIO_BLK_T_WRITE_ZEROES,
        MAX_ZEROES,
        (driver: BlkDriver) => driver.writeZeroes(7 * 512, 301 * 512, { unmap: true }),
      ],
      [VIRTIO_BLK_T_SECURE_ERASE, MAX_ERASE, (driver: BlkDriver) => driver.secureErase(7 * 512, 301 * 512)],
    ] as const) {
      const device = new BlkPeer();
      const { driver, close } = await withPeer(device, BlkDriver.type);
      await ask(driver);
      let next = 7;
      for (const request of device.requests) {
        assert.equal(request.type, type);
        assert.deepEqual([request.data.length % 16, request.room], [0, 0]);
        const ranges = rangesOf(request);
        assert.equal(ranges.length <= most.segments, true);
        for (const { sector, sectors, flags } of ranges) {
          assert.deepEqual([sector, flags], [next, type === VIRTIO_BLK_T_WRITE_ZEROES ? 1 : 0]);
          assert.equal(sectors <= most.sectors, true);
          next += sectors;
        }
      }
      assert.equal(next, 308);
      await close();
    }
  },
);

test(
  statements("blk driver: a flush is sent after the cache was switched off, too", `${OPERATION} #9`),
  limit,
  async () => {
    const device = new BlkPeer();
    const { driver, close } = await withPeer(device, BlkDriver.type);
    await driver.write(0, new Uint8Array(512));
    driver.setWriteback(false);
    assert.equal(driver.writeback, false);
    await driver.flush();
    assert.deepEqual(
      device.requests.map(({ type }) => type),
      [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_FLUSH],
    );
    await close();
  },
);

test(
  statements("blk driver: what was discarded is read from the device, whatever it says", `${OPERATION} #11`),
  limit,
  async () => {
    const device = new BlkPeer();
    const { driver, close } = await withPeer(device, BlkDriver.type);
    await driver.discard(0, 4096);
    assert.equal(uniform(await driver.read(0, 4096)), 0xab);
    assert.deepEqual(
      device.requests.map(({ type }) => type),
      [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_IN],
    );
    await close();
  },
);
