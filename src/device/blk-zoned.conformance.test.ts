import assert from "node:assert/strict";
import { test } from "node:test";
import {
  VIRTIO_BLK_CFG_MAX_APPEND_SECTORS,
  VIRTIO_BLK_CFG_SECURE_ERASE_SECTOR_ALIGNMENT,
  VIRTIO_BLK_S_IOERR,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_S_UNSUPP,
  VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE,
  VIRTIO_BLK_S_ZONE_INVALID_CMD,
  VIRTIO_BLK_S_ZONE_OPEN_RESOURCE,
  VIRTIO_BLK_S_ZONE_UNALIGNED_WP,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_SECURE_ERASE,
  VIRTIO_BLK_T_ZONE_APPEND,
  VIRTIO_BLK_T_ZONE_CLOSE,
  VIRTIO_BLK_T_ZONE_FINISH,
  VIRTIO_BLK_T_ZONE_OPEN,
  VIRTIO_BLK_T_ZONE_RESET,
  VIRTIO_BLK_T_ZONE_RESET_ALL,
  VIRTIO_BLK_ZS_CLOSED,
  VIRTIO_BLK_ZS_EMPTY,
  VIRTIO_BLK_ZS_EOPEN,
  VIRTIO_BLK_ZS_FULL,
  VIRTIO_BLK_ZS_IOPEN,
  VIRTIO_BLK_ZS_NOT_WP,
  VIRTIO_BLK_ZS_OFFLINE,
  VIRTIO_BLK_ZS_RDONLY,
} from "../spec/blk.ts";
import { statements } from "../testing/statements.ts";
import {
  ZONE_BLOCK as BLOCK,
  ZONE_CAPACITY as CAPACITY,
  sectors,
  uniform,
  ZONE,
  ZONE_BYTES,
  ZonedBlk,
} from "../testing/zoned-blk.ts";

const OPERATION = "device: Device Types / Block Device / Device Operation";
const INVALID = VIRTIO_BLK_S_ZONE_INVALID_CMD;
const limit = { timeout: 20_000 };

test(
  statements("zoned blk: a conventional zone is not opened, closed, finished or reset", `${OPERATION} #10`),
  limit,
  () => {
    const blk = new ZonedBlk();
    for (const type of [
      VIRTIO_BLK_T_ZONE_OPEN,
      VIRTIO_BLK_T_ZONE_CLOSE,
      VIRTIO_BLK_T_ZONE_FINISH,
      VIRTIO_BLK_T_ZONE_RESET,
    ])
      assert.equal(blk.manage(type, 0), INVALID);
    // It is written in any order, and reads as what the image holds.
    assert.deepEqual([blk.write(40, 3), blk.write(8, 1), blk.write(9, 2)], [0, 0, 0]);
    assert.equal(blk.read(0, 1).data[0], 0x77);
    assert.equal(blk.read(40, 1).data[0], 0x11);
    assert.equal(blk.state(0), VIRTIO_BLK_ZS_NOT_WP);
  },
);

test(statements("zoned blk: ZONE_APPEND to what is not a sequential zone", `${OPERATION} #11`), limit, () => {
  const blk = new ZonedBlk();
  assert.equal(blk.append(0, BLOCK).status, INVALID);
  assert.equal(blk.append(9 * ZONE, BLOCK).status, INVALID, "past the end");
  assert.equal(blk.read(0, 1).data[0], 0x77);
});

