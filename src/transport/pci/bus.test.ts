import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { GuestMemory } from "../../memory/guest-memory.ts";
import { LoopDevice, nodeEnvironment } from "../../testing/loop-device.ts";
import { PciBus } from "./bus.ts";
import { BarAllocator, DriverFunction } from "./driver-function.ts";
import type { AccessSize } from "./function.ts";
import { PciHostBridge } from "./host-bridge.ts";
import { VirtioPciDevice, type VirtioPciOptions } from "./virtio-pci-device.ts";

const limit = { timeout: 10_000 };
const memory = GuestMemory.allocate(0x10000);
const make = (options: Partial<VirtioPciOptions> = {}, device = new LoopDevice()) =>
  new VirtioPciDevice(device, { memory, ...options });

function setUp() {
  const lines: string[] = [];
  const messages: [number, number][] = [];
  const bus = new PciBus({
    sendMsi: (address, data) => void messages.push([address, data]),
    setIntx: (line, asserted) => void lines.push(`${"ABCD"[line]}${asserted ? "+" : "-"}`),
  });
  return { bus, lines, messages };
}

/** Brings a device up by its registers, far enough for interrupts. */
function makeLive(pci: VirtioPciDevice): void {
  pci.barWrite(4, 8, 4, 1);
  pci.barWrite(4, 12, 4, 1);
  pci.barWrite(4, 0x14, 1, 15);
  assert.equal(pci.barRead(4, 0x14, 1), 15);
}

test("slots: the first free one, a chosen one, a taken one", limit, () => {
  const { bus } = setUp();
  assert.equal(bus.plug(make()), 0);
  assert.equal(bus.plug(make(), 4), 4);
  assert.equal(bus.plug(make()), 1);
  assert.throws(() => bus.plug(make(), 4), { code: "ERR_VIRTKIT_PCI_SLOT", message: /taken by loop0/ });
  assert.throws(() => bus.plug(make(), 32), { code: "ERR_VIRTKIT_PCI_SLOT" });
  bus.plug(make(), 4, 7);
  assert.equal(bus.configRead(4, 7, 0, 2), 0x1af4);
  assert.equal(bus.configRead(4, 1, 0, 4), 0xffffffff);
  assert.equal(bus.configRead(31, 0, 0, 2), 0xffff);
  assert.deepEqual([bus.configRead(4, 0, 0x0e, 1), bus.configRead(4, 7, 0x0e, 1)], [0x80, 0]);
  assert.equal(bus.configRead(4, 0, 0x0c, 4), 0x00800000);
  assert.equal(bus.configRead(1, 0, 0x0e, 1), 0);
  for (let i = 0; i < 29; i++) bus.plug(make());
  assert.throws(() => bus.plug(make()), { code: "ERR_VIRTKIT_PCI_SLOT", message: /all 32/ });
});

test("addresses are decoded, and float where nobody is", limit, () => {
  const { bus } = setUp();
  const device = new LoopDevice();
  bus.plug(make({ modernBar: "mem32", ioNotify: true }, device), 2);
  assert.deepEqual([bus.memRead(0xe0002000, 4), bus.ioRead(0xc000, 2)], [0xffffffff, 0xffff]);
  bus.configWrite(2, 0, 0x20, 4, 0xe0000000);
  bus.configWrite(2, 0, 0x18, 4, 0xc000);
  bus.configWrite(2, 0, 4, 2, 3);
  assert.deepEqual([bus.memRead(0xe0002000, 4), bus.ioRead(0xc000, 2)], [0x89abcdef, 0]);
  assert.deepEqual([bus.memRead(0xe0003fff, 1), bus.memRead(0xe0004000, 1)], [0, 0xff]);
  assert.equal(bus.memRead(0xdfffffff, 4), 0xffffffff);
  bus.memWrite(0xe0002008, 4, 0x1234);
  assert.equal(device.config.read(8, 4), 0x1234);
  bus.configWrite(2, 0, 0x20, 4, 0xe1000000);
  assert.deepEqual([bus.memRead(0xe0002000, 4), bus.memRead(0xe1002000, 2)], [0xffffffff, 0xcdef]);
  bus.configWrite(2, 0, 4, 2, 0);
  assert.equal(bus.memRead(0xe1002000, 2), 0xffff);
  bus.configWrite(2, 0, 4, 2, 3);
  const { resets } = device;
  bus.unplug(2);
  assert.equal(device.resets, resets + 1);
  assert.deepEqual([bus.windows.length, bus.memRead(0xe1002000, 2), bus.at(2)], [0, 0xffff, undefined]);
});

test("interrupt lines are the OR of the pins wired to them", limit, () => {
  const { bus, lines } = setUp();
  const devices = [0, 1, 2].map(() => new LoopDevice());
  const functions = devices.map((device) => make({ vectors: 0 }, device));
  functions.forEach((pci, i) => void bus.plug(pci, [1, 5, 6][i]));
  for (const pci of functions) makeLive(pci);
  const raise = (i: number) => devices[i]?.config.update(() => undefined);
  const lower = (i: number) => functions[i]?.barRead(4, 0x1000, 1);
  raise(0);
  raise(1);
  raise(2);
  assert.deepEqual(lines.splice(0), ["B+", "C+"]);
  lower(0);
  assert.deepEqual(lines.splice(0), []);
  lower(1);
  assert.deepEqual(lines.splice(0), ["B-"]);
  bus.unplug(6);
  assert.deepEqual(lines.splice(0), ["C-"]);
  bus.reset();
});

