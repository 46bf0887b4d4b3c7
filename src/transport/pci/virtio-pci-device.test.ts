import assert from "node:assert/strict";
import { test } from "node:test";
import { FeatureSet } from "../../common/feature-set.ts";
import { VIRTIO_F_VERSION_1 } from "../../spec/features.ts";
import { LOOP_CFG_WRITABLE, LoopDevice } from "../../testing/loop-device.ts";
import {
  BAR4,
  bringUp,
  capabilities,
  capability,
  DEVICE,
  ISR,
  NO_VECTOR,
  NOTIFY,
  send,
  pciRig as setUp,
} from "../../testing/pci-guest.ts";
import { statements } from "../../testing/statements.ts";
import type { AccessSize } from "./function.ts";

const limit = { timeout: 10_000 };
const PCI = "Virtio Transport Options / Virtio Over PCI Bus";
const LAYOUT = `${PCI} / PCI Device Layout`;
const VECTORS = `${PCI} / PCI-specific Initialization And Device Operation / Device Initialization / MSI-X Vector Configuration`;

test("the common configuration starts with what the spec says", limit, () => {
  const { read, device } = setUp();
  const fields: [number, AccessSize, number][] = [
    [0x00, 4, 0],
    [0x04, 4, device.offeredFeatures.word(0)],
    [0x08, 4, 0],
    [0x0c, 4, 0],
    [0x10, 2, NO_VECTOR],
    [0x12, 2, 2],
    [0x14, 1, 0],
    [0x15, 1, 0],
    [0x16, 2, 0],
    [0x18, 2, 64],
    [0x1a, 2, NO_VECTOR],
    [0x1c, 2, 0],
    [0x1e, 2, 0],
    [0x38, 2, 0],
    [0x3a, 2, 0],
    [0x3c, 2, 0],
    [0x3e, 2, 0],
  ];
  for (const [offset, size, value] of fields) assert.equal(read(offset, size), value, `offset ${offset}`);
  assert.equal(read(0x12, 4), 2 + 0 * 65536);
  assert.equal(read(0x40, 4), 0);
  assert.equal(read(0xffc, 4), 0);
});

test(
  statements("halves, and bytes, of a 64-bit field are written and read on their own", `device: ${LAYOUT} #1`),
  limit,
  () => {
    const { read, write } = setUp();
    write(0x16, 2, 1);
    write(0x24, 4, 0x89abcdef);
    assert.deepEqual([read(0x20, 4), read(0x24, 4)], [0, 0x89abcdef]);
    for (let i = 0; i < 8; i++) write(0x28 + i, 1, 0xf0 + i);
    assert.deepEqual([read(0x28, 4), read(0x2c, 4)], [0xf3f2f1f0, 0xf7f6f5f4]);
    for (let i = 0; i < 8; i++) assert.equal(read(0x28 + i, 1), 0xf0 + i);
    write(0x32, 2, 0xbeef);
    assert.equal(read(0x30, 4), 0xbeef0000);
    assert.equal(read(0x2e, 4), 0x0000f7f6);
    write(0x16, 2, 0);
    assert.equal(read(0x24, 4), 0);
  },
);

test("a wide write reaches every field that it covers", limit, () => {
  const { read, write } = setUp();
  write(0x18, 4, 0x00010020);
  assert.deepEqual([read(0x18, 2), read(0x1a, 2)], [0x20, 1]);
  // Status 0x03, generation is read-only, queue_select 1.
  write(0x14, 4, 0x0001aa03);
  assert.deepEqual([read(0x14, 1), read(0x15, 1), read(0x16, 2)], [3, 0, 1]);
});

