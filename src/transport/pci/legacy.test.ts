import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { FeatureSet } from "../../common/feature-set.ts";
import { GuestMemory } from "../../memory/guest-memory.ts";
import { LOOP_CFG_WRITABLE, LoopDevice, nodeEnvironment } from "../../testing/loop-device.ts";
import { BAR4, bringUp, capabilities, NO_VECTOR, type PciRig, pciRig, send } from "../../testing/pci-guest.ts";
import { RawSplitRing } from "../../testing/raw-ring.ts";
import { PciHostBridge } from "./host-bridge.ts";
import { type AccessSize, PciScanner, VirtioPciDevice, type VirtioPciOptions } from "./index.ts";

// Offsets are written out as in a guest's own headers, so that a wrong constant of ours cannot hide behind itself.
const limit = { timeout: 10_000 };
const PAGE = 0x10;

/** A function with a legacy header, and what reads and writes it. */
function setUp(options: Partial<VirtioPciOptions> = {}, device = new LoopDevice()) {
  const rig = pciRig({ legacy: true, legacyDeviceId: 0x103f, ...options }, device);
  const inl = (offset: number) => rig.pci.barRead(0, offset, 4);
  const inw = (offset: number) => rig.pci.barRead(0, offset, 2);
  const inb = (offset: number) => rig.pci.barRead(0, offset, 1);
  const outl = (offset: number, value: number) => rig.pci.barWrite(0, offset, 4, value);
  const outw = (offset: number, value: number) => rig.pci.barWrite(0, offset, 2, value);
  const outb = (offset: number, value: number) => rig.pci.barWrite(0, offset, 1, value);
  return { ...rig, inl, inw, inb, outl, outw, outb };
}
type Rig = ReturnType<typeof setUp>;

/** Queue 0 of 64 entries at page 0x10: descriptors 0x400 bytes, the used ring on the next page border. */
function legacyRing({ memory, outl, outw }: Rig): RawSplitRing {
  outw(14, 0);
  outl(8, PAGE);
  const view = memory.regions[0]?.view as DataView;
  return new RawSplitRing(view, { size: 64, desc: 0x10000, driver: 0x10400, device: 0x11000 });
}

function offer(rig: Rig, ring: RawSplitRing): void {
  ring.writeDescriptor(0, { address: 0x8000, length: 4, flags: 1, next: 1 });
  ring.writeDescriptor(1, { address: 0x9000, length: 4, flags: 2 });
  ring.offer(0);
  rig.outw(16, 0);
}

test("ids of transitional and of legacy devices: revision 0, the type in the subsystem id", limit, () => {
  for (const modern of [true, false]) {
    const { pci } = setUp({ modern });
    assert.deepEqual([pci.configRead(0, 4), pci.configRead(8, 1)], [0x103f1af4, 0]);
    assert.equal(pci.configRead(0x2c, 4), 0x003f1af4);
    assert.deepEqual(
      pci.bars.map((bar) => [bar.index, bar.kind, bar.size]),
      [[0, "io", 64], ...(modern ? [[4, "mem64", 0x4000]] : []), [1, "mem32", 4096]],
    );
  }
  assert.deepEqual(capabilities(setUp({ modern: false, vectors: 0 })), []);
  assert.throws(() => setUp({ legacy: false, modern: false }), { code: "ERR_VIRTKIT_PCI_LEGACY" });
  const memory = GuestMemory.allocate(4096);
  assert.throws(() => new VirtioPciDevice(new LoopDevice(), { memory, legacy: true }), {
    code: "ERR_VIRTKIT_PCI_LEGACY",
  });
});

