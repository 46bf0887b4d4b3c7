import assert from "node:assert/strict";
import { test } from "node:test";
import { RING_FEATURES } from "../../device/core.ts";
import { VIRTIO_F_NOTIFICATION_DATA } from "../../spec/features.ts";
import { LOOP_CFG_WRITABLE, LoopDevice } from "../../testing/loop-device.ts";
import {
  BAR4,
  bringUp,
  type Capability,
  capabilities,
  capability,
  DEVICE,
  type PciRig,
  pciRig,
} from "../../testing/pci-guest.ts";
import { statements } from "../../testing/statements.ts";
import type { VirtioPciOptions } from "./index.ts";

// Numbers are written out as in the specification, so that a wrong constant of ours cannot hide behind itself.
const limit = { timeout: 20_000 };
const PCI = "Virtio Transport Options / Virtio Over PCI Bus";
const LAYOUT = `${PCI} / PCI Device Layout`;
const COMMON = `${LAYOUT} / Common configuration structure layout`;
const NOTIFICATION = `${LAYOUT} / Notification capability`;
const SHARED = `${LAYOUT} / Shared memory capability`;
const WINDOW = `${LAYOUT} / PCI configuration access capability`;

const SHAPES: readonly Partial<VirtioPciOptions>[] = [
  {},
  { vectors: 0 },
  { modernBar: "mem32" },
  { modernBar: "io" },
  { pagePerQueue: true },
  { ioNotify: true },
  { modernBar: "io", ioNotify: true },
  { legacy: true, legacyDeviceId: 0x103f },
];

const virtio = (rig: PciRig, type: number): Capability[] =>
  capabilities(rig).filter((c) => c.id === 9 && c.type === type);

/** Functions of every shape, with one queue and with more of them than a page has doorbells. */
function* rigs(notificationData = true): Generator<PciRig> {
  for (const options of SHAPES)
    for (const queues of [1, 3, 1500]) {
      const device = new LoopDevice({ queueSizes: new Array<number>(queues).fill(8) });
      if (!notificationData) device.setOfferedFeatures(device.offeredFeatures.without(VIRTIO_F_NOTIFICATION_DATA));
      yield pciRig({ vectors: 3, ...options }, device);
    }
}

test(
  statements(
    "cap_len covers what follows struct virtio_pci_cap",
    `device: ${PCI} / Virtio Structure PCI Capabilities #1`,
  ),
  limit,
  () => {
    const device = new LoopDevice({ sharedMemory: [{ id: 1, memory: new Uint8Array(4096) }] });
    const lengths = capabilities(pciRig({}, device))
      .filter(({ id }) => id === 9)
      .map(({ type, length }) => [type, length]);
    // A notification capability has the multiplier, the window its data, a shared memory region the high halves.
    assert.deepEqual(Object.fromEntries(lengths), { 1: 16, 2: 20, 3: 16, 4: 16, 5: 20, 8: 24 });
  },
);

test(
  statements(
    "common, ISR, notification, and window are there; common and device configuration on a border of 4",
    `device: ${COMMON} #1`,
    `device: ${COMMON} #2`,
    `device: ${NOTIFICATION} #1`,
    `device: ${LAYOUT} / ISR status capability #1`,
    `device: ${LAYOUT} / Device-specific configuration #1`,
    `device: ${WINDOW} #1`,
  ),
  limit,
  () => {
    for (const rig of rigs()) {
      for (const type of [1, 2, 3, 5]) assert.ok(virtio(rig, type).length >= 1, `capability ${type}`);
      for (const type of [1, 4])
        assert.equal(
          virtio(rig, type).every(({ offset }) => offset % 4 === 0),
          true,
        );
      // They are where the structures are: num_queues, and the first bytes of the configuration.
      const [common, device] = [virtio(rig, 1)[0], virtio(rig, 4)[0]] as [Capability, Capability];
      assert.equal(rig.pci.barRead(common.bar, common.offset + 0x12, 2), rig.device.queueSizes.length);
      assert.equal(rig.pci.barRead(device.bar, device.offset, 4), 0x89abcdef);
    }
  },
);

