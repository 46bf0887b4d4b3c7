import assert from "node:assert/strict";
import { test } from "node:test";
import { MemoryBlockBackend } from "../backend/block/memory.ts";
import {
  BLOCK_DISCARD,
  BLOCK_FLUSH,
  BLOCK_MAY_UNMAP,
  BLOCK_SECURE_ERASE,
  BLOCK_WRITE_ZEROES,
} from "../backend/block/types.ts";
import { FeatureSet } from "../common/feature-set.ts";
import { BlkDriver } from "../driver/blk.ts";
import {
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_LIFETIME,
  VIRTIO_BLK_F_SECURE_ERASE,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_S_IOERR,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_S_UNSUPP,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_GET_LIFETIME,
  VIRTIO_BLK_T_SECURE_ERASE,
  VIRTIO_BLK_T_WRITE_ZEROES,
} from "../spec/blk.ts";
import { VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { ManualBlockBackend } from "../testing/manual-block.ts";
import { RAW_DATA, RawDevice } from "../testing/raw-device.ts";
import { createRig, RIG_CONFIGS, type RigConfig, testEnvironment } from "../testing/rig.ts";
import { statements } from "../testing/statements.ts";
import { BlkDevice, type BlkDeviceOptions } from "./blk.ts";
import { RING_FEATURES } from "./core.ts";

const MIB = 1024 * 1024;
const OPERATION = "device: Device Types / Block Device / Device Operation";
const limit = { timeout: 20_000 };
const first = RIG_CONFIGS[0] as RigConfig;

const make = (options: Partial<BlkDeviceOptions> & Pick<BlkDeviceOptions, "backend">): BlkDevice =>
  new BlkDevice({ environment: testEnvironment, ringFeatures: RING_FEATURES, ...options });

for (const config of RIG_CONFIGS)
  for (const [name, backend] of [
    ["at hand", new MemoryBlockBackend({ capacity: 8 * MIB, contents: new Uint8Array(8 * MIB).fill(7) })],
    ["later", new ManualBlockBackend({ capacity: 8 * MIB, contents: new Uint8Array(8 * MIB).fill(7), auto: 5 })],
  ] as const)
    test(
      statements(`blk, ${config.transport}, ${config.name}, ${name}: discard, zeros, erase`, `${OPERATION} #5`),
      limit,
      async () => {
        const device = make({ backend, maxSegments: 3, maxDiscardSectors: 100, maxWriteZeroesSectors: 64 });
        const { driver, close } = await createRig(device, BlkDriver.type, config);
        await driver.discard(0, MIB);
        for (const unmap of [true, false]) {
          const at = unmap ? 2 * MIB : 4 * MIB;
          await driver.writeZeroes(at, 512 * 300, { unmap });
          assert.ok((await driver.read(at, 512 * 300)).every((byte) => byte === 0));
          assert.equal((await driver.read(at + 512 * 300, 512))[0], 7);
        }
        await driver.secureErase(6 * MIB, 4096);
        assert.ok((await driver.read(6 * MIB, 4096)).every((byte) => byte === 0));
        await driver.discard(0, 0);
        assert.deepEqual([device.stats.discards, device.stats.zeroes], [7, 5]);
        assert.deepEqual([device.stats.errors, device.faults, device.inFlight], [0, 0, 0]);
        await close();
      },
    );

test("blk: a discard frees memory of the host's", limit, async () => {
  const backend = new MemoryBlockBackend({ capacity: 8 * MIB, contents: new Uint8Array(8 * MIB) });
  const { driver, close } = await createRig(make({ backend }), BlkDriver.type, first);
  assert.equal(backend.allocated, 8 * MIB);
  await driver.discard(MIB, 2 * MIB);
  assert.equal(backend.allocated, 6 * MIB);
  await driver.writeZeroes(4 * MIB, 4 * MIB, { unmap: true });
  assert.equal(backend.allocated, 2 * MIB);
  await close();
});

test("blk: flags and ranges reach the back end one by one, and zeros are durable in writethrough", limit, async () => {
  const backend = new ManualBlockBackend({ capacity: MIB, auto: "ordered" });
  const device = make({ backend, maxSegments: 4, maxWriteZeroesSectors: 8, writeCache: "off" });
  const { driver, close } = await createRig(device, BlkDriver.type, first);
  await driver.writeZeroes(4096, 8192 + 512, { unmap: true });
  assert.deepEqual(backend.log.map(({ op, offset, length, flags }) => [op, offset, length, flags]).slice(0, 3), [
    [BLOCK_WRITE_ZEROES, 4096, 4096, BLOCK_MAY_UNMAP],
    [BLOCK_WRITE_ZEROES, 8192, 4096, BLOCK_MAY_UNMAP],
    [BLOCK_WRITE_ZEROES, 12288, 512, BLOCK_MAY_UNMAP],
  ]);
  assert.deepEqual(
    backend.log.slice(3).map(({ op }) => op),
    [BLOCK_FLUSH],
  );
  await driver.writeZeroes(0, 512);
  assert.equal(backend.log[4]?.flags, 0);
  backend.fail = ({ op }) => op === BLOCK_SECURE_ERASE;
  await assert.rejects(driver.secureErase(0, 8192), { code: "ERR_VIRTKIT_BLK_IO" });
  assert.equal(backend.log.filter(({ op }) => op === BLOCK_SECURE_ERASE).length, 1, "the rest was left");
  await close();
});

test(statements("blk: lifetime, and no reserved values", `${OPERATION} #7`, `${OPERATION} #8`), limit, async () => {
  for (const [given, told] of [
    [{ preEol: 2, typeA: 11, typeB: 3 }, [2, 11, 3]],
    [{ preEol: 4, typeA: 12, typeB: -1 }, [0, 0, 0]],
  ] as const) {
    const backend = new ManualBlockBackend({ auto: "ordered", lifetime: given });
    const { driver, close } = await createRig(make({ backend }), BlkDriver.type, first);
    const { preEolInfo, estimateTypeA, estimateTypeB } = await driver.getLifetime();
    assert.deepEqual([preEolInfo, estimateTypeA, estimateTypeB], told);
    await close();
  }
  const without = make({ backend: new ManualBlockBackend() });
  assert.equal(without.offeredFeatures.has(VIRTIO_BLK_F_LIFETIME), false);
  const { driver, close } = await createRig(without, BlkDriver.type, first);
  await assert.rejects(driver.getLifetime(), { code: "ERR_VIRTKIT_BLK_UNSUPPORTED" });
  await close();
});

test("blk: what the device or the disk does not offer is refused by the driver", limit, async () => {
  const backend = new MemoryBlockBackend({ capacity: MIB });
  const device = make({ backend, discard: false, writeZeroes: false, readOnly: true });
  const { driver, close } = await createRig(device, BlkDriver.type, first);
  for (const refused of [driver.discard(0, 512), driver.writeZeroes(0, 512), driver.secureErase(0, 512)])
    await assert.rejects(refused, { code: "ERR_VIRTKIT_BLK_UNSUPPORTED" });
  await close();
});

const FEATURES = FeatureSet.of(
  VIRTIO_F_VERSION_1,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_F_SECURE_ERASE,
);
const SECTORS = MIB / 512;

/** A request with these segments, in a chain cut after the header, behind the first 7 bytes of data and before the status. */
function ask(raw: RawDevice, type: number, data: Uint8Array): number {
  const header = new Uint8Array(16);
  new DataView(header.buffer).setUint32(0, type, true);
  raw.memory.write(RAW_DATA, header);
  raw.memory.write(RAW_DATA + 0x1000, data);
  raw.memory.write(RAW_DATA + 0x4000, Uint8Array.of(0xee));
  const at = RAW_DATA + 0x1000;
  const cut = Math.min(7, data.length);
  const pieces = [
    { address: RAW_DATA, length: 16 },
    { address: at, length: cut },
    { address: at + cut, length: data.length - cut },
  ];
  raw.offer(
    0,
    pieces.filter(({ length }) => length > 0),
    [{ address: RAW_DATA + 0x4000, length: 1 }],
  );
  raw.kick(0);
  const status = new Uint8Array(1);
  raw.memory.read(RAW_DATA + 0x4000, status);
  return status[0] as number;
}

function segments(...ranges: [sector: number, sectors: number, flags: number][]): Uint8Array {
  const view = new DataView(new ArrayBuffer(ranges.length * 16));
  for (const [i, [sector, sectors, flags]] of ranges.entries()) {
    view.setBigUint64(i * 16, BigInt(sector), true);
    view.setUint32(i * 16 + 8, sectors, true);
    view.setUint32(i * 16 + 12, flags, true);
  }
  return new Uint8Array(view.buffer);
}

test(statements("blk: hostile ranges get a status", `${OPERATION} #3`, `${OPERATION} #4`), limit, () => {
  const backend = new MemoryBlockBackend({ capacity: MIB, contents: new Uint8Array(MIB).fill(9) });
  const device = make({ backend, maxSegments: 2, maxDiscardSectors: 64, maxWriteZeroesSectors: 32 });
  const raw = new RawDevice(device, FEATURES);
  const [DISCARD, ZEROES, ERASE] = [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_T_SECURE_ERASE];
  const wrong: [string, number, Uint8Array, number][] = [
    ["unmap with discard", DISCARD, segments([0, 8, 1]), VIRTIO_BLK_S_UNSUPP],
    ["unmap with erase", ERASE, segments([0, 8, 1]), VIRTIO_BLK_S_UNSUPP],
    ["an unknown flag with discard", DISCARD, segments([0, 8, 2]), VIRTIO_BLK_S_UNSUPP],
    ["an unknown flag with erase", ERASE, segments([0, 8, 0x80000000]), VIRTIO_BLK_S_UNSUPP],
    ["an unknown flag", ZEROES, segments([0, 8, 2]), VIRTIO_BLK_S_UNSUPP],
    ["an unknown flag in the second segment", ZEROES, segments([0, 8, 1], [8, 8, 0x80000001]), VIRTIO_BLK_S_UNSUPP],
    ["no segment", DISCARD, new Uint8Array(0), VIRTIO_BLK_S_IOERR],
    ["half a segment", DISCARD, new Uint8Array(8), VIRTIO_BLK_S_IOERR],
    ["a segment and a half", DISCARD, new Uint8Array(24), VIRTIO_BLK_S_IOERR],
    ["too many segments", DISCARD, segments([0, 8, 0], [8, 8, 0], [16, 8, 0]), VIRTIO_BLK_S_IOERR],
    ["very many segments", DISCARD, new Uint8Array(0x2000), VIRTIO_BLK_S_IOERR],
    ["too many sectors", DISCARD, segments([0, 65, 0]), VIRTIO_BLK_S_IOERR],
    ["too many sectors of zeros", ZEROES, segments([0, 33, 0]), VIRTIO_BLK_S_IOERR],
    ["over the end", ZEROES, segments([SECTORS - 7, 8, 0]), VIRTIO_BLK_S_IOERR],
    ["past 2^53", ZEROES, segments([2 ** 62, 8, 0]), VIRTIO_BLK_S_IOERR],
    ["good, then over the end", ZEROES, segments([0, 8, 0], [SECTORS, 8, 0]), VIRTIO_BLK_S_IOERR],
  ];
  for (const [name, type, data, status] of wrong) assert.equal(ask(raw, type, data), status, name);
  assert.ok(
    backend.peek(0, MIB).every((byte) => byte === 9),
    "nothing was done",
  );
  assert.equal(ask(raw, VIRTIO_BLK_T_GET_LIFETIME, new Uint8Array(0)), VIRTIO_BLK_S_UNSUPP);
  assert.equal(ask(raw, DISCARD, segments([5, 0, 0])), VIRTIO_BLK_S_OK, "an empty range");
  assert.equal(ask(raw, ZEROES, segments([SECTORS - 8, 8, 1], [5, 0, 0])), VIRTIO_BLK_S_OK);
  assert.deepEqual([...backend.peek(MIB - 4097, 2)], [9, 0]);
  assert.equal(raw.needsReset, undefined);
});

test("blk: without the feature the request is unknown, on a read-only disk it fails", limit, () => {
  const backend = new MemoryBlockBackend({ capacity: MIB });
  const plain = new RawDevice(make({ backend }), FeatureSet.of(VIRTIO_F_VERSION_1));
  for (const type of [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_T_SECURE_ERASE])
    assert.equal(ask(plain, type, segments([0, 8, 0])), VIRTIO_BLK_S_UNSUPP);
});

test("blk: a discard that is still on its way holds back the next user of the disk", limit, () => {
  const backend = new ManualBlockBackend({ capacity: MIB });
  const device = make({ backend });
  const raw = new RawDevice(device, FEATURES, { fixed: false });
  ask(raw, VIRTIO_BLK_T_DISCARD, segments([0, 8, 0]));
  assert.equal(backend.waiting[0]?.op, BLOCK_DISCARD);
  device.stopQueue(0);
  const used = raw.used(0).length;
  backend.answerAll();
  assert.equal(raw.used(0).length, used);
  assert.equal(device.inFlight, 0);
});

test("blk: a device is closed once the back end has let go of guest memory that stays put", limit, async () => {
  for (const fixed of [true, false]) {
    const backend = new ManualBlockBackend({ capacity: MIB });
    const device = make({ backend });
    const raw = new RawDevice(device, FEATURES, { fixed });
    raw.memory.write(RAW_DATA, new Uint8Array(16));
    raw.offer(0, [{ address: RAW_DATA, length: 16 }], [{ address: RAW_DATA + 4096, length: 513 }]);
    raw.kick(0);
    let closed = false;
    const closing = device.close().then(() => {
      closed = true;
    });
    for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
    assert.equal(closed, !fixed);
    backend.answerAll();
    await closing;
    assert.equal(raw.used(0).length, 0);
  }
});
