import assert from "node:assert/strict";
import { test } from "node:test";
import { LoopDevice } from "../../testing/loop-device.ts";
import { capabilities } from "../../testing/pci-guest.ts";
import { liveThrough, PciDriverRig, type PciRegisterAccess } from "../../testing/pci-log.ts";
import { statements } from "../../testing/statements.ts";

// Numbers are written out as in the specification, so that a wrong constant of ours cannot hide behind itself.
const limit = { timeout: 30_000 };
const PCI = "Virtio Transport Options / Virtio Over PCI Bus";
const CAPABILITIES = `${PCI} / Virtio Structure PCI Capabilities`;
const WINDOW = `${PCI} / PCI Device Layout / PCI configuration access capability`;
/** Where there is room in configuration space behind the capabilities of a device without shared memory. */
const FREE = 0xa4;

const device = () => new LoopDevice();
const le32 = (value: number): number[] => [0, 1, 2, 3].map((i) => Math.floor(value / 256 ** i) % 256);

/** Shows other bytes in the configuration space. */
function show({ access }: PciDriverRig, at: number, bytes: readonly number[]): void {
  for (const [i, byte] of bytes.entries()) access.overlay.set(at + i, byte);
}

/** Puts capabilities of 16 bytes in front of the device's own. */
function prepend(
  rig: PciDriverRig,
  added: readonly { type: number; bar: number; offset?: number; length?: number }[],
): void {
  let at = FREE;
  for (const [i, { type, bar, offset = 0x2000, length = 0x1000 }] of added.entries()) {
    // A notification capability and a window have four bytes more.
    const bytes = type === 2 || type === 5 ? 20 : 16;
    const next = i + 1 < added.length ? at + bytes : rig.pci.configRead(0x34, 1);
    show(rig, at, [9, next, bytes, type, bar, 0, 0, 0, ...le32(offset), ...le32(length), ...le32(4)].slice(0, bytes));
    at += bytes;
  }
  show(rig, 0x34, [FREE]);
}

const own = (rig: PciDriverRig) => capabilities(rig).filter(({ id }) => id === 9);

/** A driver that comes up and lives with the device as it is shown, and only touches what the device's own capabilities name. */
async function lives(rig: PciDriverRig): Promise<void> {
  await liveThrough(await rig.start(), rig.device);
  const structures = own(rig).filter(({ type }) => type !== 5);
  for (const { place, offset, size } of rig.log) {
    // BAR 1 is the MSI-X table's.
    if (place === "config" || place === 1) continue;
    const inside = structures.some((s) => s.bar === place && offset >= s.offset && offset + size <= s.offset + s.size);
    assert.ok(inside, `an access at ${offset} of BAR ${place}`);
  }
}

test(statements("a reserved cfg_type is passed over", `driver: ${CAPABILITIES} #1`), limit, async () => {
  const reserved = [0, 6, 7];
  for (let type = 10; type < 256; type++) reserved.push(type);
  while (reserved.length > 0) {
    const types = reserved.splice(0, 5);
    const rig = new PciDriverRig({ device: device(), scan: { window: reserved.length % 10 === 0 } });
    prepend(
      rig,
      types.map((type) => ({ type, bar: 4 })),
    );
    await lives(rig);
  }
});

test(statements("a cap_len larger than the structure is accepted", `driver: ${CAPABILITIES} #2`), limit, async () => {
  const sharedMemory = [{ id: 1, memory: new Uint8Array(4096) }];
  for (const window of [false, true])
    for (const length of [21, 28, 64, 255]) {
      const rig = new PciDriverRig({ device: new LoopDevice({ sharedMemory }), scan: { window } });
      for (const { at } of own(rig)) show(rig, at + 2, [length]);
      // Shared memory has 24 bytes at least.
      assert.equal(rig.scan().sharedMemory?.(1)?.length, length < 24 ? undefined : 4096);
      await lives(new PciDriverRig({ device: device(), scan: { window } }));
      const again = new PciDriverRig({ device: device(), scan: { window } });
      for (const { at } of own(again)) show(again, at + 2, [length]);
      await lives(again);
    }
});

test(statements("a reserved bar is passed over", `driver: ${CAPABILITIES} #3`), limit, async () => {
  for (const window of [false, true])
    for (const bar of [6, 7, 128, 255]) {
      const rig = new PciDriverRig({ device: device(), scan: { window } });
      prepend(
        rig,
        [1, 2, 3, 4, 5].map((type) => ({ type, bar })),
      );
      await lives(rig);
      // The window's own accesses would have gone to the capability in front.
      assert.equal(
        rig.log.every(({ write, offset }) => !(write && offset >= FREE && offset < 0x100)),
        true,
      );
    }
});

