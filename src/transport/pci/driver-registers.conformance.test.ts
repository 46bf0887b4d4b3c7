import assert from "node:assert/strict";
import { test } from "node:test";
import { MemoryBlockBackend } from "../../backend/block/memory.ts";
import { FeatureSet } from "../../common/feature-set.ts";
import { BlkDevice } from "../../device/blk.ts";
import { BlkDriver } from "../../driver/blk.ts";
import { VirtioBus } from "../../driver/bus.ts";
import { DmaAllocator } from "../../driver/dma.ts";
import { DRIVER_RING_FEATURES } from "../../driver/features.ts";
import { VIRTIO_F_RING_PACKED } from "../../spec/features.ts";
import { LoopDevice, nodeEnvironment } from "../../testing/loop-device.ts";
import { liveThrough, PciDriverRig, type PciDriverRigOptions, type PciRegisterAccess } from "../../testing/pci-log.ts";
import { statements } from "../../testing/statements.ts";
import { VirtioPciDevice } from "./index.ts";

// Numbers are written out as in the specification, so that a wrong constant of ours cannot hide behind itself.
const limit = { timeout: 30_000 };
const LAYOUT = "Virtio Transport Options / Virtio Over PCI Bus / PCI Device Layout";
const COMMON = `${LAYOUT} / Common configuration structure layout`;
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

/** Offset and width of every field of struct virtio_pci_common_cfg; those of 64 bits as two halves. */
const WIDTHS: ReadonlyMap<number, number> = new Map([
  ...[0x00, 0x04, 0x08, 0x0c, 0x20, 0x24, 0x28, 0x2c, 0x30, 0x34].map((at) => [at, 4] as const),
  ...[0x10, 0x12, 0x16, 0x18, 0x1a, 0x1c, 0x1e, 0x38, 0x3a, 0x3c, 0x3e].map((at) => [at, 2] as const),
  ...[0x14, 0x15].map((at) => [at, 1] as const),
]);
const STATUS = 0x14;
const SELECT = 0x16;
const SIZE = 0x18;
const ENABLE = 0x1c;
const RESET = 0x3a;

// The structures are in BAR 4, a page each: common, ISR, device configuration, notification.
const common = (log: readonly PciRegisterAccess[]) => log.filter(({ place, offset }) => place === 4 && offset < 0x1000);
const ofDevice = (log: readonly PciRegisterAccess[]) =>
  log.filter(({ place, offset }) => place === 4 && offset >= 0x2000 && offset < 0x3000);
const writesOf = (log: readonly PciRegisterAccess[], at: number) =>
  common(log).filter(({ write, offset }) => write && offset === at);

/** Split and packed, with every way for interrupts to come. */
const LIVES: readonly PciDriverRigOptions[] = [
  {},
  { ring: DRIVER_RING_FEATURES.without(VIRTIO_F_RING_PACKED) },
  { ring: FeatureSet.EMPTY, pci: { vectors: 1 } },
  { ring: FeatureSet.of(VIRTIO_F_RING_PACKED), pci: { vectors: 0 } },
];

/** What a driver did to the registers in its whole life. */
async function lived(options: PciDriverRigOptions): Promise<readonly PciRegisterAccess[]> {
  const rig = new PciDriverRig({ ...options, device: new LoopDevice({ queueSizes: [64, 12] }) });
  await liveThrough(await rig.start(), rig.device);
  assert.equal(common(rig.log).length > 100, true);
  return rig.log;
}

test(statements("each field is accessed in its own width, on its border", `driver: ${LAYOUT} #1`), limit, async () => {
  for (const options of LIVES) {
    const log = await lived(options);
    for (const { offset, size } of common(log)) assert.equal(size, WIDTHS.get(offset), `offset ${offset}`);
    // The loop device has a le64 at 0 and a le32 at 8.
    assert.equal(ofDevice(log).length >= 3, true);
    for (const { offset, size } of ofDevice(log))
      assert.equal([0x2000, 0x2004, 0x2008].includes(offset) && size === 4, true);
  }
});

/** struct virtio_blk_config: fields by their width. */
const BLK_WIDTHS: ReadonlyMap<number, number> = new Map([
  ...[0, 4, 8, 12, 20, 28, 36, 40, 44, 48, 52, 60, 64, 68].map((at) => [at, 4] as const),
  ...[16, 26, 34].map((at) => [at, 2] as const),
  ...[18, 19, 24, 25, 32, 56].map((at) => [at, 1] as const),
]);

test(
  statements("a configuration with fields of every width is accessed in theirs", `driver: ${LAYOUT} #1`),
  limit,
  async () => {
    const environment = nodeEnvironment();
    const backend = new MemoryBlockBackend({ capacity: 1 << 20 });
    const rig = new PciDriverRig();
    rig.bridge.bus.unplug(0);
    const device = new BlkDevice({ backend, environment });
    rig.bridge.bus.plug(new VirtioPciDevice(device, { memory: rig.memory }), 0);
    const bus = new VirtioBus({ dma: new DmaAllocator(rig.memory, 4096, 0x3ff000), environment });
    const driver = await bus.bind(BlkDriver.type, rig.scan());
    const seen = new Set<number>();
    void [driver.blockSize, driver.topology, driver.geometry, driver.writeback];
    driver.setWriteback(true);
    for (const { offset, size } of ofDevice(rig.log)) {
      assert.equal(size, BLK_WIDTHS.get(offset - 0x2000), `offset ${offset}`);
      seen.add(size);
    }
    assert.deepEqual([...seen].sort(), [1, 2, 4]);
    await bus.close();
    await device.close();
  },
);