test("a function that was unplugged sends no messages", limit, () => {
  const { bus, messages } = setUp();
  const device = new LoopDevice();
  const pci = make({}, device);
  bus.plug(pci, 3);
  const fire = () => {
    pci.configWrite(0x9a, 2, 0x8000);
    pci.barWrite(1, 12, 4, 0);
    makeLive(pci);
    pci.barWrite(4, 0x10, 2, 0);
    device.config.update(() => undefined);
  };
  fire();
  assert.equal(messages.length, 1);
  bus.unplug(3);
  fire();
  assert.equal(messages.length, 1);
});

test("a driver keeps the addresses that firmware gave", limit, () => {
  const bridge = new PciHostBridge({ environment: nodeEnvironment() });
  bridge.bus.plug(make({ ioNotify: true }), 0);
  bridge.configWrite(0, 0, 0x14, 4, 0xfeb00000);
  bridge.configWrite(0, 0, 0x24, 4, 0x70);
  const bars = new DriverFunction(bridge, 0, 0).assignBars(new BarAllocator());
  assert.deepEqual(bars, [
    undefined,
    { kind: "mem32", size: 0x1000, address: 0xfeb00000 },
    { kind: "io", size: 4, address: 0xc000 },
    undefined,
    { kind: "mem64", size: 0x4000, address: 0x70_00000000 },
    undefined,
  ]);
  assert.equal(bridge.bus.windows.length, 3);
  const full = new PciHostBridge({ environment: nodeEnvironment(), resources: { mem32: { base: 0x1000, size: 16 } } });
  full.bus.plug(make(), 0);
  assert.throws(() => new DriverFunction(full, 0, 0).assignBars(new BarAllocator()), {
    code: "ERR_VIRTKIT_PCI_RESOURCES",
  });
});

test("a capability list that loops or points nowhere ends", limit, () => {
  const bridge = new PciHostBridge({ environment: nodeEnvironment() });
  const bytes = new Map<number, number>([
    [6, 0x10],
    [0x34, 0x40],
    [0x40, 9],
    [0x41, 0x44],
    [0x44, 9],
    [0x45, 0x40],
  ]);
  bridge.configRead = (_device, _fn, offset) => bytes.get(offset) ?? 0;
  assert.equal(new DriverFunction(bridge, 0, 0).capabilities(9).length, 48);
  bytes.set(0x41, 0x3c);
  assert.deepEqual(new DriverFunction(bridge, 0, 0).capabilities(9), [0x40]);
});

test("an interrupt line that nobody quiets is given up", limit, () => {
  const said: string[] = [];
  const environment = nodeEnvironment({ log: (level, message) => void said.push(`${level} ${message}`) });
  const bridge = new PciHostBridge({ environment, delivery: "direct" });
  const device = new LoopDevice();
  const pci = make({ vectors: 0 }, device);
  bridge.bus.plug(pci, 0);
  makeLive(pci);
  let calls = 0;
  const remove = bridge.onIntx(0, 1, () => void calls++);
  device.config.update(() => undefined);
  assert.equal(calls, 1000);
  assert.equal(said.length, 1);
  remove();
  pci.barRead(4, 0x1000, 1);
  device.config.update(() => undefined);
  assert.equal(calls, 1000);
});

const SIZES = fc.constantFrom<AccessSize>(1, 2, 4);
const OFFSETS = fc.oneof(
  fc.nat(0x120),
  fc.nat(0x4100),
  fc.constantFrom(0, 0x14, 0x16, 0x1c, 0x94, 0x98, 0x9a, 0x800, 0xfff, 0x1000, 0x2008, 0x3000, 0x3004, 0xffffffff),
);
const VALUES = fc.oneof(fc.nat(0xffffffff), fc.constantFrom(0, 1, 3, 4, 11, 15, 0x8000, 0xffff, 0xffffffff, 0x1000));
const ACCESS = fc.record({
  kind: fc.constantFrom("config", "bar"),
  write: fc.boolean(),
  bar: fc.oneof(fc.constant(4), fc.nat(7)),
  offset: OFFSETS,
  size: SIZES,
  value: VALUES,
});

for (const live of [false, true])
  test(`hostile register accesses ${live ? "on a live device " : ""}never throw`, { timeout: 120_000 }, () => {
    const property = fc.property(fc.array(ACCESS, { maxLength: 80 }), fc.boolean(), (accesses, ioNotify) => {
      const device = new LoopDevice();
      const own = GuestMemory.allocate(0x10000);
      const pci = new VirtioPciDevice(device, { memory: own, ioNotify });
      const bytes = own.regions[0]?.u8 as Uint8Array;
      bytes.fill(0x5a);
      new PciBus({ sendMsi: () => undefined, setIntx: () => undefined }).plug(pci);
      if (live) {
        makeLive(pci);
        pci.barWrite(4, 0x20, 4, 0x1000);
        pci.barWrite(4, 0x28, 4, 0x3000);
        pci.barWrite(4, 0x30, 4, 0x5000);
      }
      for (const { kind, write, bar, offset, size, value } of accesses) {
        const trimmed = value % 2 ** (8 * size);
        if (write && kind === "config") pci.configWrite(offset & 0xff, size, trimmed);
        else if (write) pci.barWrite(bar, offset, size, trimmed);
        const read = kind === "config" ? pci.configRead(offset & 0xff, size) : pci.barRead(bar, offset, size);
        assert.ok(Number.isInteger(read) && read >= 0 && read < 2 ** (8 * size), `read ${read}`);
      }
      // A device that never went live has no business in guest memory.
      if (!device.ready && !live) assert.ok(bytes.every((byte) => byte === 0x5a));
    });
    fc.assert(property, { numRuns: 1500 });
  });
