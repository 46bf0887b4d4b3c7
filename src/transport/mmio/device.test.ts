import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { FeatureSet } from "../../common/feature-set.ts";
import { GuestMemory } from "../../memory/guest-memory.ts";
import { LOOP_CFG_WRITABLE, LoopDevice, nodeEnvironment } from "../../testing/loop-device.ts";
import { RawSplitRing } from "../../testing/raw-ring.ts";
import { statements } from "../../testing/statements.ts";
import { type MmioAccessSize, MmioLink, openMmio, VirtioMmioDevice, type VirtioMmioOptions } from "./index.ts";

// Offsets are written out as in a guest's own headers, so that a wrong constant of ours cannot hide behind itself.
const limit = { timeout: 10_000 };
const LAYOUT = "Virtio Transport Options / Virtio Over MMIO / MMIO Device Register Layout";

function setUp(options: Partial<VirtioMmioOptions> = {}, device = new LoopDevice()) {
  const memory = GuestMemory.allocate(0x100000);
  const mmio = new VirtioMmioDevice(device, { memory, ...options });
  const irq: boolean[] = [];
  mmio.connect((asserted) => void irq.push(asserted));
  irq.length = 0;
  const read = (offset: number) => mmio.read(offset, 4);
  const write = (offset: number, value: number) => mmio.write(offset, 4, value);
  const view = memory.regions[0]?.view as DataView;
  return { mmio, device, memory, irq, read, write, view };
}
type Rig = ReturnType<typeof setUp>;

function offer(ring: RawSplitRing): void {
  ring.writeDescriptor(0, { address: 0x8000, length: 4, flags: 1, next: 1 });
  ring.writeDescriptor(1, { address: 0x9000, length: 4, flags: 2 });
  ring.offer(0);
}

function bringUp({ read, write, view }: Rig, features = 0x100): RawSplitRing {
  write(0x70, 0);
  for (const [word, bits] of [0, 1 | features, 0].entries()) {
    write(0x24, word);
    write(0x20, bits);
  }
  for (const status of [1, 3, 11]) write(0x70, status);
  assert.equal(read(0x70), 11);
  write(0x30, 0);
  write(0x38, 8);
  for (const [at, value] of [
    [0x80, 0x1000],
    [0x90, 0x2000],
    [0xa0, 0x3000],
  ] as const) {
    write(at, value);
    write(at + 4, 0);
  }
  write(0x44, 1);
  write(0x70, 15);
  return new RawSplitRing(view, { size: 8, desc: 0x1000, driver: 0x2000, device: 0x3000 });
}

/** A legacy queue of 8 at page 0x10, its used ring on the next multiple of `align`. */
function legacyRing({ write, view }: Rig, align = 64, pageSize = 4096): RawSplitRing {
  write(0x28, pageSize);
  write(0x30, 0);
  write(0x38, 8);
  write(0x3c, align);
  write(0x40, 0x10000 / pageSize);
  const end = 0x10000 + 16 * 8 + 6 + 2 * 8;
  return new RawSplitRing(view, {
    size: 8,
    desc: 0x10000,
    driver: 0x10080,
    device: Math.ceil(end / align) * align,
  });
}

test(
  statements("mmio registers start with what the spec says", `device: ${LAYOUT} #1`, `device: ${LAYOUT} #2`),
  limit,
  () => {
    for (const version of [1, 2] as const) {
      const { read, device } = setUp({ version });
      assert.deepEqual([read(0), read(4), read(8), read(0xc)], [0x74726976, version, device.deviceId, 0x554d4551]);
      assert.equal(read(0x34), 64);
      for (const offset of [0x44, 0x40, 0x60, 0x70, 0xc0]) assert.equal(read(offset), 0, `offset ${offset}`);
    }
    assert.throws(() => setUp({ version: 3 as 2 }), { code: "ERR_VIRTKIT_MMIO_VERSION" });
  },
);

test("mmio: control registers take aligned 32-bit accesses, the configuration any", limit, () => {
  const { mmio, device } = setUp();
  for (const size of [1, 2] as const) {
    assert.equal(mmio.read(0, size), 0);
    mmio.write(0x70, size, 1);
  }
  assert.equal(mmio.read(1, 4), 0);
  assert.equal(mmio.read(0x70, 4), 0);
  mmio.write(0x72, 4, 1);
  assert.equal(mmio.read(0x70, 4), 0);
  assert.deepEqual([mmio.read(0x100, 1), mmio.read(0x100, 2), mmio.read(0x100, 4)], [0xef, 0xcdef, 0x89abcdef]);
  mmio.write(0x100 + LOOP_CFG_WRITABLE, 2, 0xbeef);
  assert.equal(device.config.read(LOOP_CFG_WRITABLE, 4), 0xbeef);
  assert.equal(mmio.read(0x100 + 4096, 4), 0);
});

