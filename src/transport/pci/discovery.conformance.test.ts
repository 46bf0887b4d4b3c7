import assert from "node:assert/strict";
import { test } from "node:test";
import { FeatureSet } from "../../common/feature-set.ts";
import { DeviceCore } from "../../device/core.ts";
import { GuestMemory } from "../../memory/guest-memory.ts";
import { nodeEnvironment } from "../../testing/loop-device.ts";
import { pciRig } from "../../testing/pci-guest.ts";
import { statements } from "../../testing/statements.ts";
import { PciHostBridge, PciScanner, VirtioPciDevice, type VirtioPciOptions } from "./index.ts";

// Numbers are written out as in the specification, so that a wrong constant of ours cannot hide behind itself.
const limit = { timeout: 20_000 };
const PCI = "Virtio Transport Options / Virtio Over PCI Bus";
const DISCOVERY = `${PCI} / PCI Device Discovery`;

/** Transitional PCI device id by device type (VIRTIO 1.4 §4.1.2.1). */
const TRANSITIONAL: readonly (readonly [type: number, id: number])[] = [
  [1, 0x1000],
  [2, 0x1001],
  [5, 0x1002],
  [3, 0x1003],
  [8, 0x1004],
  [4, 0x1005],
  [9, 0x1009],
];

/** A device of any type, which does nothing. */
class AnyDevice extends DeviceCore {
  constructor(deviceId: number) {
    super({
      name: `type ${deviceId}`,
      deviceId,
      queueSizes: [4],
      features: FeatureSet.EMPTY,
      configSize: 4,
      environment: nodeEnvironment(),
    });
  }
}

const memory = GuestMemory.allocate(0x10000);
const functionOf = (type: number, options: Partial<VirtioPciOptions> = {}): VirtioPciDevice =>
  new VirtioPciDevice(new AnyDevice(type), { memory, ...options });

/** What a scan finds of one function, with `bytes` in place of its own in the header. */
function scanOf(pci: VirtioPciDevice, bytes: Readonly<Record<number, number>> = {}) {
  const bridge = new PciHostBridge({ environment: nodeEnvironment() });
  bridge.bus.plug(pci);
  const { configRead } = pci;
  pci.configRead = (offset, size) => {
    let value = 0;
    for (let i = size - 1; i >= 0; i--)
      value = value * 256 + (bytes[offset + i] ?? configRead.call(pci, offset + i, 1));
    return value;
  };
  return new PciScanner(bridge, { memory, environment: nodeEnvironment() }).scan();
}

test(
  statements(
    "vendor 0x1af4; device id 0x1040 + type, or the transitional id of the type's row",
    `device: ${DISCOVERY} #1`,
    `device: ${DISCOVERY} #2`,
  ),
  limit,
  () => {
    for (let type = 1; type < 64; type++) {
      const pci = functionOf(type);
      assert.deepEqual([pci.configRead(0, 2), pci.configRead(2, 2)], [0x1af4, 0x1040 + type]);
    }
    for (const [type, id] of TRANSITIONAL)
      for (const modern of [true, false]) {
        const pci = functionOf(type, { legacy: true, modern });
        assert.deepEqual([pci.configRead(0, 2), pci.configRead(2, 2)], [0x1af4, id]);
      }
  },
);

test(statements("every type is found by vendor 0x1af4 and 0x1040 + type", `driver: ${DISCOVERY} #1`), limit, () => {
  for (let type = 0; type < 64; type++) {
    assert.deepEqual(
      scanOf(functionOf(type)).map(({ deviceId }) => deviceId),
      [type],
    );
  }
  assert.deepEqual(scanOf(functionOf(2), { 0: 0xf5 }), []);
  assert.deepEqual(scanOf(functionOf(0), { 2: 0x80 }), []);
});

test(statements("transitional ids are found, as the type of their row", `driver: ${DISCOVERY} #2`), limit, () => {
  for (const [type, id] of TRANSITIONAL) {
    for (const modern of [true, false]) {
      const found = scanOf(functionOf(type, { legacy: true, modern }));
      assert.deepEqual(
        found.map(({ deviceId }) => deviceId),
        [type],
      );
    }
    // A modern device may wear the transitional id too, and its subsystem id says nothing of the type.
    const found = scanOf(functionOf(63), { 2: id % 256, 3: id >> 8, 46: 0x00, 47: 0x11 });
    assert.deepEqual(
      found.map(({ deviceId }) => deviceId),
      [type],
    );
  }
});

test(statements("any revision is taken", `driver: ${DISCOVERY} #3`), limit, () => {
  for (let revision = 0; revision < 256; revision++) {
    assert.equal(scanOf(functionOf(2, { revision })).length, 1);
    assert.equal(scanOf(functionOf(2, { revision, legacy: true })).length, 1);
  }
});

