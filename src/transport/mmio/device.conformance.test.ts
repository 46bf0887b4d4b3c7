import assert from "node:assert/strict";
import { test } from "node:test";
import { GuestMemory } from "../../memory/guest-memory.ts";
import { MemoryRegion } from "../../memory/memory-region.ts";
import { LoopDevice } from "../../testing/loop-device.ts";
import { RawSplitRing } from "../../testing/raw-ring.ts";
import { statements } from "../../testing/statements.ts";
import { VirtioMmioDevice } from "./index.ts";

// Offsets are written out as in a guest's own headers, so that a wrong constant of ours cannot hide behind itself.
const limit = { timeout: 20_000 };
const MMIO = "Virtio Transport Options / Virtio Over MMIO / MMIO Device Register Layout";
const QUEUE_SEL = 0x30;
const QUEUE_READY = 0x44;
const INTERRUPT_STATUS = 0x60;
const INTERRUPT_ACK = 0x64;
const STATUS = 0x70;
const QUEUE_RESET = 0xc0;
const CONFIG_GENERATION = 0xfc;
const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

function setUp(device = new LoopDevice()) {
  const buffer = new ArrayBuffer(0x100000);
  const memory = new GuestMemory([new MemoryRegion(0, buffer)]);
  const mmio = new VirtioMmioDevice(device, { memory });
  /** The level of the interrupt. */
  const line = { asserted: false };
  mmio.connect((asserted) => {
    line.asserted = asserted;
  });
  const read = (offset: number) => mmio.read(offset, 4);
  const write = (offset: number, value: number) => mmio.write(offset, 4, value);
  return { mmio, device, memory, buffer, line, read, write };
}
type Rig = ReturnType<typeof setUp>;

/** Up to FEATURES_OK, with VERSION_1 and RING_RESET. */
function negotiate({ read, write }: Rig): void {
  write(STATUS, 0);
  write(STATUS, 1);
  write(STATUS, 3);
  for (const [word, bits] of [0, 1 | 0x100, 0, 0].entries()) {
    write(0x24, word);
    write(0x20, bits);
  }
  write(STATUS, 11);
  assert.equal(read(STATUS), 11);
}

/** Programs a queue of 8, each part 0x1000 behind the one before, and makes it ready. */
function program({ write, buffer }: Rig, queue: number, base: number, ready = true): RawSplitRing {
  write(QUEUE_SEL, queue);
  write(0x38, 8);
  for (const [i, register] of [0x80, 0x90, 0xa0].entries()) {
    write(register, base + 0x1000 * i);
    write(register + 4, 0);
  }
  if (ready) write(QUEUE_READY, 1);
  return new RawSplitRing(new DataView(buffer), { size: 8, desc: base, driver: base + 0x1000, device: base + 0x2000 });
}

/** Both queues run. */
function bringUp(rig: Rig): RawSplitRing[] {
  negotiate(rig);
  const rings = [program(rig, 0, 0x1000), program(rig, 1, 0x8000)];
  rig.write(STATUS, 15);
  return rings;
}

function offer(ring: RawSplitRing): void {
  ring.writeDescriptor(0, { address: 0x20000, length: 4, flags: 1, next: 1 });
  ring.writeDescriptor(1, { address: 0x21000, length: 4, flags: 2 });
  ring.offer(0);
}

function send(rig: Rig, ring: RawSplitRing, queue = 0): void {
  offer(ring);
  rig.write(0x50, queue);
}

test(statements("MagicValue and Version", `device: ${MMIO} #1`, `device: ${MMIO} #2`), limit, () => {
  const rig = setUp();
  for (let i = 0; i < 2; i++) {
    assert.deepEqual([rig.read(0), rig.read(4)], [0x74726976, 2]);
    // Nor can they be written, before or after bring-up.
    rig.write(0, 0);
    rig.write(4, 1);
    bringUp(rig);
  }
});

