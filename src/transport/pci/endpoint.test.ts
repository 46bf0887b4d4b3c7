import assert from "node:assert/strict";
import { test } from "node:test";
import { capabilities, pciRig as setUp } from "../../testing/pci-guest.ts";

const limit = { timeout: 10_000 };

test("header as QEMU's modern devices have it", limit, () => {
  const rig = setUp();
  const { pci } = rig;
  assert.equal(pci.configRead(0, 4), 0x107f1af4);
  assert.equal(pci.configRead(8, 1), 1);
  assert.equal(pci.configRead(8, 4), 0x00ff0001);
  assert.equal(pci.configRead(0x0e, 1), 0);
  assert.equal(pci.configRead(0x2c, 4), 0x11001af4);
  assert.equal(pci.configRead(0x3d, 1), 1);
  assert.equal(pci.configRead(0x30, 4), 0);
  assert.equal(pci.configRead(6, 2) & 0x10, 0x10);
  assert.equal(setUp({ classCode: 0x0100 }).pci.configRead(0x0a, 2), 0x0100);
  // Read-only fields stay.
  for (const offset of [0, 4, 8, 12, 0x2c, 0x30, 0x34, 0x3c]) pci.configWrite(offset, 4, 0xffffffff);
  assert.equal(pci.configRead(0, 4), 0x107f1af4);
  assert.equal(pci.configRead(8, 4), 0x00ff0001);
  assert.equal(pci.configRead(0x2c, 4), 0x11001af4);
  assert.equal(pci.configRead(0x3c, 4), 0x000001ff);
  assert.equal(pci.configRead(4, 2), 0x0547);
});

test("capabilities as QEMU lays them out", limit, () => {
  const rig = setUp();
  const seen = capabilities(rig).map((c) => [c.at, c.id, c.id === 9 ? c.length : 12, c.type, c.bar, c.offset, c.size]);
  assert.deepEqual(seen.slice(1), [
    [0x84, 9, 20, 5, 0, 0, 0],
    [0x70, 9, 20, 2, 4, 0x3000, 0x1000],
    [0x60, 9, 16, 4, 4, 0x2000, 0x1000],
    [0x50, 9, 16, 3, 4, 0x1000, 0x1000],
    [0x40, 9, 16, 1, 4, 0, 0x1000],
  ]);
  assert.deepEqual(seen[0]?.slice(0, 2), [0x98, 0x11]);
  assert.equal(rig.pci.configRead(0x80, 4), 4);
  // A capability is not the driver's to write, but for the window's own fields.
  for (let at = 0x40; at < 0x84; at += 4) rig.pci.configWrite(at, 4, 0xffffffff);
  assert.deepEqual(
    capabilities(rig).map((c) => [c.at, c.id, c.id === 9 ? c.length : 12, c.type, c.bar, c.offset, c.size]),
    seen,
  );
});

test("an I/O doorbell comes before the one in memory", limit, () => {
  const rig = setUp({ ioNotify: true });
  const doorbells = capabilities(rig).filter((c) => c.id === 9 && c.type === 2);
  assert.deepEqual(
    doorbells.map((c) => [c.bar, c.offset, c.size, rig.pci.configRead(c.at + 16, 4)]),
    [
      [2, 0, 4, 0],
      [4, 0x3000, 0x1000, 4],
    ],
  );
});

test("BARs: sizing, types, decoding", limit, () => {
  const { pci, moves } = setUp({ ioNotify: true });
  const size = (offset: number): number => {
    const before = pci.configRead(offset, 4);
    pci.configWrite(offset, 4, 0xffffffff);
    const answer = pci.configRead(offset, 4);
    pci.configWrite(offset, 4, before);
    return answer;
  };
  pci.configWrite(4, 2, 7);
  assert.deepEqual(
    [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24].map(size),
    [0, 0xfffff000, 0xfffffffd, 0, 0xffffc00c, 0xffffffff],
  );
  assert.ok(pci.bars.every((bar) => bar.address === undefined));
  pci.configWrite(0x14, 4, 0xfebf1fff);
  pci.configWrite(0x18, 2, 0xc043);
  pci.configWrite(0x24, 4, 0x80);
  pci.configWrite(0x20, 4, 0x12345678);
  assert.equal(pci.configRead(0x20, 4), 0x1234400c);
  assert.equal(pci.configRead(0x18, 4), 0xc041);
  const at = () => pci.bars.map(({ index, kind, address }) => [index, kind, address]).sort();
  assert.deepEqual(at(), [
    [1, "mem32", 0xfebf1000],
    [2, "io", 0xc040],
    [4, "mem64", 0x80_12344000],
  ]);
  // While it is sized, a BAR is nowhere, even with decoding on.
  pci.configWrite(0x14, 4, 0xffffffff);
  pci.configWrite(0x20, 4, 0xffffffff);
  assert.deepEqual(
    at().map((bar) => bar[2]),
    [undefined, 0xc040, undefined],
  );
  pci.configWrite(0x14, 4, 0xfebf1000);
  pci.configWrite(0x20, 4, 0x12344000);
  const before = moves();
  pci.configWrite(4, 2, 2);
  assert.equal(moves(), before + 1);
  assert.equal(pci.bars.find((b) => b.index === 2)?.address, undefined);
  pci.configWrite(4, 2, 2);
  assert.equal(moves(), before + 1);
  pci.configWrite(4, 2, 0);
  assert.ok(pci.bars.every((bar) => bar.address === undefined));
});

test("a mem32 layout has one register and a 64-bit one two", limit, () => {
  const { pci } = setUp({ modernBar: "mem32" });
  pci.configWrite(0x20, 4, 0xffffffff);
  pci.configWrite(0x24, 4, 0xffffffff);
  assert.deepEqual([pci.configRead(0x20, 4), pci.configRead(0x24, 4)], [0xffffc008, 0]);
});