test(statements("zoned blk: ZONE_OPEN", `${OPERATION} #12`, `${OPERATION} #13`), limit, () => {
  const blk = new ZonedBlk({ maxOpen: 2, maxActive: 2 });
  const open = (zone: number) => blk.manage(VIRTIO_BLK_T_ZONE_OPEN, zone);
  assert.equal(blk.ask(VIRTIO_BLK_T_ZONE_OPEN, { sector: ZONE + 1 }).status, INVALID, "not a zone's first sector");
  assert.equal(blk.ask(VIRTIO_BLK_T_ZONE_OPEN, { sector: 2n ** 63n }).status, INVALID);
  assert.equal(open(9), INVALID);
  assert.deepEqual([open(1), blk.state(1)], [VIRTIO_BLK_S_OK, VIRTIO_BLK_ZS_EOPEN]);
  assert.equal(open(1), VIRTIO_BLK_S_OK, "again");
  assert.equal(open(2), VIRTIO_BLK_S_OK);
  // Both limits at once: the active one is told.
  assert.deepEqual([open(3), blk.state(3)], [VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE, VIRTIO_BLK_ZS_EMPTY]);
  assert.equal(blk.manage(VIRTIO_BLK_T_ZONE_FINISH, 1), VIRTIO_BLK_S_OK);
  assert.deepEqual([open(1), blk.state(1)], [INVALID, VIRTIO_BLK_ZS_FULL]);
  assert.equal(blk.write(3 * ZONE, BLOCK), VIRTIO_BLK_S_OK);
  assert.deepEqual([open(3), blk.state(3)], [VIRTIO_BLK_S_OK, VIRTIO_BLK_ZS_EOPEN], "implicitly open before");
  const tight = new ZonedBlk({ maxOpen: 1, maxActive: 3 });
  assert.equal(tight.write(ZONE, BLOCK), VIRTIO_BLK_S_OK);
  assert.equal(tight.manage(VIRTIO_BLK_T_ZONE_OPEN, 2), VIRTIO_BLK_S_OK);
  assert.deepEqual([tight.state(1), tight.state(2)], [VIRTIO_BLK_ZS_CLOSED, VIRTIO_BLK_ZS_EOPEN], "made room");
  assert.equal(tight.manage(VIRTIO_BLK_T_ZONE_OPEN, 1), VIRTIO_BLK_S_ZONE_OPEN_RESOURCE);
  assert.equal(tight.state(1), VIRTIO_BLK_ZS_CLOSED);
});

test(statements("zoned blk: ZONE_CLOSE", `${OPERATION} #14`), limit, () => {
  const blk = new ZonedBlk();
  const close = (zone: number) => blk.manage(VIRTIO_BLK_T_ZONE_CLOSE, zone);
  assert.deepEqual([close(1), blk.state(1)], [INVALID, VIRTIO_BLK_ZS_EMPTY], "empty");
  blk.manage(VIRTIO_BLK_T_ZONE_OPEN, 1);
  assert.deepEqual([close(1), blk.state(1)], [VIRTIO_BLK_S_OK, VIRTIO_BLK_ZS_EMPTY], "opened, nothing written");
  blk.write(ZONE, BLOCK);
  assert.equal(blk.state(1), VIRTIO_BLK_ZS_IOPEN);
  assert.deepEqual([close(1), blk.state(1), blk.wp(1)], [VIRTIO_BLK_S_OK, VIRTIO_BLK_ZS_CLOSED, BLOCK]);
  assert.deepEqual([close(1), blk.state(1)], [VIRTIO_BLK_S_OK, VIRTIO_BLK_ZS_CLOSED], "again");
  assert.equal(blk.write(2 * ZONE, CAPACITY), VIRTIO_BLK_S_OK);
  assert.deepEqual([close(2), blk.state(2)], [INVALID, VIRTIO_BLK_ZS_FULL]);
});

test(statements("zoned blk: ZONE_FINISH", `${OPERATION} #15`), limit, () => {
  const blk = new ZonedBlk();
  const finish = (zone: number) => blk.manage(VIRTIO_BLK_T_ZONE_FINISH, zone);
  assert.deepEqual([finish(1), blk.state(1)], [INVALID, VIRTIO_BLK_ZS_EMPTY]);
  blk.write(ZONE, BLOCK);
  blk.manage(VIRTIO_BLK_T_ZONE_CLOSE, 1);
  assert.deepEqual([finish(1), blk.state(1)], [INVALID, VIRTIO_BLK_ZS_CLOSED]);
  blk.manage(VIRTIO_BLK_T_ZONE_OPEN, 1);
  assert.deepEqual([finish(1), blk.state(1)], [VIRTIO_BLK_S_OK, VIRTIO_BLK_ZS_FULL]);
  assert.deepEqual([finish(1), blk.state(1)], [VIRTIO_BLK_S_OK, VIRTIO_BLK_ZS_FULL], "again");
  assert.equal(blk.write(ZONE + BLOCK, BLOCK), INVALID);
  blk.device.failZone(2, "read-only");
  assert.deepEqual([finish(2), blk.state(2)], [INVALID, VIRTIO_BLK_ZS_RDONLY]);
});