/** For each notification capability its place, multiplier, and the largest queue_notify_off of any queue. */
function doorbells(rig: PciRig): { offset: number; size: number; multiplier: number; last: number }[] {
  const common = virtio(rig, 1)[0] as Capability;
  let last = 0;
  for (let queue = 0; queue < rig.device.queueSizes.length; queue++) {
    rig.pci.barWrite(common.bar, common.offset + 0x16, 2, queue);
    last = Math.max(last, rig.pci.barRead(common.bar, common.offset + 0x1e, 2));
  }
  return virtio(rig, 2).map(({ at, offset, size }) => ({
    offset,
    size,
    multiplier: rig.pci.configRead(at + 16, 4),
    last,
  }));
}

test(
  statements(
    "without NOTIFICATION_DATA: doorbells of 2 bytes fit, on a border of 2, an even power of 2 apart or all in one place",
    `device: ${NOTIFICATION} #2`,
    `device: ${NOTIFICATION} #3`,
    `device: ${NOTIFICATION} #4`,
    `device: ${NOTIFICATION} #5`,
    `device: ${NOTIFICATION} #6`,
  ),
  limit,
  () => {
    for (const rig of rigs(false)) {
      for (const { offset, size, multiplier, last } of doorbells(rig)) {
        assert.equal(offset % 2, 0);
        assert.equal(multiplier === 0 || Math.log2(multiplier) % 2 === 0, true);
        assert.equal(size >= 2 && size >= last * multiplier + 2, true);
      }
    }
  },
);

test(
  statements(
    "with NOTIFICATION_DATA: doorbells of 4 bytes fit, on a border of 4, a multiple of 4 apart or all in one place",
    `device: ${NOTIFICATION} #7`,
    `device: ${NOTIFICATION} #8`,
    `device: ${NOTIFICATION} #9`,
    `device: ${NOTIFICATION} #10`,
    `device: ${NOTIFICATION} #11`,
  ),
  limit,
  () => {
    assert.equal(RING_FEATURES.has(VIRTIO_F_NOTIFICATION_DATA), true);
    for (const rig of rigs()) {
      assert.equal(rig.device.offeredFeatures.has(38), true);
      for (const { offset, size, multiplier, last } of doorbells(rig)) {
        assert.equal(offset % 4, 0);
        assert.equal(multiplier === 0 || (multiplier % 4 === 0 && Number.isInteger(Math.log2(multiplier))), true);
        assert.equal(size >= 4 && size >= last * multiplier + 4, true);
      }
    }
  },
);

test(
  statements("shared memory lies within its BAR; ids are unique", `device: ${SHARED} #1`, `device: ${SHARED} #2`),
  limit,
  () => {
    const sharedMemory = [7, 0, 255].map((id, i) => ({ id, memory: new Uint8Array(4096 * (2 * i + 1)).fill(id) }));
    const rig = pciRig({}, new LoopDevice({ sharedMemory }));
    const seen = virtio(rig, 8).map(({ at, bar, offset, size }) => ({
      id: rig.pci.configRead(at + 5, 1),
      bar,
      start: offset + rig.pci.configRead(at + 16, 4) * 2 ** 32,
      length: size + rig.pci.configRead(at + 20, 4) * 2 ** 32,
    }));
    assert.equal(seen.length, 3);
    assert.equal(new Set(seen.map(({ id }) => id)).size, 3);
    for (const { id, bar, start, length } of seen) {
      assert.equal(length, sharedMemory.find((region) => region.id === id)?.memory.length);
      assert.equal(start + length <= (rig.pci.bars.find(({ index }) => index === bar)?.size ?? 0), true);
      assert.deepEqual([rig.pci.barRead(bar, start, 1), rig.pci.barRead(bar, start + length - 1, 1)], [id, id]);
    }
    const memory = new Uint8Array(4096);
    assert.throws(() => new LoopDevice({ sharedMemory: [4, 4].map((id) => ({ id, memory })) }), {
      code: "ERR_VIRTKIT_SHARED_MEMORY",
    });
  },
);

