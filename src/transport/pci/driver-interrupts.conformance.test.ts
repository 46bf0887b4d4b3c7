import assert from "node:assert/strict";
import { test } from "node:test";
import { FeatureSet } from "../../common/feature-set.ts";
import { DRIVER_RING_FEATURES } from "../../driver/features.ts";
import { LoopDevice } from "../../testing/loop-device.ts";
import { liveThrough, PciDriverRig, type PciDriverRigOptions, type PciRegisterAccess } from "../../testing/pci-log.ts";
import { statements } from "../../testing/statements.ts";

// Numbers are written out as in the specification, so that a wrong constant of ours cannot hide behind itself.
const limit = { timeout: 30_000 };
const OPERATION = "Virtio Transport Options / Virtio Over PCI Bus / PCI-specific Initialization And Device Operation";
const VECTORS = `${OPERATION} / Device Initialization / MSI-X Vector Configuration`;
const NOTIFICATIONS = `${OPERATION} / Available Buffer Notifications`;
const NO_VECTOR = 0xffff;
const CONFIG_VECTOR = 0x10;
const QUEUE_VECTOR = 0x1a;
const BYTES = Uint8Array.of(1, 2, 3, 4, 5);
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

const isVector = ({ place, offset }: PciRegisterAccess): boolean =>
  place === 4 && (offset === CONFIG_VECTOR || offset === QUEUE_VECTOR);
const mapped = (rig: PciDriverRig): number[] =>
  rig.log.filter((access) => access.write && isVector(access)).map(({ value }) => value);

/** Queues that a driver of two leaves alone make a device of many. */
const manyQueues = (queues: number) => new LoopDevice({ queueSizes: new Array<number>(queues).fill(16) });

test(
  statements(
    "a table of any size serves, and no event is mapped past its end",
    `driver: ${VECTORS} #1`,
    `driver: ${VECTORS} #2`,
  ),
  limit,
  async () => {
    for (const [vectors, queues, mode] of [
      [1, 2, "msix-shared"],
      [2, 2, "msix-shared"],
      [3, 2, "msix"],
      [4, 2, "msix"],
      [2, 3, "msix-shared"],
      [3, 100, "msix-shared"],
      [64, 63, "msix"],
      [64, 64, "msix-shared"],
      [255, 254, "msix"],
      // The machine has 256 messages, fewer than the driver would like.
      [2048, 300, "msix-shared"],
      [2047, 2, "msix"],
      [2048, 2, "msix"],
    ] as const) {
      const rig = new PciDriverRig({ device: manyQueues(queues), pci: { vectors } });
      const transport = rig.scan();
      const driver = await rig.start(transport);
      assert.equal(transport.interruptMode, mode, `${vectors} vectors for ${queues} queues`);
      await liveThrough(driver, rig.device);
      const beyond = mapped(rig).filter((vector) => vector >= vectors && vector !== NO_VECTOR);
      assert.deepEqual([mapped(rig).length > 0, beyond], [true, []], `${vectors} vectors for ${queues} queues`);
    }
  },
);

/** A rig whose device does not map what `refuses` says, and answers as the specification has it. */
function refusingRig(refuses: (register: number, vector: number) => boolean): PciDriverRig {
  const rig = new PciDriverRig();
  rig.access.arrives = (access) =>
    isVector(access) && refuses(access.offset, access.value) ? NO_VECTOR : access.value;
  return rig;
}

test(
  statements("every mapping is read back, and one that failed is not relied on", `driver: ${VECTORS} #3`),
  limit,
  async () => {
    for (const [mode, refuses] of [
      ["msix", () => false],
      // A queue does not get its vector: the configuration's one serves it.
      ["msix", (register: number, vector: number) => register === QUEUE_VECTOR && vector === 2],
      ["msix", (register: number, vector: number) => register === QUEUE_VECTOR && vector > 0],
      ["intx", (register: number) => register === QUEUE_VECTOR],
      ["intx", (register: number) => register === CONFIG_VECTOR],
      ["intx", () => true],
    ] as const) {
      const rig = refusingRig(refuses);
      const transport = rig.scan();
      const driver = await rig.start(transport);
      assert.equal(transport.interruptMode, mode);
      await liveThrough(driver, rig.device);
      const { log } = rig;
      for (const [i, { write, offset, value }] of log.entries()) {
        if (!write || !isVector(log[i] as PciRegisterAccess) || value === NO_VECTOR) continue;
        const next = log[i + 1];
        assert.deepEqual([next?.write, next?.place, next?.offset, next?.size], [false, 4, offset, 2]);
      }
    }
  },
);

/** What a driver writes as available buffer notifications: queue, by its doorbell, width and value. */
async function notifications(options: PciDriverRigOptions, prepare: (rig: PciDriverRig) => void = () => undefined) {
  const rig = new PciDriverRig(options);
  prepare(rig);
  const driver = await rig.start();
  const { features } = driver;
  await liveThrough(driver, rig.device);
  const doorbells = rig.log.filter(({ write, place, offset }) => write && place === 4 && offset >= 0x3000);
  const queues = new Set(doorbells.map(({ offset }) => (offset - 0x3000) / 4));
  assert.deepEqual([...queues].sort(), [0, 1]);
  return {
    features,
    sent: doorbells.map(({ offset, size, value }) => ({ queue: (offset - 0x3000) / 4, size, value })),
  };
}

