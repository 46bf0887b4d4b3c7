import assert from "node:assert/strict";
import { test } from "node:test";
import { LOOP_F_HIGH, LOOP_F_PLAIN, LoopDevice } from "../../testing/loop-device.ts";
import { BAR4, bringUp, DEVICE, type PciRig, pciRig, send } from "../../testing/pci-guest.ts";
import { RawSplitRing } from "../../testing/raw-ring.ts";
import { statements } from "../../testing/statements.ts";

// Numbers are written out as in the specification, so that a wrong constant of ours cannot hide behind itself.
const limit = { timeout: 20_000 };
const COMMON =
  "Virtio Transport Options / Virtio Over PCI Bus / PCI Device Layout / Common configuration structure layout";
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

const status = ({ read }: PciRig) => read(0x14, 1);
const enabled = ({ read }: PciRig) => read(0x1c, 2);
const resetting = ({ read }: PciRig) => read(0x3a, 2);

/** Every queue's reset waits for ever; the device's own does not. */
class StuckQueues extends LoopDevice {
  protected override isBusy(index?: number): boolean {
    return index !== undefined;
  }
  protected override onDrain(): Promise<void> {
    return new Promise(() => undefined);
  }
}

/** Programs and enables queue `index`, with its parts from `base` on. */
function enableQueue({ write, memory }: PciRig, index: number, base: number): RawSplitRing {
  write(0x16, 2, index);
  write(0x18, 2, 8);
  write(0x20, 4, base);
  write(0x28, 4, base + 0x1000);
  write(0x30, 4, base + 0x2000);
  write(0x1c, 2, 1);
  const view = memory.regions[0]?.view as DataView;
  return new RawSplitRing(view, { size: 8, desc: base, driver: base + 0x1000, device: base + 0x2000 });
}

test(statements("device_feature shows 32 offered bits of any number", `device: ${COMMON} #3`), limit, () => {
  const { read, write, device } = pciRig();
  const all: number[] = [];
  for (let word = 0; word < 8; word++) {
    write(0, 4, word);
    assert.equal(read(0, 4), word);
    for (let bit = 0; bit < 32; bit++) if (((read(4, 4) >>> bit) & 1) === 1) all.push(32 * word + bit);
  }
  assert.deepEqual(all, [...device.offeredFeatures]);
  assert.equal(all.includes(32) && all.includes(40) && all.includes(LOOP_F_HIGH), true);
  for (const word of [8, 100, 0x7ffffff, 0x80000000, 0xffffffff]) {
    write(0, 4, word);
    assert.equal(read(4, 4), 0);
  }
});

test(statements("driver_feature shows the offered bits that the driver wrote", `device: ${COMMON} #4`), limit, () => {
  const { read, write, device } = pciRig();
  const offered = [0, 1, 2, 3].map((word) => {
    write(0, 4, word);
    return read(4, 4);
  });
  const choose = (words: readonly number[]) => {
    for (const [word, bits] of words.entries()) {
      write(8, 4, word);
      write(12, 4, bits);
    }
    return words.map((_, word) => {
      write(8, 4, word);
      return read(12, 4);
    });
  };
  for (const pattern of [0xffffffff, 0x55555555, 0xaaaaaaaa, 0, 0x0000ffff]) {
    const words = offered.map((bits) => (bits & pattern) >>> 0);
    assert.deepEqual(choose(words), words);
  }
  // They stay after FEATURES_OK.
  choose([1 << LOOP_F_PLAIN, 1, 0, 0]);
  for (const value of [1, 3, 11]) write(0x14, 1, value);
  assert.equal(read(0x14, 1), 11);
  write(8, 4, 0);
  assert.equal(read(12, 4), 1 << LOOP_F_PLAIN);
  assert.equal(device.features.has(32), true);
});

test(
  statements("config_generation differs after a value was read that had changed", `device: ${COMMON} #5`),
  limit,
  () => {
    const rig = pciRig();
    const { read, pci, device } = rig;
    bringUp(rig);
    const value = () => pci.barRead(BAR4, DEVICE, 4);
    value();
    // However often it changed in between: an 8-bit counter of changes would be back where it was after 256.
    for (const changes of [1, 2, 255, 256, 512]) {
      const before = read(0x15, 1);
      for (let i = 1; i <= changes; i++) device.config.update((view) => view.setUint32(0, i, true));
      assert.equal(value(), changes);
      assert.notEqual(read(0x15, 1), before);
    }
    // Nothing changed, so it stays.
    const before = read(0x15, 1);
    value();
    assert.equal(read(0x15, 1), before);
  },
);