test(
  statements(
    "mmio: interrupt status, acknowledge and level, reset, generation",
    `device: ${LAYOUT} #3`,
    `device: ${LAYOUT} #5`,
  ),
  limit,
  () => {
    const rig = setUp();
    const { read, write, irq, device } = rig;
    const ring = bringUp(rig);
    offer(ring);
    write(0x50, 0);
    assert.deepEqual([irq.splice(0), read(0x60)], [[true], 1]);
    device.config.update(() => undefined);
    assert.deepEqual([irq.splice(0), read(0x60)], [[], 3]);
    write(0x64, 1);
    assert.deepEqual([irq.splice(0), read(0x60)], [[], 2]);
    write(0x64, 0xffffffff);
    assert.deepEqual([irq.splice(0), read(0x60)], [[false], 0]);
    const before = read(0xfc);
    device.config.update(() => undefined);
    assert.notEqual(read(0xfc), before);
    assert.deepEqual(irq.splice(0), [true]);
    write(0x70, 0);
    assert.deepEqual([irq.splice(0), read(0x60), read(0x70), read(0x44)], [[false], 0, 0, 0]);
  },
);

test("mmio: QueueReady 0 takes a queue out of use and keeps its addresses", limit, async () => {
  const rig = setUp();
  const { read, write, device } = rig;
  bringUp(rig);
  assert.deepEqual([read(0x44), device.queue(0) !== undefined], [1, true]);
  write(0x44, 0);
  assert.deepEqual([read(0x44), device.queue(0)], [0, undefined]);
  write(0x44, 1);
  assert.equal(device.queue(0)?.queue.size, 8);
  device.borrowing = true;
  write(0x44, 0);
  assert.equal(read(0x44), 1);
  device.release();
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(read(0x44), 0);
});

test(
  statements("mmio: QueueReset", `device: ${LAYOUT} #9`, `device: ${LAYOUT} #11`, `device: ${LAYOUT} #12`),
  limit,
  async () => {
    const rig = setUp();
    const { read, write, device } = rig;
    bringUp(rig);
    assert.equal(read(0xc0), 0);
    device.borrowing = true;
    write(0xc0, 1);
    assert.deepEqual([read(0xc0), device.queue(0)], [1, undefined]);
    device.release();
    await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual([read(0xc0), read(0x44)], [0, 0]);
  },
);

test("mmio: shared memory registers; all ones for a region that does not exist", limit, () => {
  const device = new LoopDevice({ sharedMemory: [{ id: 7, memory: new Uint8Array(8192) }] });
  const rig = setUp({ sharedMemoryAt: new Map([[7, 0x5_0000_1000]]) }, device);
  const { read, write, memory, mmio } = rig;
  const seen = () => [0xb0, 0xb4, 0xb8, 0xbc].map(read);
  assert.deepEqual(seen(), Array(4).fill(0xffffffff));
  write(0xac, 7);
  assert.deepEqual(seen(), [8192, 0, 0x1000, 5]);
  const transport = openMmio(new MmioLink(mmio, { environment: nodeEnvironment() }), {
    memory,
    environment: nodeEnvironment(),
  });
  assert.deepEqual(transport?.sharedMemory(7), { id: 7, address: 0x5_0000_1000, length: 8192 });
  assert.equal(transport?.sharedMemory(8), undefined);
  const bare = setUp();
  assert.deepEqual([0xb0, 0xb4, 0xb8, 0xbc].map(bare.read), Array(4).fill(0xffffffff));
});

test("mmio driver: what is no device is refused, a placeholder passed over", limit, () => {
  const open = (id: number, magic = 0x74726976, version = 2) =>
    openMmio(
      { read: (offset) => [magic, version, id][offset / 4] ?? 0, write: () => undefined, onIrq: () => () => undefined },
      { memory: GuestMemory.allocate(4096), environment: nodeEnvironment() },
    );
  assert.equal(open(0), undefined);
  assert.equal(open(2)?.deviceId, 2);
  assert.throws(() => open(2, 0x74726977), { code: "ERR_VIRTKIT_MMIO" });
  assert.throws(() => open(2, 0x74726976, 3), { code: "ERR_VIRTKIT_MMIO" });
});