test(statements("zoned blk: ZONE_RESET and ZONE_RESET_ALL", `${OPERATION} #16`), limit, () => {
  const blk = new ZonedBlk({ maxActive: 4 });
  const reset = (zone: number) => blk.manage(VIRTIO_BLK_T_ZONE_RESET, zone);
  assert.deepEqual([reset(1), blk.state(1)], [VIRTIO_BLK_S_OK, VIRTIO_BLK_ZS_EMPTY], "empty before");
  for (let zone = 1; zone <= 4; zone++) blk.write(zone * ZONE, zone === 2 ? CAPACITY : BLOCK);
  blk.manage(VIRTIO_BLK_T_ZONE_CLOSE, 3);
  blk.manage(VIRTIO_BLK_T_ZONE_OPEN, 4);
  blk.device.failZone(7, "read-only");
  blk.device.failZone(8, "offline");
  assert.deepEqual([reset(7), blk.state(7)], [INVALID, VIRTIO_BLK_ZS_RDONLY]);
  assert.deepEqual([reset(8), blk.state(8)], [INVALID, VIRTIO_BLK_ZS_OFFLINE]);
  assert.equal(blk.ask(VIRTIO_BLK_T_ZONE_RESET, { sector: ZONE + BLOCK }).status, INVALID);
  assert.deepEqual([reset(1), blk.state(1), blk.wp(1)], [VIRTIO_BLK_S_OK, VIRTIO_BLK_ZS_EMPTY, 0]);
  assert.equal(uniform(blk.read(ZONE, BLOCK).data), 0);
  blk.write(ZONE, BLOCK);
  assert.equal(blk.manage(VIRTIO_BLK_T_ZONE_RESET_ALL, 0), VIRTIO_BLK_S_OK);
  const states = blk.report().map(({ state }) => state);
  const gone = [VIRTIO_BLK_ZS_RDONLY, VIRTIO_BLK_ZS_OFFLINE];
  assert.deepEqual(states, [VIRTIO_BLK_ZS_NOT_WP, ...new Array(6).fill(VIRTIO_BLK_ZS_EMPTY), ...gone]);
  for (let zone = 1; zone <= 4; zone++)
    assert.equal(blk.write(zone * ZONE, BLOCK), VIRTIO_BLK_S_OK, "resources are back");
});

test(statements("zoned blk: a write that would open a zone too many", `${OPERATION} #17`), limit, () => {
  const write = (blk: ZonedBlk, zone: number) => [
    blk.write(zone * ZONE, BLOCK),
    blk.append(zone * ZONE, BLOCK).status,
    blk.state(zone),
  ];
  const open = new ZonedBlk({ maxOpen: 1 });
  open.manage(VIRTIO_BLK_T_ZONE_OPEN, 1);
  const full = VIRTIO_BLK_S_ZONE_OPEN_RESOURCE;
  assert.deepEqual(write(open, 2), [full, full, VIRTIO_BLK_ZS_EMPTY]);
  open.write(ZONE, BLOCK);
  open.manage(VIRTIO_BLK_T_ZONE_CLOSE, 1);
  open.manage(VIRTIO_BLK_T_ZONE_OPEN, 2);
  assert.equal(open.write(ZONE + BLOCK, BLOCK), full, "a closed zone needs one too");
  const active = new ZonedBlk({ maxActive: 1 });
  active.write(ZONE, BLOCK);
  active.manage(VIRTIO_BLK_T_ZONE_CLOSE, 1);
  const most = VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE;
  assert.deepEqual(write(active, 2), [most, most, VIRTIO_BLK_ZS_EMPTY]);
  assert.equal(active.write(ZONE + BLOCK, BLOCK), VIRTIO_BLK_S_OK);
  assert.equal(uniform(active.read(2 * ZONE, BLOCK).data), 0);
});

test(statements("zoned blk: ZONE_APPEND", `${OPERATION} #18`, `${OPERATION} #20`, `${OPERATION} #22`), limit, () => {
  const blk = new ZonedBlk({ maxAppendSize: 32 * 512 });
  assert.equal(blk.append(ZONE + BLOCK, BLOCK).status, INVALID);
  blk.write(ZONE, BLOCK);
  assert.equal(blk.append(ZONE + BLOCK, BLOCK).status, INVALID, "the write pointer is not the zone's sector");
  assert.deepEqual(blk.append(ZONE, BLOCK), { status: 0, sector: ZONE + BLOCK, written: 9 });
  assert.deepEqual(blk.append(ZONE, 32), { status: 0, sector: ZONE + 2 * BLOCK, written: 9 });
  assert.equal(blk.append(ZONE, 40).status, INVALID, "more than max_append_sectors");
  assert.equal(blk.wp(1), 48);
  assert.equal(uniform(blk.read(ZONE, 48).data), 0x11);
  assert.equal(blk.ask(VIRTIO_BLK_T_ZONE_APPEND, { sector: ZONE, out: sectors(BLOCK) }).status, INVALID, "no room");
});