test(
  statements(
    "vectors: NO_VECTOR for one that does not exist, unmapped at reset",
    `device: ${VECTORS} #4`,
    `device: ${VECTORS} #5`,
    `device: ${VECTORS} #6`,
  ),
  limit,
  () => {
    const { read, write } = setUp({ vectors: 3 });
    for (const at of [0x10, 0x1a]) {
      for (const [written, kept] of [
        [0, 0],
        [2, 2],
        [3, NO_VECTOR],
        [1, 1],
        [0x7ff, NO_VECTOR],
        [2, 2],
        [NO_VECTOR, NO_VECTOR],
        [2, 2],
      ] as const) {
        write(at, 2, written);
        assert.equal(read(at, 2), kept);
      }
    }
    write(0x14, 1, 0);
    assert.deepEqual([read(0x10, 2), read(0x1a, 2)], [NO_VECTOR, NO_VECTOR]);
    write(0x16, 2, 9);
    write(0x1a, 2, 1);
    assert.equal(read(0x1a, 2), NO_VECTOR);
    const without = setUp({ vectors: 0 });
    without.write(0x10, 2, 0);
    assert.equal(without.read(0x10, 2), NO_VECTOR);
    assert.ok(capabilities(without).every((c) => c.id === 9));
  },
);

test(
  statements(
    "INTx: ISR bits, deasserted by a read, status and disable bits",
    `device: ${LAYOUT} / ISR status capability #4`,
    `device: ${LAYOUT} / ISR status capability #5`,
  ),
  limit,
  () => {
    const rig = setUp({ vectors: 0 });
    const { pci, intx, device } = rig;
    const ring = bringUp(rig);
    const status = () => pci.configRead(6, 2) & 8;
    send(rig, ring);
    assert.deepEqual([intx.splice(0), status()], [[true], 8]);
    send(rig, ring);
    device.config.update(() => undefined);
    assert.deepEqual(intx.splice(0), []);
    assert.equal(pci.barRead(BAR4, ISR, 1), 3);
    assert.deepEqual([intx.splice(0), status()], [[false], 0]);
    assert.equal(pci.barRead(BAR4, ISR, 1), 0);
    pci.configWrite(4, 2, 0x0407);
    send(rig, ring);
    assert.deepEqual([intx.splice(0), status()], [[], 8]);
    pci.configWrite(5, 1, 0);
    assert.deepEqual(intx.splice(0), [true]);
    rig.write(0x14, 1, 0);
    assert.deepEqual([intx.splice(0), status(), pci.barRead(BAR4, ISR, 1)], [[false], 0, 0]);
  },
);

test("no interrupts before DRIVER_OK", limit, () => {
  const { pci, intx, device, write } = setUp({ vectors: 0 });
  write(0x14, 1, 3);
  device.config.update(() => undefined);
  assert.deepEqual([intx, pci.barRead(BAR4, ISR, 1)], [[], 0]);
});

test("MSI-X: messages, masks, pending bits, the function mask", limit, () => {
  const rig = setUp();
  const { pci, messages, intx, device } = rig;
  const table = (vector: number, part: number, value: number) => pci.barWrite(1, 16 * vector + part, 4, value);
  const pending = () => pci.barRead(1, 0x800, 4);
  const control = (value: number) => pci.configWrite(0x9a, 2, value);
  assert.equal(pci.configRead(0x9a, 2), 2);
  assert.deepEqual([pci.configRead(0x9c, 4), pci.configRead(0xa0, 4)], [1, 0x801]);
  for (let vector = 0; vector < 3; vector++) {
    assert.equal(pci.barRead(1, 16 * vector + 12, 4), 1);
    table(vector, 0, 0xfee0100b);
    table(vector, 4, vector);
    table(vector, 8, 0x40 + vector);
  }
  assert.equal(pci.barRead(1, 16, 4), 0xfee01008);
  control(0x8000);
  assert.equal(pci.configRead(0x9a, 2), 0x8002);
  rig.write(0x10, 2, 0);
  const ring = bringUp(rig, 0, 1);
  rig.write(0x10, 2, 0);
  send(rig, ring);
  assert.deepEqual([messages, pending()], [[], 2]);
  // device: ISR status capability #3: the queue's bit belongs to INTx.
  assert.equal(pci.barRead(BAR4, ISR, 1), 0);
  table(1, 12, 0);
  assert.deepEqual([messages.splice(0), pending()], [[[0x1_fee01008, 0x41]], 0]);
  send(rig, ring);
  assert.deepEqual(messages.splice(0), [[0x1_fee01008, 0x41]]);
  control(0xc000);
  send(rig, ring);
  device.config.update(() => undefined);
  assert.deepEqual([messages, pending()], [[], 3]);
  control(0x8000);
  assert.deepEqual([messages.splice(0), pending()], [[[0x1_fee01008, 0x41]], 1]);
  // device: ISR status capability #2: the configuration's bit shows in either case.
  assert.equal(pci.barRead(BAR4, ISR, 1), 2);
  table(0, 12, 0xfffffffe);
  assert.equal(pci.barRead(1, 12, 4), 0);
  assert.deepEqual([messages.splice(0), pending()], [[[0xfee01008, 0x40]], 0]);
  assert.deepEqual(intx, []);
  // The pending bits are read-only.
  pci.barWrite(1, 0x800, 4, 0xffffffff);
  assert.equal(pending(), 0);
  // device: Used Buffer Notifications #1: no vector, no interrupt.
  rig.write(0x1a, 2, NO_VECTOR);
  send(rig, ring);
  assert.deepEqual([messages, intx, pending()], [[], [], 0]);
  // MSI-X off: INTx takes over.
  control(0);
  send(rig, ring);
  assert.deepEqual([messages.length, intx.splice(0)], [0, [true]]);
  control(0x8000);
  assert.deepEqual(intx.splice(0), [false]);
});