test(
  statements(
    "an event's bit is set from when it happens until it is acknowledged, and no other bit is",
    `device: ${MMIO} #3`,
    `device: ${MMIO} #4`,
  ),
  limit,
  () => {
    const rig = setUp();
    const { read, write, line, device } = rig;
    const state = () => [read(INTERRUPT_STATUS), line.asserted];
    const [ring] = bringUp(rig) as [RawSplitRing];
    assert.deepEqual(state(), [0, false]);
    send(rig, ring);
    // Reading does not acknowledge.
    for (let i = 0; i < 3; i++) assert.deepEqual(state(), [1, true]);
    // Nor does the other event's bit, or none.
    for (const mask of [2, 0, 0xfffffffe]) write(INTERRUPT_ACK, mask);
    assert.deepEqual(state(), [1, true]);
    device.config.update(() => undefined);
    assert.deepEqual(state(), [3, true]);
    write(INTERRUPT_ACK, 1);
    assert.deepEqual(state(), [2, true]);
    send(rig, ring);
    assert.deepEqual(state(), [3, true]);
    write(INTERRUPT_ACK, 2);
    assert.deepEqual(state(), [1, true]);
    write(INTERRUPT_ACK, 1);
    assert.deepEqual(state(), [0, false]);
    // It happens again.
    device.config.update(() => undefined);
    assert.deepEqual(state(), [2, true]);
    write(INTERRUPT_ACK, 3);
    assert.deepEqual(state(), [0, false]);
  },
);

test(statements("a reset clears InterruptStatus and every QueueReady", `device: ${MMIO} #5`), limit, async () => {
  const rig = setUp();
  const { read, write, line, device } = rig;
  for (const borrowing of [false, true]) {
    const [ring] = bringUp(rig) as [RawSplitRing];
    for (const queue of [0, 1]) {
      write(QUEUE_SEL, queue);
      assert.equal(read(QUEUE_READY), 1);
    }
    send(rig, ring);
    device.config.update(() => undefined);
    assert.deepEqual([read(INTERRUPT_STATUS), line.asserted], [3, true]);
    device.borrowing = borrowing;
    write(STATUS, 0);
    device.release();
    await turn();
    assert.deepEqual([read(STATUS), read(INTERRUPT_STATUS), line.asserted], [0, 0, false]);
    for (const queue of [0, 1]) {
      write(QUEUE_SEL, queue);
      assert.equal(read(QUEUE_READY), 0);
    }
  }
});

test(statements("ConfigGeneration tells reads of different versions apart", `device: ${MMIO} #6`), limit, () => {
  const rig = setUp();
  const { read, device } = rig;
  bringUp(rig);
  const change = (value: number) =>
    device.config.update((view) => {
      view.setUint32(0, value, true);
      view.setUint32(4, value, true);
    });
  // Changed between the two halves, by one or by as many changes as would bring a counter of 8 bits back.
  for (const changes of [1, 2, 256, 512]) {
    change(0);
    const before = read(CONFIG_GENERATION);
    const low = read(0x100);
    for (let i = 1; i <= changes; i++) change(i);
    const high = read(0x104);
    assert.deepEqual([low, high], [0, changes]);
    assert.notEqual(read(CONFIG_GENERATION), before);
  }
  // Unchanged, both halves belong together.
  const before = read(CONFIG_GENERATION);
  assert.equal(read(0x100), read(0x104));
  assert.equal(read(CONFIG_GENERATION), before);
});