const SHAPES: readonly Partial<VirtioPciOptions>[] = [
  {},
  { vectors: 0 },
  { vectors: 2048 },
  { modernBar: "mem32" },
  { modernBar: "io" },
  { ioNotify: true, pagePerQueue: true },
  { legacy: true, legacyDeviceId: 0x103f },
  { legacy: true, legacyDeviceId: 0x103f, modern: false },
];

test(statements("header, capability list, BARs and MSI-X keep the rules of PCI", `device: ${PCI} #1`), limit, () => {
  for (const options of SHAPES) {
    const { pci } = pciRig(options);
    assert.equal(pci.configRead(0x0e, 1) & 0x7f, 0, "header of type 0");
    // Read-only registers keep their value: ids, class, subsystem, capability pointer, interrupt pin.
    const fixed = [0, 8, 0x2c, 0x34, 0x3d] as const;
    const before = fixed.map((offset) => pci.configRead(offset, 1));
    for (const offset of fixed) pci.configWrite(offset, 1, 0xff);
    assert.deepEqual(
      fixed.map((offset) => pci.configRead(offset, 1)),
      before,
    );
    checkCapabilities(pci);
    const sizes = checkBars(pci);
    checkMsix(pci, sizes, options.vectors ?? 3);
  }
});

/** The list is as the status bit says, within 0x40..0xff, on borders of 4, without overlap, and it ends. */
function checkCapabilities(pci: VirtioPciDevice): void {
  const places: [number, number][] = [];
  const listed = (pci.configRead(6, 2) & 0x10) !== 0;
  let at = listed ? pci.configRead(0x34, 1) : 0;
  assert.equal(listed, pci.configRead(0x34, 1) !== 0);
  for (; at !== 0; at = pci.configRead(at + 1, 1)) {
    const id = pci.configRead(at, 1);
    assert.equal(id === 9 || id === 0x11, true);
    places.push([at, at + (id === 9 ? pci.configRead(at + 2, 1) : 12)]);
    assert.equal(places.length < 20, true);
  }
  places.sort(([a], [b]) => a - b);
  for (const [i, [start, end]] of places.entries())
    assert.equal(start >= 0x40 && start % 4 === 0 && end <= 256 && end <= (places[i + 1]?.[0] ?? 256), true);
}

/** Sizes of the BARs by register, found as a guest finds them: powers of two, nothing that decodes without being told to. */
function checkBars(pci: VirtioPciDevice): number[] {
  const sizes: number[] = new Array(6).fill(0);
  pci.configWrite(4, 2, 3);
  for (let i = 0; i < 6; i++) {
    const register = 0x10 + 4 * i;
    assert.equal(
      pci.bars.every((bar) => bar.address === undefined),
      true,
    );
    pci.configWrite(register, 4, 0xffffffff);
    const answer = pci.configRead(register, 4);
    if (answer === 0) continue;
    const io = (answer & 1) === 1;
    const wide = !io && (answer & 6) === 4;
    const size = (~(answer & (io ? ~3 : ~15)) >>> 0) + 1;
    assert.equal(Number.isInteger(Math.log2(size)) && size >= (io ? 4 : 16) && size <= (io ? 256 : 2 ** 31), true);
    sizes[i] = size;
    // Only the bits above the size keep what is written; then the BAR decodes there.
    pci.configWrite(register, 4, 0x40000000 + size + 1);
    assert.equal(pci.configRead(register, 4), 0x40000000 + size + (answer & (io ? 3 : 15)));
    if (wide) pci.configWrite(register + 4, 4, 1);
    const bar = pci.bars.find(({ index }) => index === i);
    assert.deepEqual([bar?.size, bar?.address], [size, 0x40000000 + size + (wide ? 2 ** 32 : 0)]);
    pci.configWrite(4, 2, 0);
    assert.equal(pci.bars.find(({ index }) => index === i)?.address, undefined);
    pci.configWrite(4, 2, 3);
    pci.configWrite(register, 4, 0);
    if (wide) pci.configWrite(register + 4, 4, 0);
    if (wide) i++;
  }
  return sizes;
}

/** Table and pending bits lie inside their BAR, each on a border of 8, and apart. */
function checkMsix(pci: VirtioPciDevice, sizes: readonly number[], vectors: number): void {
  let at = pci.configRead(0x34, 1);
  while (at !== 0 && pci.configRead(at, 1) !== 0x11) at = pci.configRead(at + 1, 1);
  assert.equal(at !== 0, vectors > 0);
  if (at === 0) return;
  assert.equal((pci.configRead(at + 2, 2) & 0x7ff) + 1, vectors);
  const [table, pending] = [pci.configRead(at + 4, 4), pci.configRead(at + 8, 4)];
  const end = table - (table % 8) + 16 * vectors;
  const pendingEnd = pending - (pending % 8) + 8 * Math.ceil(vectors / 64);
  assert.equal(end <= (sizes[table % 8] as number) && pendingEnd <= (sizes[pending % 8] as number), true);
  assert.equal(table % 8 !== pending % 8 || end <= pending - (pending % 8), true);
}