test(
  statements("no write to a read-only field, and no 0 to queue_enable", `driver: ${COMMON} #1`, `driver: ${COMMON} #6`),
  limit,
  async () => {
    for (const options of LIVES) {
      const log = await lived(options);
      // device_feature, num_queues, config_generation, queue_notify_off, queue_notif_config_data.
      for (const at of [0x04, 0x12, 0x15, 0x1e, 0x38]) assert.deepEqual(writesOf(log, at), [], `offset ${at}`);
      const enables = writesOf(log, ENABLE);
      assert.equal(enables.length >= 4, true);
      assert.deepEqual([...new Set(enables.map(({ value }) => value))], [1]);
    }
  },
);

/** Queue sizes that a driver writes when it is asked for these. */
async function sizesWritten(ring: FeatureSet, sizes: readonly number[], largest: readonly number[]): Promise<number[]> {
  const written: number[] = [];
  for (const size of sizes) {
    const rig = new PciDriverRig({ ring, device: new LoopDevice({ queueSizes: [...largest] }) });
    const driver = rig.driver();
    driver.queueSize = size;
    if (size < 1 || !Number.isInteger(size)) await assert.rejects(driver.start(), { code: "ERR_VIRTKIT_QUEUE" });
    else await driver.start();
    written.push(...writesOf(rig.log, SIZE).map(({ value }) => value));
    await driver.remove();
  }
  return written;
}

test(statements("queue_size is never 0, packed", `driver: ${COMMON} #2`), limit, async () => {
  const packed = FeatureSet.of(VIRTIO_F_RING_PACKED);
  const written = await sizesWritten(packed, [0, 1, 3, 7, 100, 1000, 0.5, -1], [100, 33]);
  assert.deepEqual(written, [1, 1, 3, 3, 7, 7, 100, 33, 100, 33]);
});

test(statements("queue_size is a power of 2, split", `driver: ${COMMON} #3`), limit, async () => {
  const written = await sizesWritten(FeatureSet.EMPTY, [1, 3, 7, 8, 100, 1000, 0], [128, 32]);
  assert.deepEqual(written, [1, 1, 2, 2, 4, 4, 8, 8, 64, 32, 128, 32]);
  // A device that breaks its own rule does not lead the driver into breaking this one.
  const rig = new PciDriverRig({ ring: FeatureSet.EMPTY });
  rig.access.answer = ({ place, offset, value }) => (place === 4 && offset === SIZE ? 24 : value);
  await (await rig.start()).remove();
  assert.deepEqual(
    writesOf(rig.log, SIZE).map(({ value }) => value),
    [16, 16],
  );
});

test(statements("a queue is configured, then enabled, then left alone", `driver: ${COMMON} #4`), limit, async () => {
  for (const options of LIVES) {
    const log = common(await lived(options));
    const msix = options.pci?.vectors !== 0;
    const fields = [SIZE, 0x20, 0x24, 0x28, 0x2c, 0x30, 0x34, ...(msix ? [0x1a] : [])];
    /** Per queue: what was written since it was last reset, and whether it is enabled. */
    let queues = new Map<number, { written: Set<number>; enabled: boolean }>();
    let selected = 0;
    let enables = 0;
    for (const { write, offset, value } of log) {
      if (!write) continue;
      const queue = queues.get(selected) ?? { written: new Set(), enabled: false };
      queues.set(selected, queue);
      if (offset === SELECT) selected = value;
      else if (offset === STATUS && value === 0) queues = new Map();
      else if (offset === RESET) queues.set(selected, { written: new Set(), enabled: false });
      else if (offset === ENABLE) {
        assert.deepEqual([...queue.written].sort(), [...fields].sort());
        queue.enabled = true;
        enables++;
      } else if (fields.includes(offset)) {
        assert.equal(queue.enabled, false, `offset ${offset} of an enabled queue`);
        queue.written.add(offset);
      }
    }
    assert.equal(enables >= 4, true);
  }
});

test(
  statements("after 0 in device_status nothing is done until it reads 0", `driver: ${COMMON} #5`),
  limit,
  async () => {
    const rig = new PciDriverRig();
    const { device, log } = rig;
    const driver = await rig.start();
    device.borrowing = true;
    const restarted = driver.restart();
    for (let i = 0; i < 10; i++) await turn();
    assert.equal(driver.state, "ready");
    device.release();
    await restarted;
    await driver.remove();
    let waiting = false;
    let refused = 0;
    let resets = 0;
    for (const { write, offset, value } of common(log)) {
      if (waiting) {
        assert.deepEqual([write, offset], [false, STATUS]);
        waiting = value !== 0;
        if (waiting) refused++;
      } else if (write && offset === STATUS && value === 0) {
        waiting = true;
        resets++;
      }
    }
    assert.equal(waiting, false);
    assert.equal(resets >= 3 && refused >= 9, true);
  },
);

test(
  statements("a queue reset is over when queue_reset reads 0, and not before", `driver: ${COMMON} #7`),
  limit,
  async () => {
    const rig = new PciDriverRig();
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
    const waited = common(log.slice(before));
    assert.deepEqual(
      waited.filter(({ write }) => write).filter(({ offset }) => offset !== SELECT),
      [{ write: true, place: 4, offset: RESET, size: 2, value: 1 }],
    );
    assert.equal(
      waited.filter(({ write, offset, value }) => !write && offset === RESET && value === 1).length >= 9,
      true,
    );
    device.release();
    await reset;
    const after = common(log.slice(before + waited.length));
    const zero = after.findIndex(({ write, offset, value }) => !write && offset === RESET && value === 0);
    const enable = after.findIndex(({ write, offset }) => write && offset === ENABLE);
    assert.equal(zero >= 0 && enable > zero, true);
    await driver.remove();
  },
);