test("MSI-X table: bytes and words", limit, () => {
  const { pci } = setUp();
  for (let i = 0; i < 4; i++) pci.barWrite(1, 8 + i, 1, 0x10 + i);
  assert.equal(pci.barRead(1, 8, 4), 0x13121110);
  pci.barWrite(1, 10, 2, 0xffff);
  assert.equal(pci.barRead(1, 9, 2), 0xff11);
  pci.barWrite(1, 16 * 3 - 2, 4, 0xffffffff);
  assert.equal(pci.barRead(1, 16 * 3, 4), 0);
});

test("a device reset keeps the MSI-X table, a bus reset does not", limit, () => {
  const rig = setUp();
  const { pci, device } = rig;
  pci.barWrite(1, 8, 4, 7);
  bringUp(rig);
  pci.configWrite(0x9a, 2, 0x8000);
  pci.configWrite(0x20, 4, 0xe0000000);
  pci.configWrite(0x3c, 1, 11);
  rig.write(0x14, 1, 0);
  assert.equal(pci.barRead(1, 8, 4), 7);
  const { resets } = device;
  pci.reset();
  assert.equal(device.resets, resets + 1);
  assert.deepEqual(
    [pci.barRead(1, 8, 4), pci.configRead(0x9a, 2), pci.configRead(0x20, 4), pci.configRead(0x3c, 1)],
    [0, 2, 0xc, 0],
  );
});

test("the configuration access window reaches every structure", limit, () => {
  const rig = setUp({ ioNotify: true });
  const { pci, device } = rig;
  const { at } = capability(rig, 5);
  const aim = (bar: number, offset: number, length: number) => {
    pci.configWrite(at + 4, 1, bar);
    pci.configWrite(at + 8, 4, offset);
    pci.configWrite(at + 12, 4, length);
  };
  aim(BAR4, 0x12, 2);
  assert.equal(pci.configRead(at + 16, 2), 2);
  aim(BAR4, DEVICE + LOOP_CFG_WRITABLE, 4);
  pci.configWrite(at + 16, 4, 0xcafebabe);
  assert.equal(device.config.read(LOOP_CFG_WRITABLE, 4), 0xcafebabe);
  assert.equal(pci.configRead(at + 16, 4), 0xcafebabe);
  assert.equal(pci.configRead(at + 18, 2), 0xcafe);
  aim(1, 12, 4);
  assert.equal(pci.configRead(at + 16, 4), 1);
  const ring = bringUp(rig, 1);
  ring.writeDescriptor(0, { address: 0x8000, length: 4, flags: 0 });
  ring.offer(0);
  for (const [bar, offset] of [
    [BAR4, NOTIFY + 4],
    [2, 0],
  ] as const) {
    aim(bar, offset, 2);
    const before = device.held.length;
    ring.offer(0);
    pci.configWrite(at + 16, 2, 1);
    assert.ok(device.held.length > before || device.broken !== undefined);
  }
  // Lengths and BARs that do not exist do nothing.
  for (const [bar, length] of [
    [9, 4],
    [BAR4, 0],
    [BAR4, 3],
    [BAR4, 0x80000000],
  ] as const) {
    aim(bar, 0, length);
    pci.configRead(at + 16, 4);
    pci.configWrite(at + 16, 4, 0xffffffff);
  }
});