test(statements("zoned blk: a disk without ZONE_APPEND", `${OPERATION} #21`), limit, () => {
  const blk = new ZonedBlk({ maxAppendSize: 0 });
  assert.equal(blk.config(VIRTIO_BLK_CFG_MAX_APPEND_SECTORS), 0);
  assert.equal(blk.append(ZONE, BLOCK).status, VIRTIO_BLK_S_UNSUPP);
  assert.equal(blk.state(1), VIRTIO_BLK_ZS_EMPTY);
});

test(statements("zoned blk: more than is left of a zone", `${OPERATION} #19`), limit, () => {
  const blk = new ZonedBlk();
  assert.equal(blk.write(ZONE, CAPACITY + BLOCK), INVALID);
  assert.equal(blk.write(ZONE, CAPACITY - BLOCK), VIRTIO_BLK_S_OK);
  assert.equal(blk.write(ZONE + CAPACITY - BLOCK, 2 * BLOCK), INVALID);
  assert.equal(blk.append(ZONE, 2 * BLOCK).status, INVALID);
  assert.equal(blk.state(1), VIRTIO_BLK_ZS_IOPEN);
  assert.equal(blk.append(ZONE, BLOCK).status, VIRTIO_BLK_S_OK);
  assert.equal(blk.state(1), VIRTIO_BLK_ZS_FULL);
  assert.equal(blk.append(ZONE, BLOCK).status, INVALID);
  assert.equal(blk.write(ZONE + CAPACITY, BLOCK), INVALID);
});

test(statements("zoned blk: a range over two zones", `${OPERATION} #23`), limit, () => {
  const blk = new ZonedBlk({ zoneCapacity: ZONE_BYTES });
  assert.equal(blk.write(ZONE, ZONE - BLOCK), VIRTIO_BLK_S_OK);
  assert.equal(blk.write(2 * ZONE - BLOCK, 2 * BLOCK), INVALID);
  assert.equal(blk.append(ZONE, 2 * BLOCK).status, INVALID);
  assert.equal(blk.read(2 * ZONE - BLOCK, 2 * BLOCK).status, INVALID);
  assert.equal(blk.read(ZONE - 1, 2).status, INVALID, "from the conventional zone on");
  assert.equal(blk.write(ZONE - 1, 2), INVALID);
  assert.equal(blk.read(2 * ZONE - BLOCK, BLOCK).status, VIRTIO_BLK_S_OK);
  assert.deepEqual([blk.wp(1), blk.wp(2)], [ZONE - BLOCK, 0]);
});

test(statements("zoned blk: a write elsewhere than at the write pointer", `${OPERATION} #24`), limit, () => {
  const blk = new ZonedBlk();
  assert.equal(blk.write(ZONE + BLOCK, BLOCK), VIRTIO_BLK_S_ZONE_UNALIGNED_WP);
  assert.equal(blk.state(1), VIRTIO_BLK_ZS_EMPTY);
  assert.equal(blk.write(ZONE, BLOCK), VIRTIO_BLK_S_OK);
  assert.equal(blk.write(ZONE, BLOCK, 0x22), VIRTIO_BLK_S_ZONE_UNALIGNED_WP);
  assert.equal(blk.write(ZONE + 2 * BLOCK, BLOCK), VIRTIO_BLK_S_ZONE_UNALIGNED_WP);
  assert.equal(blk.read(ZONE, 1).data[0], 0x11);
  assert.equal(blk.write(ZONE + BLOCK, BLOCK), VIRTIO_BLK_S_OK);
});

test(statements("zoned blk: zones that failed", `${OPERATION} #25`, `${OPERATION} #26`), limit, () => {
  const blk = new ZonedBlk();
  for (const zone of [1, 2]) blk.write(zone * ZONE, BLOCK);
  blk.device.failZone(1, "read-only");
  blk.device.failZone(2, "offline");
  for (const zone of [1, 2]) {
    assert.equal(blk.write(zone * ZONE + BLOCK, BLOCK), INVALID);
    assert.equal(blk.write(zone * ZONE + BLOCK, 0), INVALID, "not even nothing");
    assert.equal(blk.append(zone * ZONE, BLOCK).status, INVALID);
    for (const type of [20, 22, 24, 18]) assert.equal(blk.manage(type, zone), INVALID);
  }
  assert.equal(blk.read(ZONE, BLOCK).data[0], 0x11);
  assert.equal(blk.read(2 * ZONE, BLOCK).status, INVALID);
  assert.deepEqual([blk.state(1), blk.state(2)], [VIRTIO_BLK_ZS_RDONLY, VIRTIO_BLK_ZS_OFFLINE]);
  assert.throws(() => blk.device.failZone(9, "offline"), { code: "ERR_VIRTKIT_BLK_ZONE" });
});

