import assert from "node:assert/strict";
import { test } from "node:test";
import { MemoryBlockBackend } from "../backend/block/memory.ts";
import { FeatureSet } from "../common/feature-set.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import {
  VIRTIO_BLK_CFG_MAX_ACTIVE_ZONES,
  VIRTIO_BLK_CFG_MAX_APPEND_SECTORS,
  VIRTIO_BLK_CFG_MAX_OPEN_ZONES,
  VIRTIO_BLK_CFG_SEG_MAX,
  VIRTIO_BLK_CFG_SIZE_MAX,
  VIRTIO_BLK_CFG_WRITE_GRANULARITY,
  VIRTIO_BLK_CFG_ZONE_SECTORS,
  VIRTIO_BLK_CFG_ZONED_MODEL,
  VIRTIO_BLK_F_ZONED,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_S_UNSUPP,
  VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE,
  VIRTIO_BLK_S_ZONE_INVALID_CMD,
  VIRTIO_BLK_S_ZONE_OPEN_RESOURCE,
  VIRTIO_BLK_S_ZONE_UNALIGNED_WP,
  VIRTIO_BLK_T_ZONE_APPEND,
  VIRTIO_BLK_T_ZONE_CLOSE,
  VIRTIO_BLK_T_ZONE_FINISH,
  VIRTIO_BLK_T_ZONE_OPEN,
  VIRTIO_BLK_T_ZONE_REPORT,
  VIRTIO_BLK_T_ZONE_RESET,
  VIRTIO_BLK_T_ZONE_RESET_ALL,
  VIRTIO_BLK_Z_HM,
  VIRTIO_BLK_ZS_EMPTY,
  VIRTIO_BLK_ZS_NOT_WP,
  VIRTIO_BLK_ZT_CONV,
  VIRTIO_BLK_ZT_SWR,
} from "../spec/blk.ts";
import { VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { VIRTIO_CONFIG_S_FEATURES_OK } from "../spec/status.ts";
import { RawBlk } from "../testing/raw-blk.ts";
import { testEnvironment } from "../testing/rig.ts";
import { statements } from "../testing/statements.ts";
import {
  ZONE_BLOCK as BLOCK,
  ZONE_CAPACITY as CAPACITY,
  ZONED_FEATURES as FEATURES,
  sectors,
  ZONE,
  ZonedBlk,
  zonedDevice,
} from "../testing/zoned-blk.ts";
import { LoopbackTransport } from "../transport/loopback/index.ts";
import { BlkDevice } from "./blk.ts";

const INIT = "device: Device Types / Block Device / Device Initialization";
const OPERATION = "device: Device Types / Block Device / Device Operation";
const INVALID = VIRTIO_BLK_S_ZONE_INVALID_CMD;
const limit = { timeout: 20_000 };

test(
  statements(
    "zoned blk: the configuration describes the zones as they are",
    `${INIT} #6`,
    `${INIT} #7`,
    `${INIT} #12`,
    `${INIT} #13`,
  ),
  limit,
  () => {
    const blk = new ZonedBlk();
    assert.equal(blk.device.config.size, 96);
    assert.equal(blk.device.config.read(VIRTIO_BLK_CFG_ZONED_MODEL, 1), VIRTIO_BLK_Z_HM);
    assert.equal(blk.config(VIRTIO_BLK_CFG_ZONE_SECTORS), ZONE);
    const padding = new Uint8Array(3).fill(0xff);
    blk.device.config.readBytes(93, padding);
    assert.deepEqual([...padding], [0, 0, 0]);
    const zones = blk.report();
    assert.deepEqual(
      zones.map(({ start }) => start),
      [0, 1, 2, 3, 4, 5, 6, 7, 8].map((zone) => zone * ZONE),
    );
    assert.deepEqual(
      zones.map(({ capacity }) => capacity),
      [ZONE, ...new Array(7).fill(CAPACITY), 64],
    );
    assert.deepEqual(
      zones.map(({ type, state }) => [type, state]),
      [[VIRTIO_BLK_ZT_CONV, VIRTIO_BLK_ZS_NOT_WP], ...new Array(8).fill([VIRTIO_BLK_ZT_SWR, VIRTIO_BLK_ZS_EMPTY])],
    );
    assert.equal(blk.config(VIRTIO_BLK_CFG_WRITE_GRANULARITY), BLOCK * 512);
    assert.equal(blk.write(ZONE, BLOCK - 1), VIRTIO_BLK_S_ZONE_UNALIGNED_WP);
    assert.equal(blk.write(ZONE, BLOCK), VIRTIO_BLK_S_OK);
    assert.equal(blk.write(ZONE + BLOCK, 1), VIRTIO_BLK_S_ZONE_UNALIGNED_WP);
    assert.equal(blk.append(ZONE, BLOCK + 1).status, VIRTIO_BLK_S_ZONE_UNALIGNED_WP);
    assert.equal(blk.wp(1), BLOCK);
  },
);

test(
  statements("zoned blk: max_open_zones and max_active_zones are the limits", `${INIT} #8`, `${INIT} #9`),
  limit,
  () => {
    const blk = new ZonedBlk({ maxOpen: 2, maxActive: 3 });
    assert.deepEqual([blk.config(VIRTIO_BLK_CFG_MAX_OPEN_ZONES), blk.config(VIRTIO_BLK_CFG_MAX_ACTIVE_ZONES)], [2, 3]);
    const open = (zone: number) => blk.manage(VIRTIO_BLK_T_ZONE_OPEN, zone);
    assert.deepEqual([open(1), open(2), open(3)], [VIRTIO_BLK_S_OK, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_ZONE_OPEN_RESOURCE]);
    for (const zone of [1, 2]) {
      assert.equal(blk.write(zone * ZONE, BLOCK), VIRTIO_BLK_S_OK);
      assert.equal(blk.manage(VIRTIO_BLK_T_ZONE_CLOSE, zone), VIRTIO_BLK_S_OK);
    }
    assert.deepEqual([open(3), open(4)], [VIRTIO_BLK_S_OK, VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE]);
    const unlimited = new ZonedBlk();
    assert.deepEqual([unlimited.config(76), unlimited.config(80)], [0, 0]);
    for (let zone = 1; zone < 9; zone++) assert.equal(unlimited.manage(VIRTIO_BLK_T_ZONE_OPEN, zone), VIRTIO_BLK_S_OK);
  },
);

test(
  statements("zoned blk: max_append_sectors is the most that can be appended", `${INIT} #10`, `${INIT} #11`),
  limit,
  () => {
    for (const [options, most] of [
      [{}, CAPACITY],
      [{ segMax: 2, sizeMax: 8192 }, 32],
      [{ segMax: 3, sizeMax: 4096 + 512 }, 24],
    ] as const) {
      const blk = new ZonedBlk({}, options);
      const told = blk.config(VIRTIO_BLK_CFG_MAX_APPEND_SECTORS);
      assert.equal(told, most);
      assert.ok(told * 512 <= blk.config(VIRTIO_BLK_CFG_SEG_MAX) * blk.config(VIRTIO_BLK_CFG_SIZE_MAX));
      assert.equal(blk.append(ZONE, told + BLOCK).status, INVALID);
      assert.equal(blk.append(ZONE, told).status, VIRTIO_BLK_S_OK);
    }
    assert.throws(() => zonedDevice({ maxAppendSize: 40960 }, { segMax: 2, sizeMax: 8192 }), /zoned.max_append_size/);
  },
);

test(statements("zoned blk: FEATURES_OK stays clear for a driver without ZONED", `${INIT} #5`), limit, () => {
  for (const [features, accepted] of [
    [FEATURES.without(VIRTIO_BLK_F_ZONED), 0],
    [FEATURES, VIRTIO_CONFIG_S_FEATURES_OK],
  ] as const) {
    const memory = GuestMemory.allocate(65536);
    const transport = new LoopbackTransport(zonedDevice(), { memory, environment: testEnvironment });
    transport.setStatus(3);
    transport.setDriverFeatures(features);
    transport.setStatus(3 | VIRTIO_CONFIG_S_FEATURES_OK);
    assert.equal(transport.getStatus() & VIRTIO_CONFIG_S_FEATURES_OK, accepted);
  }
});

test(statements("zoned blk: the legacy interface does not show ZONED", `${INIT} #4`), limit, () => {
  const device = zonedDevice();
  assert.equal(device.offeredFeatures.has(VIRTIO_BLK_F_ZONED), true);
  assert.equal(device.legacyFeatures.has(VIRTIO_BLK_F_ZONED), false);
  assert.equal(device.setFeatures(FeatureSet.of(VIRTIO_BLK_F_ZONED)), false, "not without VERSION_1");
});

const ZONE_TYPES = [
  VIRTIO_BLK_T_ZONE_REPORT,
  VIRTIO_BLK_T_ZONE_OPEN,
  VIRTIO_BLK_T_ZONE_CLOSE,
  VIRTIO_BLK_T_ZONE_FINISH,
  VIRTIO_BLK_T_ZONE_APPEND,
  VIRTIO_BLK_T_ZONE_RESET,
  VIRTIO_BLK_T_ZONE_RESET_ALL,
];

test(statements("blk: without ZONED every request about zones is unsupported", `${OPERATION} #9`), limit, () => {
  const backend = new MemoryBlockBackend({ capacity: 65536 });
  const plain = new RawBlk(new BlkDevice({ backend, environment: testEnvironment }), FeatureSet.of(VIRTIO_F_VERSION_1));
  for (const type of ZONE_TYPES) {
    assert.equal(plain.ask(type, { room: 128 }).status, VIRTIO_BLK_S_UNSUPP);
    assert.equal(plain.ask(type, { out: sectors(1), room: 8 }).status, VIRTIO_BLK_S_UNSUPP);
  }
  // A legacy driver cannot be turned away.
  const legacy = new ZonedBlk({}, {}, FeatureSet.EMPTY);
  for (const type of ZONE_TYPES)
    assert.equal(legacy.ask(type, { sector: ZONE, room: 128 }).status, VIRTIO_BLK_S_UNSUPP);
});