test("legacy mmio: 32 feature bits, page and alignment of the driver's choice, the page comes back", limit, () => {
  for (const [align, pageSize] of [
    [4, 4096],
    [64, 512],
    [4096, 65536],
  ] as const) {
    const rig = setUp({ version: 1 });
    const { read, write, device, irq } = rig;
    write(0x14, 0);
    assert.equal(read(0x10), device.legacyFeatures.word(0));
    assert.equal(read(0x10) & ((1 << 24) | (1 << 27)), (1 << 24) | (1 << 27));
    write(0x14, 1);
    assert.equal(read(0x10), 0);
    write(0x70, 1);
    write(0x70, 3);
    write(0x24, 0);
    write(0x20, 0xffffffff);
    write(0x24, 1);
    write(0x20, 0xffffffff);
    const ring = legacyRing(rig, align, pageSize);
    assert.equal(read(0x40), 0x10000 / pageSize);
    assert.deepEqual(device.features, FeatureSet.EMPTY);
    write(0x70, 7);
    assert.equal(read(0x70), 7);
    assert.deepEqual(device.features, device.legacyFeatures);
    offer(ring);
    write(0x50, 0);
    assert.equal(ring.usedIdx, 1);
    assert.deepEqual(irq, [true]);
    write(0x40, 0);
    assert.deepEqual([read(0x40), device.queue(0)], [0, undefined]);
    // A driver's reset keeps the page size.
    write(0x70, 0);
    write(0x30, 0);
    write(0x38, 8);
    write(0x3c, align);
    write(0x40, 0x10000 / pageSize);
    write(0x70, 7);
    assert.equal(device.broken, undefined);
    assert.ok(device.queue(0));
  }
});

test("legacy mmio: a driver may use the device before DRIVER_OK, and before it writes features", limit, () => {
  const rig = setUp({ version: 1 });
  const { read, write, device, irq } = rig;
  write(0x70, 3);
  const ring = legacyRing(rig);
  offer(ring);
  assert.equal(ring.usedIdx, 0);
  write(0x50, 0);
  assert.equal(ring.usedIdx, 1);
  assert.deepEqual([irq, device.ready], [[true], true]);
  const before = device.queue(0);
  write(0x24, 0);
  write(0x20, 1);
  assert.deepEqual([...device.features], [0]);
  // The rings' own features are latched when a queue starts, so it has to be another one now.
  assert.notEqual(device.queue(0), before);
  ring.offer(0);
  write(0x50, 0);
  assert.equal(ring.usedIdx, 2);
  write(0x70, 7);
  ring.offer(0);
  write(0x50, 0);
  assert.equal(ring.usedIdx, 3);
  write(0x70, 0);
  assert.deepEqual([read(0x70), device.ready, device.broken], [0, false, undefined]);
});

test("legacy mmio: a place that no queue can have breaks the device, not the host", limit, () => {
  for (const [pageSize, align, page] of [
    [0, 4096, 1],
    [4096, 0, 1],
    [4096, 3, 1],
    [1, 4096, 1],
    [4096, 2, 1],
    [4096, 2 ** 31, 1],
    [0xffffffff, 4096, 0xffffffff],
    [4096, 4096, 0xfffff],
  ] as const) {
    const { read, write, device } = setUp({ version: 1 });
    write(0x28, pageSize);
    write(0x3c, align);
    write(0x40, page);
    write(0x70, 7);
    assert.ok(device.broken !== undefined, `${pageSize} ${align} ${page}`);
    assert.equal(read(0x70) & 0x40, 0x40);
  }
});

const OFFSETS = fc.oneof(
  fc.constantFrom(0x10, 0x14, 0x20, 0x24, 0x28, 0x30, 0x34, 0x38, 0x3c, 0x40, 0x44, 0x50, 0x60, 0x64, 0x70, 0xac, 0xc0),
  fc.nat(0x90).map((n) => 4 * n),
  fc.nat(0x1200),
  fc.constant(0xffffffff),
);
const ACCESS = fc.record({
  write: fc.boolean(),
  offset: OFFSETS,
  size: fc.oneof({ weight: 5, arbitrary: fc.constant<MmioAccessSize>(4) }, fc.constantFrom<MmioAccessSize>(1, 2)),
  value: fc.oneof(fc.nat(0xffffffff), fc.constantFrom(0, 1, 2, 3, 4, 7, 11, 15, 64, 0x1000, 0xffffffff)),
});

for (const version of [1, 2] as const)
  test(`mmio: whatever is written to version ${version}, reads are in range, and a reset brings it back`, {
    timeout: 60_000,
  }, () => {
    fc.assert(
      fc.property(fc.array(ACCESS, { maxLength: 60 }), (accesses) => {
        const rig = setUp({ version });
        const { mmio, read, write, device } = rig;
        for (const { write: isWrite, offset, size, value } of accesses) {
          if (isWrite) mmio.write(offset, size, value % 2 ** (8 * size));
          else {
            const seen = mmio.read(offset, size);
            assert.ok(Number.isInteger(seen) && seen >= 0 && seen < 2 ** (8 * size), `${seen} at ${offset}`);
          }
        }
        write(0x70, 0);
        assert.deepEqual([read(0x70), read(0x60), device.broken, device.queue(0)], [0, 0, undefined, undefined]);
        let ring: RawSplitRing;
        if (version === 2) ring = bringUp(rig);
        else {
          rig.memory.regions[0]?.u8.fill(0);
          write(0x70, 3);
          ring = legacyRing(rig);
          write(0x70, 7);
        }
        offer(ring);
        write(0x50, 0);
        assert.equal(ring.usedIdx, 1);
      }),
      { numRuns: 400 },
    );
  });