test(statements("an unexpectedly large length is no matter", `driver: ${CAPABILITIES} #4`), limit, async () => {
  for (const length of [0x1001, 0x10000, 0x80000000, 0xffffffff])
    for (const window of [false, true]) {
      const rig = new PciDriverRig({ device: device(), scan: { window } });
      for (const { at, type } of own(rig)) if (type !== 5) show(rig, at + 12, le32(length));
      await lives(rig);
    }
});

/** Writes to the bytes of virtio capabilities. */
const capabilityWrites = (rig: PciDriverRig) =>
  rig.log.flatMap((access) => {
    const { write, place, offset, size } = access;
    const at = own(rig).find((c) => offset + size > c.at && offset < c.at + c.length);
    return write && place === "config" && at !== undefined ? [{ type: at.type, field: offset - at.at, access }] : [];
  });

test(
  statements("no field of a capability is written, but those of the window", `driver: ${CAPABILITIES} #5`),
  limit,
  async () => {
    const rig = new PciDriverRig({ device: device() });
    await lives(rig);
    assert.deepEqual(capabilityWrites(rig), []);
    const through = new PciDriverRig({ device: device(), scan: { window: true } });
    await lives(through);
    const writes = capabilityWrites(through);
    assert.equal(writes.length > 100, true);
    // bar, offset, length and pci_cfg_data.
    for (const { type, field } of writes) assert.equal(type === 5 && [4, 8, 12, 16].includes(field), true);
  },
);

test(
  statements(
    "vendor data is neither interpreted nor written",
    `driver: ${PCI} / PCI Device Layout / Vendor data capability #1`,
  ),
  limit,
  async () => {
    const rig = new PciDriverRig({ device: device() });
    // Behind vendor_id 0x1234 something that looks like a structure in BAR 4.
    show(rig, FREE, [9, rig.pci.configRead(0x34, 1), 16, 9, 0x34, 0x12, 4, 4, ...le32(0), ...le32(0x1000)]);
    show(rig, 0x34, [FREE]);
    await lives(rig);
    // What is looked at is what every vendor-specific capability has: id, next, length, type.
    const touched = rig.log.filter(({ place, offset }) => place === "config" && offset >= FREE && offset < FREE + 16);
    assert.equal(touched.length > 0, true);
    for (const { write, offset, size } of touched) assert.equal(!write && offset + size <= FREE + 4, true);
  },
);

/** The accesses that a driver made through the window, with the bar, offset and length at that moment. */
function* throughWindow(log: readonly PciRegisterAccess[], at: number) {
  const fields = new Map([4, 8, 12].map((field) => [field, 0]));
  for (const access of log) {
    const { place, offset, size, write, value } = access;
    if (place !== "config" || offset + size <= at + 4 || offset >= at + 20) continue;
    if (offset >= at + 16 || write)
      yield { field: offset - at, access, bar: fields.get(4), offset: fields.get(8), length: fields.get(12) };
    if (write && offset < at + 16) fields.set(offset - at, value);
  }
}

test(
  statements(
    "the window's offset is a multiple of its length at all times",
    `driver: ${WINDOW} #1`,
    `driver: ${WINDOW} #2`,
  ),
  limit,
  async () => {
    const rig = new PciDriverRig({ device: device(), scan: { window: true } });
    await lives(rig);
    const at = own(rig).find(({ type }) => type === 5)?.at as number;
    let offsets = 0;
    let accesses = 0;
    for (const { field, access, offset, length } of throughWindow(rig.log, at)) {
      if (field === 8) {
        offsets++;
        assert.equal(access.value % (length as number), 0, `offset ${access.value} while the length is ${length}`);
      } else if (field >= 16) {
        accesses++;
        assert.equal((offset as number) % (length as number), 0);
        assert.deepEqual([field, access.size], [16, length]);
      }
    }
    assert.equal(offsets > 100 && accesses > 100, true);
  },
);

test(
  statements("pci_cfg_data is only touched while it points into a structure", `driver: ${WINDOW} #3`),
  limit,
  async () => {
    const rig = new PciDriverRig({ device: device(), scan: { window: true } });
    await lives(rig);
    const at = own(rig).find(({ type }) => type === 5)?.at as number;
    const structures = own(rig).filter(({ type }) => type !== 5);
    const reached = new Set<number>();
    for (const { field, bar, offset, length } of throughWindow(rig.log, at)) {
      if (field < 16) continue;
      const [start, bytes] = [offset as number, length as number];
      const structure = structures.find(
        (s) => s.bar === bar && start >= s.offset && start + bytes <= s.offset + s.size,
      );
      assert.ok(structure !== undefined && [1, 2, 4].includes(bytes), `${bytes} bytes at ${start} of BAR ${bar}`);
      reached.add(structure.type);
    }
    // Common, notification, device configuration; with MSI-X nobody reads the ISR.
    assert.deepEqual([...reached].sort(), [1, 2, 4]);
  },
);