const NOTIFICATION_DATA = 38;
const NOTIF_CONFIG_DATA = 39;
const PLAIN = DRIVER_RING_FEATURES.without(NOTIFICATION_DATA, NOTIF_CONFIG_DATA);

test(
  statements(
    "without NOTIFICATION_DATA a notification is 16 bits wide, the index of its queue",
    `driver: ${NOTIFICATIONS} #1`,
    `driver: ${NOTIFICATIONS} #3`,
  ),
  limit,
  async () => {
    for (const ring of [FeatureSet.EMPTY, PLAIN]) {
      const { features, sent } = await notifications({ ring });
      assert.equal(features.has(NOTIFICATION_DATA), false);
      for (const { queue, size, value } of sent) assert.deepEqual([size, value], [2, queue]);
    }
  },
);

test(
  statements(
    "with NOTIFICATION_DATA it is 32 bits wide, with the index of its queue in the low half",
    `driver: ${NOTIFICATIONS} #2`,
    `driver: ${NOTIFICATIONS} #4`,
  ),
  limit,
  async () => {
    for (const ring of [FeatureSet.of(NOTIFICATION_DATA), PLAIN.with(NOTIFICATION_DATA)]) {
      const { features, sent } = await notifications({ ring });
      assert.equal(features.has(NOTIFICATION_DATA), true);
      for (const { queue, size, value } of sent) assert.deepEqual([size, value % 65536], [4, queue]);
      // The high half says where in the ring.
      assert.ok(new Set(sent.map(({ value }) => value >>> 16)).size > 1, "all notifications say the same");
    }
  },
);

/** A device in front of ours that offers NOTIF_CONFIG_DATA, with 0xc0de + index in queue_notif_config_data. */
function offerConfigData({ access }: PciDriverRig): void {
  let offeredWord = 0;
  let chosenWord = 0;
  let queue = 0;
  const bit = 1 << (NOTIF_CONFIG_DATA - 32);
  access.arrives = ({ place, offset, value }) => {
    if (place !== 4) return value;
    if (offset === 0x00) offeredWord = value;
    if (offset === 0x08) chosenWord = value;
    if (offset === 0x16) queue = value;
    // Ours does not know the bit, so it does not learn that the driver chose it.
    return offset === 0x0c && chosenWord === 1 ? value & ~bit : value;
  };
  access.answer = ({ place, offset, value }) => {
    if (place === 4 && offset === 0x04 && offeredWord === 1) return value | bit;
    return place === 4 && offset === 0x38 ? 0xc0de + queue : value;
  };
}

test(
  statements(
    "with NOTIF_CONFIG_DATA a notification has what the device wants there in place of the index",
    `driver: ${NOTIFICATIONS} #5`,
    `driver: ${NOTIFICATIONS} #6`,
  ),
  limit,
  async () => {
    for (const wide of [false, true]) {
      const ring = FeatureSet.of(NOTIF_CONFIG_DATA, 40, ...(wide ? [NOTIFICATION_DATA] : []));
      const { features, sent } = await notifications({ ring }, offerConfigData);
      assert.deepEqual([features.has(NOTIF_CONFIG_DATA), features.has(NOTIFICATION_DATA)], [true, wide]);
      for (const { queue, size, value } of sent)
        assert.deepEqual([size, value % 65536], [wide ? 4 : 2, 0xc0de + queue]);
    }
    // Not chosen, not used.
    const { sent } = await notifications({ ring: FeatureSet.EMPTY }, offerConfigData);
    for (const { queue, value } of sent) assert.equal(value, queue);
  },
);

test(
  statements(
    "one interrupt for a configuration change and used buffers of both queues",
    `driver: ${OPERATION} / Notification of Device Configuration Changes #1`,
  ),
  limit,
  async () => {
    // One vector for everything, a line, and a vector for the configuration that a queue had to share.
    for (const rig of [
      new PciDriverRig({ pci: { vectors: 1 } }),
      new PciDriverRig({ pci: { vectors: 0 } }),
      refusingRig((register, vector) => register === QUEUE_VECTOR && vector > 0),
    ]) {
      const { device } = rig;
      let messages = 0;
      const allocate = rig.access.allocateMsi.bind(rig.access);
      rig.access.allocateMsi = (handler) =>
        allocate(() => {
          messages++;
          handler();
        });
      const driver = await rig.start();
      const held = driver.hold(BYTES);
      while (device.held.length === 0) await turn();
      const changed = driver.changed();
      messages = 0;
      // All three happen before any interrupt is delivered.
      const copied = driver.copy(BYTES);
      device.config.update(() => undefined);
      device.finish();
      await Promise.all([held, changed, copied]);
      const msix = rig.log.some(isVector);
      assert.deepEqual([messages, driver.events.filter((event) => event === "config").length], [msix ? 1 : 0, 1]);
      // MSI-X needs no ISR status; the line's says both.
      const reads = rig.log.filter(({ write, place, offset }) => !write && place === 4 && offset === 0x1000);
      assert.deepEqual([...new Set(reads.map(({ value }) => value))], msix ? [] : [3]);
      await driver.remove();
    }
  },
);