test(
  statements(
    "0 in device_status resets the device, and it reads 0 once that is done",
    `device: ${COMMON} #6`,
    `device: ${COMMON} #7`,
  ),
  limit,
  async () => {
    const device = new LoopDevice();
    const rig = pciRig({}, device);
    const { write, read } = rig;
    bringUp(rig);
    enableQueue(rig, 1, 0x4000);
    const { resets } = device;
    // A back end that works on guest memory: the reset takes until it has let go.
    device.borrowing = true;
    write(0x14, 1, 0);
    assert.notEqual(status(rig), 0);
    assert.equal(device.resets, resets);
    device.release();
    await turn();
    assert.deepEqual([status(rig), device.resets], [0, resets + 1]);
    for (let queue = 0; queue < 2; queue++) {
      write(0x16, 2, queue);
      assert.equal(enabled(rig), 0);
      assert.deepEqual([read(0x18, 2), read(0x20, 4)], [[64, 16][queue], 0]);
      assert.equal(device.queue(queue), undefined);
    }
    assert.equal(device.features.has(32), false);
  },
);

test(
  statements("queue_reset is 0 after a device reset, whatever it interrupted", `device: ${COMMON} #8`),
  limit,
  async () => {
    const rig = pciRig();
    const { write, device } = rig;
    bringUp(rig);
    write(0x14, 1, 0);
    assert.equal(resetting(rig), 0);
    bringUp(rig);
    device.borrowing = true;
    write(0x3a, 2, 1);
    assert.equal(resetting(rig), 1);
    write(0x14, 1, 0);
    device.release();
    await turn();
    for (let queue = 0; queue < 2; queue++) {
      write(0x16, 2, queue);
      assert.deepEqual([status(rig), resetting(rig)], [0, 0]);
    }
    // The reset of the queue would never end.
    const stuck = pciRig({}, new StuckQueues());
    bringUp(stuck);
    stuck.write(0x3a, 2, 1);
    assert.equal(resetting(stuck), 1);
    stuck.write(0x14, 1, 0);
    assert.deepEqual([status(stuck), resetting(stuck), enabled(stuck)], [0, 0, 0]);
  },
);

test(
  statements(
    "1 in queue_reset resets one queue; it reads 1 meanwhile, then 0 with queue_enable, and 0 once enabled again",
    `device: ${COMMON} #9`,
    `device: ${COMMON} #10`,
    `device: ${COMMON} #11`,
    `device: ${COMMON} #12`,
  ),
  limit,
  async () => {
    const rig = pciRig();
    const { write, read, device } = rig;
    const copy = bringUp(rig);
    const hold = enableQueue(rig, 1, 0x4000);
    assert.deepEqual([enabled(rig), resetting(rig)], [1, 0]);
    send(rig, hold, 1);
    assert.equal(device.held.length, 1);
    device.borrowing = true;
    write(0x3a, 2, 1);
    for (let i = 0; i < 3; i++) {
      assert.equal(resetting(rig), 1);
      await turn();
    }
    // The queue stands still, what it had is not used any more, and its neighbour goes on.
    assert.deepEqual([device.finish(), hold.usedIdx], [1, 0]);
    send(rig, hold, 1);
    assert.equal(device.held.length, 0);
    send(rig, copy, 0);
    assert.equal(copy.usedIdx, 1);
    device.release();
    await turn();
    assert.deepEqual([resetting(rig), enabled(rig)], [0, 0]);
    assert.deepEqual([read(0x18, 2), read(0x20, 4), read(0x28, 4), read(0x30, 4)], [16, 0, 0, 0]);
    // Elsewhere, from the start again.
    const again = enableQueue(rig, 1, 0x10000);
    assert.deepEqual([enabled(rig), resetting(rig)], [1, 0]);
    send(rig, again, 1);
    assert.equal(device.finish(), 0);
    assert.equal(again.usedIdx, 1);
  },
);

test(statements("queue_size is 0 where there is no queue", `device: ${COMMON} #13`), limit, () => {
  const rig = pciRig({}, new LoopDevice({ queueSizes: [8, 0, 4] }));
  const size = (queue: number) => {
    rig.write(0x16, 2, queue);
    return rig.read(0x18, 2);
  };
  assert.deepEqual([0, 1, 2, 3, 4, 0x7fff, 0xffff].map(size), [8, 0, 4, 0, 0, 0, 0]);
  // Nor can the driver write one.
  rig.write(0x16, 2, 1);
  rig.write(0x18, 2, 4);
  rig.write(0x1c, 2, 1);
  assert.deepEqual([rig.read(0x18, 2), rig.read(0x1c, 2)], [0, 0]);
});

test(
  statements("without RING_PACKED queue_size is a power of 2, whatever the driver writes", `device: ${COMMON} #14`),
  limit,
  () => {
    for (const largest of [1, 3, 100, 256, 1000, 32768]) {
      const rig = pciRig({}, new LoopDevice({ queueSizes: [largest] }));
      const { read, write } = rig;
      const size = () => read(0x18, 2);
      const powerOfTwo = () => assert.equal(Math.log2(size()) % 1, 0);
      powerOfTwo();
      assert.equal(size() <= largest && 2 * size() > largest, true);
      for (let value = 0; value < 300; value++) {
        write(0x18, 2, value);
        powerOfTwo();
      }
      write(0x14, 1, 0);
      bringUp(rig);
      powerOfTwo();
      // With it any size goes.
      write(0x14, 1, 0);
      write(8, 4, 1);
      write(12, 4, 5);
      for (const value of [1, 3, 11]) write(0x14, 1, value);
      assert.equal(size(), largest);
    }
  },
);
