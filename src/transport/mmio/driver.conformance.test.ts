import assert from "node:assert/strict";
import { test } from "node:test";
import { MemoryBlockBackend } from "../../backend/block/memory.ts";
import { FeatureSet } from "../../common/feature-set.ts";
import { BlkDevice } from "../../device/blk.ts";
import { BlkDriver } from "../../driver/blk.ts";
import { VirtioBus } from "../../driver/bus.ts";
import { DRIVER_RING_FEATURES } from "../../driver/features.ts";
import { VIRTIO_F_RING_PACKED } from "../../spec/features.ts";
import { LoopDevice } from "../../testing/loop-device.ts";
import { MmioDriverRig, MmioLog, type MmioRegisterAccess } from "../../testing/mmio-log.ts";
import { liveThrough } from "../../testing/pci-log.ts";
import { statements } from "../../testing/statements.ts";
import { MmioLink, openMmio, VirtioMmioDevice } from "./index.ts";

// Offsets are written out as in a guest's own headers, so that a wrong constant of ours cannot hide behind itself.
const limit = { timeout: 30_000 };
const LAYOUT = "Virtio Transport Options / Virtio Over MMIO / MMIO Device Register Layout";
const INITIALIZATION =
  "Virtio Transport Options / Virtio Over MMIO / MMIO-specific Initialization And Device Operation / Device Initialization";
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

const READ_ONLY = [0x00, 0x04, 0x08, 0x0c, 0x10, 0x34, 0x60, 0xb0, 0xb4, 0xb8, 0xbc, 0xfc];
const WRITE_ONLY = [0x14, 0x20, 0x24, 0x30, 0x38, 0x50, 0x64, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xac];
const BOTH = [0x44, 0x70, 0xc0];
const QUEUE_SEL = 0x30;
const QUEUE_SIZE_MAX = 0x34;
const QUEUE_SIZE = 0x38;
const QUEUE_READY = 0x44;
const STATUS = 0x70;
const QUEUE_RESET = 0xc0;
const CONFIG = 0x100;
/** QueueSize and the three addresses. */
const GEOMETRY = [QUEUE_SIZE, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4];

const RINGS = [undefined, DRIVER_RING_FEATURES.without(VIRTIO_F_RING_PACKED), FeatureSet.EMPTY] as const;

/** What a driver did to the registers in its whole life. */
async function lived(ring?: FeatureSet): Promise<readonly MmioRegisterAccess[]> {
  const rig = new MmioDriverRig(new LoopDevice({ queueSizes: [64, 12] }));
  await liveThrough(await rig.start(ring), rig.device);
  assert.equal(rig.log.length > 100, true);
  return rig.log;
}

const writes = (log: readonly MmioRegisterAccess[], at: number) =>
  log.filter(({ write, offset }) => write && offset === at).map(({ value }) => value);

test(
  statements(
    "registers of the table only, read and written as it allows, 32 bits wide",
    `driver: ${LAYOUT} #1`,
    `driver: ${LAYOUT} #2`,
    `driver: ${LAYOUT} #3`,
    `driver: ${LAYOUT} #4`,
  ),
  limit,
  async () => {
    for (const ring of RINGS) {
      for (const { write, offset, size } of await lived(ring)) {
        if (offset >= CONFIG) {
          assert.equal(offset + size <= CONFIG + 16, true, `${size} bytes at ${offset}`);
          continue;
        }
        const allowed = [...BOTH, ...(write ? WRITE_ONLY : READ_ONLY)];
        assert.equal(allowed.includes(offset), true, `${write ? "write to" : "read of"} ${offset}`);
        assert.equal(size, 4);
      }
    }
  },
);