test("legacy header: features, queue size, PFN, status, a chain, the ISR", limit, () => {
  const rig = setUp({ modern: false, vectors: 0 });
  const { inl, inw, inb, outl, outw, outb, device, intx } = rig;
  assert.equal(inl(0), device.legacyFeatures.word(0));
  assert.equal(inl(0) & 0x09000000, 0x09000000);
  outb(18, 1);
  outb(18, 3);
  outl(4, 0xffffffff);
  assert.equal(inl(4), inl(0));
  assert.deepEqual([inw(12), inl(8)], [64, 0]);
  // The size is not the driver's to choose.
  outw(12, 8);
  assert.equal(inw(12), 64);
  const ring = legacyRing(rig);
  assert.equal(inl(8), PAGE);
  outb(18, 7);
  assert.equal(inb(18), 7);
  assert.deepEqual(device.features, device.legacyFeatures);
  offer(rig, ring);
  assert.deepEqual([ring.usedIdx, intx.splice(0)], [1, [true]]);
  assert.deepEqual([inb(19), intx.splice(0), inb(19)], [1, [false], 0]);
  device.config.update(() => undefined);
  assert.equal(inb(19), 2);
  outw(14, 5);
  assert.deepEqual([inw(12), inl(8)], [0, 0]);
  outb(18, 0);
  outw(14, 0);
  assert.deepEqual([inb(18), inl(8), device.queue(0)], [0, 0, undefined]);
});

// device: ... / Legacy Interfaces: A Note on PCI Device Layout
test("legacy header: the configuration is at 20, or at 24 while MSI-X is enabled", limit, () => {
  const rig = setUp();
  const { pci, inl, inw, outl, outw, device } = rig;
  const msix = capabilities(rig).find((c) => c.id === 0x11)?.at as number;
  assert.equal(inl(20), 0x89abcdef);
  pci.configWrite(msix + 2, 2, 0x8000);
  assert.deepEqual([inw(20), inw(22), inl(24)], [NO_VECTOR, NO_VECTOR, 0x89abcdef]);
  outw(20, 1);
  outw(22, 2);
  assert.deepEqual([inw(20), inw(22)], [1, 2]);
  outw(22, 3);
  assert.equal(inw(22), NO_VECTOR);
  outl(24 + LOOP_CFG_WRITABLE, 0xcafebabe);
  pci.configWrite(msix + 2, 2, 0);
  assert.equal(inl(20 + LOOP_CFG_WRITABLE), 0xcafebabe);
  assert.equal(device.config.read(LOOP_CFG_WRITABLE, 4), 0xcafebabe);
  assert.equal(inl(60), 0);
});

test("a transitional device: each driver takes its interface, a reset lets another come", limit, () => {
  const rig = setUp({ vectors: 0 });
  const { read, write, outb, outl, outw, inb, device } = rig;
  // The modern structures do not show what only the legacy interface has.
  assert.equal(read(4, 4) & 0x09000000, 0);
  const modern = bringUp(rig as PciRig);
  send(rig as PciRig, modern);
  assert.equal(modern.usedIdx, 1);
  const faults = device.faults;
  outb(18, 3);
  outl(4, 0);
  outl(8, 0x20);
  outw(16, 0);
  assert.ok(device.faults > faults);
  assert.deepEqual([device.broken, read(0x14, 1)], [undefined, 15]);
  outb(18, 0);
  assert.equal(read(0x14, 1), 0);
  outb(18, 3);
  outl(4, 1);
  const ring = legacyRing(rig);
  outb(18, 7);
  offer(rig, ring);
  assert.equal(ring.usedIdx, 1);
  assert.deepEqual(device.features, FeatureSet.of(0));
  // FEATURES_OK has no meaning here.
  write(0x14, 1, 15);
  assert.equal(inb(18), 7);
  write(0x14, 1, 0);
  send(rig as PciRig, bringUp(rig as PciRig));
  assert.equal(device.broken, undefined);
});