test(statements("halves of 64-bit fields are read and written on their own", `device: ${LAYOUT} #1`), limit, () => {
  const rig = pciRig();
  const { read, write, pci } = rig;
  for (const field of [0x20, 0x28, 0x30]) {
    // The high half first, then the low one; neither touches the other.
    write(field + 4, 4, 0x89abcdef);
    assert.deepEqual([read(field, 4), read(field + 4, 4)], [0, 0x89abcdef]);
    write(field, 4, 0x12345678);
    assert.deepEqual([read(field, 4), read(field + 4, 4)], [0x12345678, 0x89abcdef]);
    write(field + 4, 4, 0);
    assert.deepEqual([read(field, 4), read(field + 4, 4)], [0x12345678, 0]);
  }
  // The device's own le64 field: either half, in either order, as often as it likes.
  const config = (offset: number) => pci.barRead(BAR4, DEVICE + offset, 4);
  assert.deepEqual([config(4), config(0), config(4)], [0x000fedcb, 0x89abcdef, 0x000fedcb]);
});

/** Points the window at `length` bytes at `offset` of a BAR. */
function aim({ pci }: PciRig, at: number, bar: number, offset: number, length: number): void {
  pci.configWrite(at + 4, 1, bar);
  pci.configWrite(at + 8, 4, offset);
  pci.configWrite(at + 12, 4, length);
}

test(
  statements("a write to pci_cfg_data writes its first cap.length bytes to the BAR", `device: ${WINDOW} #2`),
  limit,
  () => {
    const rig = pciRig({ ioNotify: true });
    const { pci, device, read } = rig;
    const { at } = capability(rig, 5);
    for (const [length, left] of [
      [4, 0x44332211],
      [2, 0x00002211],
      [1, 0x00000011],
    ] as const) {
      pci.barWrite(BAR4, DEVICE + LOOP_CFG_WRITABLE, 4, 0);
      aim(rig, at, BAR4, DEVICE + LOOP_CFG_WRITABLE, length);
      pci.configWrite(at + 16, 4, 0x44332211);
      assert.equal(device.config.read(LOOP_CFG_WRITABLE, 4), left);
    }
    // A register of the common configuration, an entry of the MSI-X table, and doorbells in memory and in I/O space.
    aim(rig, at, BAR4, 0x16, 2);
    pci.configWrite(at + 16, 2, 1);
    assert.equal(read(0x16, 2), 1);
    aim(rig, at, 1, 8, 4);
    pci.configWrite(at + 16, 4, 0xabcd);
    assert.equal(pci.barRead(1, 8, 4), 0xabcd);
    const ring = bringUp(rig, 1);
    ring.writeDescriptor(0, { address: 0x8000, length: 4, flags: 0 });
    ring.writeDescriptor(1, { address: 0x8000, length: 4, flags: 0 });
    for (const [n, bar, offset] of [
      [1, BAR4, 0x3004],
      [2, 2, 0],
    ] as const) {
      aim(rig, at, bar, offset, 2);
      ring.offer(n - 1);
      assert.equal(device.held.length, n - 1);
      pci.configWrite(at + 16, 2, 1);
      assert.equal(device.held.length, n);
    }
  },
);

test(
  statements("a read of pci_cfg_data reads cap.length bytes of the BAR, and keeps them", `device: ${WINDOW} #3`),
  limit,
  () => {
    const rig = pciRig({ vectors: 0 });
    const { pci, device } = rig;
    const { at } = capability(rig, 5);
    for (const [offset, length, value] of [
      [0x12, 2, 2],
      [DEVICE, 1, 0xef],
      [DEVICE, 2, 0xcdef],
      [DEVICE, 4, 0x89abcdef],
      [DEVICE + 4, 4, 0x000fedcb],
    ] as const) {
      aim(rig, at, BAR4, offset, length);
      assert.equal(pci.configRead(at + 16, length), value);
    }
    // One access of that length, at each read: the ISR status is gone after the first.
    bringUp(rig);
    device.config.update(() => undefined);
    aim(rig, at, BAR4, 0x1000, 1);
    assert.deepEqual([pci.configRead(at + 16, 1), pci.configRead(at + 16, 1)], [2, 0]);
    // Reading another field of the capability is no access.
    device.config.update(() => undefined);
    pci.configRead(at + 8, 4);
    pci.configRead(at + 12, 4);
    assert.equal(pci.barRead(BAR4, 0x1000, 1), 2);
    // Bytes past cap.length keep what they held.
    aim(rig, at, BAR4, DEVICE, 4);
    pci.configRead(at + 16, 4);
    aim(rig, at, BAR4, 0x12, 2);
    assert.equal(pci.configRead(at + 16, 4), 0x89ab0002);
  },
);