/** struct virtio_blk_config: fields by their width; those of 64 bits as two halves. */
const BLK_WIDTHS: ReadonlyMap<number, number> = new Map([
  ...[0, 4, 8, 12, 20, 28, 36, 40, 44, 48, 52, 60, 64, 68].map((at) => [at, 4] as const),
  ...[16, 26, 34].map((at) => [at, 2] as const),
  ...[18, 19, 24, 25, 32, 56].map((at) => [at, 1] as const),
]);

test(
  statements("each field of the configuration is accessed in its own width", `driver: ${LAYOUT} #5`),
  limit,
  async () => {
    const { memory, dma, environment } = new MmioDriverRig();
    const device = new BlkDevice({ backend: new MemoryBlockBackend({ capacity: 1 << 20 }), environment });
    const access = new MmioLog(new MmioLink(new VirtioMmioDevice(device, { memory }), { environment }));
    const transport = openMmio(access, { memory, environment });
    if (transport === undefined) throw new Error("there is no device");
    const bus = new VirtioBus({ dma, environment });
    const driver = await bus.bind(BlkDriver.type, transport);
    void [driver.topology, driver.geometry, driver.writeback];
    driver.setWriteback(true);
    const seen = new Set<string>();
    for (const { write, offset, size } of access.log) {
      if (offset < CONFIG) continue;
      assert.equal(size, BLK_WIDTHS.get(offset - CONFIG), `offset ${offset - CONFIG}`);
      seen.add(`${write ? "write" : "read"} ${size}`);
    }
    assert.deepEqual([...seen].sort(), ["read 1", "read 2", "read 4", "write 1"]);
    await bus.close();
    await device.close();
  },
);

/** Opens a block whose first registers hold these values; the accesses made, and what came of it. */
function look(registers: readonly number[], legacy = true) {
  const log = new MmioLog({
    read: (offset) => registers[offset / 4] ?? 0,
    write: () => undefined,
    onIrq: () => () => undefined,
  });
  const { memory, environment, messages } = new MmioDriverRig();
  let code: string | undefined;
  let found: number | undefined;
  try {
    found = openMmio(log, { memory, environment, legacy })?.deviceId;
  } catch (error) {
    code = (error as { code?: string }).code;
  }
  return {
    accesses: log.log.map(({ write, offset }) => `${write ? "write" : "read"} ${offset}`),
    found,
    code,
    messages,
  };
}

test(statements("another MagicValue is left alone", `driver: ${LAYOUT} #6`), limit, () => {
  for (const magic of [0, 0x76697274, 0x74726977, 0xffffffff]) {
    const { accesses, found, code } = look([magic, 2, 2]);
    assert.deepEqual([accesses, found, code], [["read 0"], undefined, "ERR_VIRTKIT_MMIO"]);
  }
});

test(statements("a Version that is not 2 is left alone", `driver: ${LAYOUT} #7`), limit, () => {
  for (const version of [0, 3, 4, 0x100, 0xffffffff]) {
    const { accesses, found, code } = look([0x74726976, version, 2]);
    assert.deepEqual([accesses, found, code], [["read 0", "read 4"], undefined, "ERR_VIRTKIT_MMIO"]);
  }
  // 1 is a legacy device: a driver that is not to use the legacy interface leaves it alone too.
  const { accesses, found, code } = look([0x74726976, 1, 2], false);
  assert.deepEqual([accesses, found, code], [["read 0", "read 4"], undefined, "ERR_VIRTKIT_MMIO"]);
  assert.deepEqual([look([0x74726976, 1, 2]).found, look([0x74726976, 2, 2], false).found], [2, 2]);
});