test("reading the ISR status through the window clears it as any read does", limit, () => {
  const rig = setUp({ vectors: 0 });
  const { at } = capability(rig, 5);
  const ring = bringUp(rig);
  send(rig, ring);
  rig.pci.configWrite(at + 4, 1, BAR4);
  rig.pci.configWrite(at + 8, 4, ISR);
  rig.pci.configWrite(at + 12, 4, 1);
  // Other registers of the capability do not make an access.
  assert.equal(rig.pci.configRead(at + 12, 4), 1);
  assert.equal(rig.pci.configRead(at + 16, 1), 1);
  assert.deepEqual(rig.intx, [true, false]);
  assert.equal(rig.pci.configRead(at + 16, 1), 0);
});

test("device configuration: 8, 16 and 32 bits, clamped, generation", limit, () => {
  const { pci, read, device } = setUp();
  const config = (offset: number, size: AccessSize) => pci.barRead(BAR4, DEVICE + offset, size);
  assert.deepEqual([config(0, 1), config(0, 2), config(0, 4), config(4, 4)], [0xef, 0xcdef, 0x89abcdef, 0x000fedcb]);
  assert.deepEqual([config(14, 4), config(16, 4), config(0xffc, 4)], [0, 0, 0]);
  pci.barWrite(BAR4, DEVICE, 4, 0);
  assert.equal(config(0, 4), 0x89abcdef);
  const before = read(0x15, 1);
  device.config.update((view) => view.setUint8(0, 1));
  assert.notEqual(read(0x15, 1), before);
});

test("a device without configuration has no capability for it", limit, () => {
  const rig = setUp();
  assert.ok(capability(rig, 4));
  class Bare extends LoopDevice {}
  const device = new Bare();
  Object.defineProperty(device.config, "size", { value: 0 });
  assert.equal(capability(setUp({}, device), 4), undefined);
});

test("queue reset unmaps the queue's vector", limit, () => {
  const rig = setUp();
  bringUp(rig, 0, 2);
  assert.equal(rig.read(0x1a, 2), 2);
  rig.write(0x3a, 2, 1);
  assert.deepEqual([rig.read(0x3a, 2), rig.read(0x1c, 2), rig.read(0x1a, 2)], [0, 0, NO_VECTOR]);
});

test("doorbells: one for each queue, or the queue's index in I/O space", limit, () => {
  const device = new LoopDevice({ queueSizes: [8, 8, 8] });
  const kicks: number[] = [];
  device.kick = (index) => void kicks.push(index);
  const rig = setUp({ ioNotify: true }, device);
  rig.pci.barWrite(BAR4, NOTIFY, 2, 0);
  assert.deepEqual(kicks, []);
  bringUp(rig);
  kicks.length = 0;
  rig.pci.barWrite(BAR4, NOTIFY + 8, 2, 2);
  rig.pci.barWrite(BAR4, NOTIFY + 4, 4, 0x00070001);
  rig.pci.barWrite(2, 0, 2, 2);
  rig.pci.barWrite(2, 0, 4, 0x00070001);
  rig.pci.barWrite(BAR4, NOTIFY + 0xffc, 2, 0x3ff);
  assert.deepEqual(kicks, [2, 1, 2, 1, 0x3ff]);
});

test("wrong options are said", limit, () => {
  assert.throws(() => setUp({ vectors: 2049 }), { code: "ERR_VIRTKIT_PCI_VECTORS" });
  assert.throws(() => setUp({ vectors: 1.5 }), { code: "ERR_VIRTKIT_PCI_VECTORS" });
});

test("features above 64 bits go through the windows", limit, () => {
  const { read, write, device } = setUp();
  const words = [0, 1, 2, 3].map((word) => {
    write(0, 4, word);
    return read(4, 4);
  });
  assert.deepEqual(FeatureSet.fromWords(words), device.offeredFeatures);
  assert.ok(device.offeredFeatures.has(VIRTIO_F_VERSION_1));
});