test("shared memory: a capability of 64 bits for each region, found by the driver, bytes behind the BAR", limit, () => {
  const first = new Uint8Array(4096).fill(1);
  const second = new Uint8Array(12288).fill(2);
  const device = new LoopDevice({
    sharedMemory: [
      { id: 3, memory: first },
      { id: 200, memory: second },
    ],
  });
  const rig = pciRig({}, device);
  const seen = capabilities(rig).filter((c) => c.id === 9 && c.type === 8);
  assert.deepEqual(
    seen.map((c) => [rig.pci.configRead(c.at + 5, 1), c.length, c.bar, c.offset, c.size]),
    [
      [200, 24, 2, 4096, 12288],
      [3, 24, 2, 0, 4096],
    ],
  );
  for (const { at } of seen)
    assert.deepEqual(
      [16, 20].map((o) => rig.pci.configRead(at + o, 4)),
      [0, 0],
    );
  assert.equal(rig.pci.barRead(2, 4094, 4), 0x02020101);
  rig.pci.barWrite(2, 4095, 2, 0xabcd);
  assert.deepEqual([first[4095], second[0]], [0xcd, 0xab]);
  assert.equal(rig.pci.barRead(2, 16384, 4), 0);
  const environment = nodeEnvironment();
  const bridge = new PciHostBridge({ environment });
  const again = new LoopDevice({ sharedMemory: device.sharedMemory });
  bridge.bus.plug(new VirtioPciDevice(again, { memory: rig.memory }));
  const [transport] = new PciScanner(bridge, { memory: rig.memory, environment }).scan();
  const region = transport?.sharedMemory?.(200);
  assert.equal(region?.length, 12288);
  assert.equal(bridge.memRead((region?.address ?? 0) + 4, 4), 0x02020202);
  assert.equal(transport?.sharedMemory?.(4), undefined);
  for (const memory of [new Uint8Array(0), new Uint8Array(100)])
    assert.throws(() => new LoopDevice({ sharedMemory: [{ id: 0, memory }] }), { code: "ERR_VIRTKIT_SHARED_MEMORY" });
  assert.throws(() => new LoopDevice({ sharedMemory: [0, 0].map((id) => ({ id, memory: first })) }), {
    code: "ERR_VIRTKIT_SHARED_MEMORY",
  });
});

const ACCESS = fc.record({
  write: fc.boolean(),
  bar: fc.oneof({ weight: 6, arbitrary: fc.constant(0) }, fc.constantFrom(1, 2, 4)),
  offset: fc.oneof(fc.nat(70), fc.constantFrom(0, 4, 8, 12, 14, 16, 18, 19, 20, 22, 24, 0x3000, 0xffffffff)),
  size: fc.constantFrom<AccessSize>(1, 2, 4),
  value: fc.oneof(fc.nat(0xffffffff), fc.constantFrom(0, 1, 3, 4, 7, 8, 11, 15, 0x10, 0x40, 0xffff, 0xffffffff)),
});

for (const modern of [true, false])
  test(`hostile accesses to a ${modern ? "transitional" : "legacy"} device never throw, and a reset brings it back`, {
    timeout: 60_000,
  }, () => {
    fc.assert(
      fc.property(fc.array(ACCESS, { maxLength: 80 }), fc.boolean(), (accesses, msix) => {
        const rig = setUp({ modern });
        const { pci, outb, outl, device, inb } = rig;
        if (msix) pci.configWrite((capabilities(rig).find((c) => c.id === 0x11)?.at as number) + 2, 2, 0x8000);
        for (const { write, bar, offset, size, value } of accesses) {
          if (write) pci.barWrite(bar, offset, size, value % 2 ** (8 * size));
          const seen = pci.barRead(bar, offset, size);
          assert.ok(Number.isInteger(seen) && seen >= 0 && seen < 2 ** (8 * size), `read ${seen}`);
        }
        outb(18, 0);
        assert.deepEqual([inb(18), device.broken, device.queue(0)], [0, undefined, undefined]);
        rig.memory.regions[0]?.u8.fill(0);
        outb(18, 3);
        outl(4, 0);
        const ring = legacyRing(rig);
        outb(18, 7);
        offer(rig, ring);
        assert.equal(ring.usedIdx, 1);
        if (modern) assert.equal(pci.barRead(BAR4, 0x14, 1), 7);
      }),
      { numRuns: 500 },
    );
  });