test(
  statements(
    "MagicValue and Version come first, then DeviceID; where that is 0, nothing else, and no error",
    `driver: ${LAYOUT} #8`,
    `driver: ${LAYOUT} #9`,
    `driver: ${INITIALIZATION} #1`,
    `driver: ${INITIALIZATION} #2`,
    `driver: ${INITIALIZATION} #3`,
    `driver: ${INITIALIZATION} #4`,
  ),
  limit,
  async () => {
    const { accesses, found, code, messages } = look([0x74726976, 2, 0]);
    assert.deepEqual([accesses, found, code, messages], [["read 0", "read 4", "read 8"], undefined, undefined, []]);
    assert.equal(look([0x74726976, 2, 4]).found, 4);
    // A device that is there is looked at in the same order before anything is done to it.
    const log = await lived();
    assert.deepEqual(
      log.slice(0, 3).map(({ write, offset }) => [write, offset]),
      [
        [false, 0],
        [false, 4],
        [false, 8],
      ],
    );
  },
);

test(
  statements(
    "each word of features is selected before it is read or written",
    `driver: ${LAYOUT} #10`,
    `driver: ${LAYOUT} #11`,
  ),
  limit,
  async () => {
    const rig = new MmioDriverRig();
    const driver = await rig.start();
    const { features } = driver;
    await driver.restart();
    await driver.remove();
    const selected = new Map<number, number>();
    const words: number[][] = [[], []];
    for (const { write, offset, value } of rig.log) {
      // What a reset leaves in the selectors is nothing to rely on.
      if (write && offset === STATUS && value === 0) selected.clear();
      if (write && (offset === 0x14 || offset === 0x24)) selected.set(offset, value);
      if (offset !== 0x10 && offset !== 0x20) continue;
      const selector = offset + 4;
      const word = selected.get(selector);
      assert.notEqual(word, undefined, `${offset} without a selection`);
      selected.delete(selector);
      (words[offset === 0x10 ? 0 : 1] as number[])[word as number] = value;
    }
    assert.deepEqual(FeatureSet.fromWords(words[0] as number[]), rig.device.offeredFeatures);
    assert.deepEqual(FeatureSet.fromWords(words[1] as number[]), features);
  },
);

test(statements("QueueSize is at most QueueSizeMax", `driver: ${LAYOUT} #12`), limit, async () => {
  for (const ring of RINGS)
    for (const size of [1, 12, 64, 1000, 65536]) {
      const rig = new MmioDriverRig(new LoopDevice({ queueSizes: [64, 12] }));
      const driver = rig.driver(ring);
      driver.queueSize = size;
      await driver.start();
      await driver.remove();
      const most = new Map<number, number>();
      let selected = -1;
      let sizes = 0;
      for (const { write, offset, value } of rig.log) {
        if (write && offset === QUEUE_SEL) selected = value;
        if (!write && offset === QUEUE_SIZE_MAX) most.set(selected, value);
        if (!write || offset !== QUEUE_SIZE) continue;
        sizes++;
        assert.equal(value >= 1 && value <= (most.get(selected) as number), true, `${value} for queue ${selected}`);
      }
      assert.equal(sizes, 2);
    }
});

test(
  statements(
    "the geometry of a ready queue is left alone; out of use it goes by QueueReady 0, which is read back",
    `driver: ${LAYOUT} #13`,
    `driver: ${LAYOUT} #14`,
    `driver: ${LAYOUT} #15`,
  ),
  limit,
  async () => {
    for (const ring of RINGS) {
      const log = await lived(ring);
      const ready = new Set<number>();
      let selected = -1;
      let stops = 0;
      for (const [i, { write, offset, value }] of log.entries()) {
        if (write && offset === QUEUE_SEL) selected = value;
        if (GEOMETRY.includes(offset)) assert.equal(ready.has(selected), false, `${offset} of a ready queue`);
        // A queue reset takes it out of use as well.
        if (write && offset === QUEUE_RESET) ready.delete(selected);
        // A device reset finds no queue in use.
        if (write && offset === STATUS && value === 0) assert.deepEqual([...ready], []);
        if (!write || offset !== QUEUE_READY) continue;
        if (value === 1) ready.add(selected);
        else {
          ready.delete(selected);
          stops++;
          const next = log[i + 1];
          assert.deepEqual([value, next?.write, next?.offset], [0, false, QUEUE_READY]);
        }
      }
      // Two queues, at the restart and at the removal.
      assert.equal(stops, 4);
    }
  },
);