test(statements("a queue that is not ready is not touched", `device: ${MMIO} #7`), limit, async () => {
  const rig = setUp();
  const { read, write, device, memory, buffer } = rig;
  /** Whatever touches guest memory now breaks the device. */
  const withoutMemory = (what: () => void) => {
    memory.setRegions([]);
    what();
    memory.setRegions([new MemoryRegion(0, buffer)]);
    assert.equal(device.broken, undefined, "it looked at guest memory");
  };
  // Programmed but not ready as the driver comes up.
  negotiate(rig);
  const ring = program(rig, 0, 0x1000, false);
  offer(ring);
  withoutMemory(() => {
    write(STATUS, 15);
    write(0x50, 0);
  });
  assert.deepEqual([read(QUEUE_READY), ring.usedIdx], [0, 0]);
  write(QUEUE_READY, 1);
  assert.equal(ring.usedIdx, 1);
  // Not ready any more, with a chain that waits and one that the device holds.
  const hold = program(rig, 1, 0x8000);
  send(rig, hold, 1);
  assert.equal(device.held.length, 1);
  for (const queue of [0, 1]) {
    write(QUEUE_SEL, queue);
    write(QUEUE_READY, 0);
    assert.equal(read(QUEUE_READY), 0);
  }
  offer(ring);
  withoutMemory(() => {
    write(0x50, 0);
    write(0x50, 1);
    assert.equal(device.finish(), 1);
  });
  assert.deepEqual([ring.usedIdx, hold.usedIdx, device.held.length], [1, 0, 0]);
  // While a back end still works on guest memory the queue is not yet out of use, and reads so.
  write(QUEUE_READY, 1);
  device.borrowing = true;
  write(QUEUE_READY, 0);
  assert.equal(read(QUEUE_READY), 1);
  device.release();
  await turn();
  assert.equal(read(QUEUE_READY), 0);
});

/** Every queue's reset waits for ever; the device's own does not. */
class StuckQueues extends LoopDevice {
  protected override isBusy(index?: number): boolean {
    return index !== undefined;
  }
  protected override onDrain(): Promise<void> {
    return new Promise(() => undefined);
  }
}

test(statements("QueueReset is 0 after a device reset", `device: ${MMIO} #8`), limit, () => {
  const rig = setUp(new StuckQueues());
  const { read, write } = rig;
  bringUp(rig);
  write(QUEUE_RESET, 1);
  assert.equal(read(QUEUE_RESET), 1);
  write(STATUS, 0);
  for (const queue of [0, 1]) {
    write(QUEUE_SEL, queue);
    assert.deepEqual([read(STATUS), read(QUEUE_RESET), read(QUEUE_READY)], [0, 0, 0]);
  }
});

test(
  statements(
    "QueueReset resets one queue; it reads 1 meanwhile, then 0 with QueueReady, and 0 once ready again",
    `device: ${MMIO} #9`,
    `device: ${MMIO} #10`,
    `device: ${MMIO} #11`,
    `device: ${MMIO} #12`,
  ),
  limit,
  async () => {
    const rig = setUp();
    const { read, write, device } = rig;
    const [copy, hold] = bringUp(rig) as [RawSplitRing, RawSplitRing];
    assert.deepEqual([read(QUEUE_READY), read(QUEUE_RESET)], [1, 0]);
    send(rig, hold, 1);
    device.borrowing = true;
    write(QUEUE_SEL, 1);
    write(QUEUE_RESET, 1);
    for (let i = 0; i < 3; i++) {
      assert.equal(read(QUEUE_RESET), 1);
      await turn();
    }
    // What it had is not used any more, nothing new is taken, and its neighbour goes on.
    assert.deepEqual([device.finish(), hold.usedIdx], [1, 0]);
    send(rig, hold, 1);
    assert.equal(device.held.length, 0);
    send(rig, copy, 0);
    assert.equal(copy.usedIdx, 1);
    device.release();
    await turn();
    assert.deepEqual([read(QUEUE_RESET), read(QUEUE_READY)], [0, 0]);
    // Elsewhere, from the start again.
    const again = program(rig, 1, 0x30000);
    assert.deepEqual([read(QUEUE_READY), read(QUEUE_RESET)], [1, 0]);
    send(rig, again, 1);
    assert.equal(device.finish(), 0);
    assert.equal(again.usedIdx, 1);
  },
);