test(
  statements(
    "zoned blk: what was never written reads as zeros, whatever the image holds",
    `${OPERATION} #27`,
    `${OPERATION} #28`,
  ),
  limit,
  () => {
    const blk = new ZonedBlk();
    assert.equal(uniform(blk.read(ZONE, CAPACITY).data), 0);
    blk.write(ZONE, BLOCK);
    const { status, data } = blk.read(ZONE + 4, CAPACITY);
    assert.equal(status, VIRTIO_BLK_S_OK);
    assert.equal(uniform(data.subarray(0, 4 * 512)), 0x11);
    assert.equal(uniform(data.subarray(4 * 512)), 0);
    assert.equal(blk.ask(VIRTIO_BLK_T_IN, { sector: ZONE, room: 16 * 512 }).written, 16 * 512 + 1);
    blk.manage(VIRTIO_BLK_T_ZONE_FINISH, 1);
    const finished = blk.read(ZONE, ZONE).data;
    assert.equal(uniform(finished.subarray(0, BLOCK * 512)), 0x11);
    assert.equal(uniform(finished.subarray(BLOCK * 512)), 0);
    blk.manage(VIRTIO_BLK_T_ZONE_RESET, 1);
    assert.equal(uniform(blk.read(ZONE, ZONE).data), 0);
  },
);

const range = (sector: number, count: number): Uint8Array => {
  const view = new DataView(new ArrayBuffer(16));
  view.setBigUint64(0, BigInt(sector), true);
  view.setUint32(8, count, true);
  return new Uint8Array(view.buffer);
};

test(
  statements("zoned blk: SECURE_ERASE resets whole zones", `${OPERATION} #29`, `${OPERATION} #30`, `${OPERATION} #31`),
  limit,
  () => {
    const blk = new ZonedBlk({}, { maxSegments: 2 });
    const erase = (...ranges: Uint8Array[]) =>
      blk.ask(VIRTIO_BLK_T_SECURE_ERASE, { out: Buffer.concat(ranges) }).status;
    assert.equal(blk.config(VIRTIO_BLK_CFG_SECURE_ERASE_SECTOR_ALIGNMENT) % ZONE, 0);
    for (let zone = 1; zone < 5; zone++) blk.write(zone * ZONE, zone === 2 ? CAPACITY : BLOCK);
    assert.equal(erase(range(ZONE, BLOCK)), INVALID, "not a whole zone");
    assert.equal(erase(range(ZONE + BLOCK, ZONE)), INVALID, "not from a zone's start");
    assert.equal(erase(range(0, ZONE)), INVALID, "conventional");
    blk.device.failZone(4, "read-only");
    assert.equal(erase(range(ZONE, ZONE), range(4 * ZONE, ZONE)), INVALID);
    assert.equal(blk.state(1), VIRTIO_BLK_ZS_IOPEN, "all or nothing");
    assert.equal(erase(range(ZONE, 2 * ZONE)), VIRTIO_BLK_S_OK);
    assert.deepEqual([blk.state(1), blk.state(2), blk.state(3)], [1, 1, VIRTIO_BLK_ZS_IOPEN]);
    assert.deepEqual([blk.wp(1), blk.wp(2)], [0, 0]);
    assert.equal(uniform(blk.read(ZONE, BLOCK).data), 0);
    assert.equal(blk.write(ZONE, BLOCK), VIRTIO_BLK_S_OK);
  },
);

test("zoned blk: a read-only disk changes no zone", limit, () => {
  const blk = new ZonedBlk({}, { readOnly: true });
  for (const type of [18, 20, 22, 24, 26]) assert.equal(blk.manage(type, 1), VIRTIO_BLK_S_IOERR);
  assert.equal(blk.append(ZONE, BLOCK).status, VIRTIO_BLK_S_IOERR);
  assert.equal(blk.state(1), VIRTIO_BLK_ZS_EMPTY);
});