test(
  statements("a queue reset is over when QueueReset reads 0, and not before", `driver: ${LAYOUT} #19`),
  limit,
  async () => {
    const rig = new MmioDriverRig();
    const { device, log } = rig;
    const driver = await rig.start();
    const before = log.length;
    device.borrowing = true;
    let over = false;
    const reset = driver.resetHoldQueue(8).then(() => {
      over = true;
    });
    for (let i = 0; i < 10; i++) await turn();
    assert.equal(over, false);
    const waited = log.slice(before);
    assert.deepEqual(
      waited.filter(({ write, offset }) => write && offset !== QUEUE_SEL),
      [{ write: true, offset: QUEUE_RESET, size: 4, value: 1 }],
    );
    const polls = waited.filter(({ write, offset, value }) => !write && offset === QUEUE_RESET && value === 1);
    assert.equal(polls.length >= 9, true);
    device.release();
    await reset;
    const after = log.slice(before + waited.length);
    const zero = after.findIndex(({ write, offset, value }) => !write && offset === QUEUE_RESET && value === 0);
    const ready = after.findIndex(({ write, offset }) => write && offset === QUEUE_READY);
    assert.equal(zero >= 0 && ready > zero, true);
    await driver.remove();
  },
);

test(
  statements("a driver that expects no shared memory leaves its registers alone", `driver: ${INITIALIZATION} #5`),
  limit,
  async () => {
    const rig = new MmioDriverRig(new LoopDevice({ sharedMemory: [{ id: 0, memory: new Uint8Array(4096) }] }));
    await liveThrough(await rig.start(), rig.device);
    const touched = rig.log.filter(({ offset }) => offset >= 0xac && offset <= 0xbc);
    assert.deepEqual(touched, []);
  },
);

test(
  statements("initialization goes in the order that every transport has", `driver: ${INITIALIZATION} #6`),
  limit,
  async () => {
    const rig = new MmioDriverRig();
    const driver = await rig.start();
    const { log } = rig;
    assert.deepEqual(writes(log, STATUS), [0, 1, 3, 11, 15]);
    const at = (write: boolean, offset: number, value?: number) =>
      log.findIndex((a) => a.write === write && a.offset === offset && (value === undefined || a.value === value));
    const last = (write: boolean, offset: number) =>
      log.map((a) => a.write === write && a.offset === offset).lastIndexOf(true);
    const steps = [
      at(true, STATUS, 0),
      at(false, STATUS, 0),
      at(true, STATUS, 1),
      at(true, STATUS, 3),
      at(false, 0x10),
      last(false, 0x10),
      at(true, 0x20),
      last(true, 0x20),
      at(true, STATUS, 11),
      at(false, STATUS, 11),
      at(true, QUEUE_READY, 1),
      last(true, QUEUE_READY),
      at(true, STATUS, 15),
    ];
    assert.equal(steps.includes(-1), false);
    assert.deepEqual(
      steps,
      [...steps].sort((a, b) => a - b),
    );
    // No notification before DRIVER_OK.
    assert.equal(at(true, 0x50) === -1 || at(true, 0x50) > at(true, STATUS, 15), true);
    await driver.remove();
  },
);

test("VIRTIO_F_NOTIF_CONFIG_DATA has no register here, so it is not accepted", limit, async () => {
  const rig = new MmioDriverRig();
  let word = 0;
  rig.access.onWrite = ({ offset, value }) => {
    if (offset === 0x14) word = value;
  };
  rig.access.answer = ({ offset, value }) => (offset === 0x10 && word === 1 ? value | 0x80 : value);
  const driver = await rig.start();
  assert.deepEqual([driver.features.has(38), driver.features.has(39)], [true, false]);
  await driver.remove();
});
