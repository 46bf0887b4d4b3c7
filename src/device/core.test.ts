import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { LogLevel } from "../common/environment.ts";
import { FeatureSet } from "../common/feature-set.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import { VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { LOOP_F_DEPENDENT, LOOP_F_PLAIN, LoopDevice, nodeEnvironment } from "../testing/loop-device.ts";
import { RawSplitRing, writeSplitDescriptor } from "../testing/raw-ring.ts";
import type { ChainBatch, QueueConfig } from "../virtqueue/index.ts";
import { ConfigSpace } from "./config-space.ts";
import type { RunningQueue } from "./running-queue.ts";

const limit = { timeout: 10_000 };
const VERSION_1 = FeatureSet.of(VIRTIO_F_VERSION_1);
const BUFFERS = 0x100000;

/** A device behind a transport that only writes down what it is told, as vhost-user's would. */
function setUp<D extends LoopDevice>(device: D, size = 16, onInterrupt: () => void = () => undefined) {
  const events: string[] = [];
  const memory = GuestMemory.allocate(0x200000);
  device.attach({
    memory,
    notifyQueue: (index) => {
      events.push(`queue ${index}`);
      onInterrupt();
    },
    notifyConfig: () => events.push("config"),
    notifyNeedsReset: (reason) => events.push(reason),
  });
  const config: QueueConfig = { size, desc: 0x1000, driver: 0x81000, device: 0xa1000 };
  const ring = new RawSplitRing(memory.regions[0]?.view as DataView, config);
  /** Offers a chain of one readable and one writable buffer in descriptors 2n and 2n+1. */
  const offer = (n: number): void => {
    ring.writeDescriptor(2 * n, { address: BUFFERS + 64 * n, length: 4, flags: 1, next: 2 * n + 1 });
    ring.writeDescriptor(2 * n + 1, { address: BUFFERS + 64 * n + 32, length: 4, flags: 2 });
    ring.offer(2 * n);
  };
  return { device, memory, events, config, ring, offer };
}

test("a device has one transport", limit, () => {
  const device = new LoopDevice();
  assert.throws(() => device.memory, { code: "ERR_VIRTKIT_NOT_ATTACHED" });
  const { memory } = setUp(device);
  assert.equal(device.memory, memory);
  assert.throws(() => setUp(device), { code: "ERR_VIRTKIT_ATTACHED" });
});

test("setFeatures refuses what was not offered or lacks what it requires, and keeps the old choice", limit, () => {
  const { device } = setUp(new LoopDevice());
  assert.equal(device.setFeatures(VERSION_1.with(LOOP_F_PLAIN)), true);
  for (const bad of [VERSION_1.with(5), VERSION_1.with(127), VERSION_1.with(LOOP_F_DEPENDENT)]) {
    assert.equal(device.setFeatures(bad), false);
    assert.deepEqual(device.features, VERSION_1.with(LOOP_F_PLAIN));
  }
});

test("queues start and stop one by one, and go on where they stopped", limit, () => {
  const { device, config, ring, offer, events } = setUp(new LoopDevice());
  device.setFeatures(VERSION_1);
  device.kick(0);
  assert.equal(device.startQueue(0, config), undefined);
  offer(0);
  offer(1);
  device.kick(0);
  device.kick(1);
  device.kick(77);
  assert.deepEqual(events, ["queue 0"]);
  assert.equal(ring.usedIdx, 2);
  const state = device.stopQueue(0);
  assert.deepEqual([state.availIndex, state.usedIndex], [2, 2]);
  assert.equal(device.queue(0), undefined);
  offer(2);
  device.kick(0);
  assert.equal(ring.usedIdx, 2);
  device.startQueue(0, config, state);
  device.kick(0);
  assert.equal(ring.usedIdx, 3);
  assert.deepEqual(ring.readUsed(2), { id: 4, length: 4 });
});

test("a queue whose rings are not in memory does not run", limit, () => {
  const { device, config, events } = setUp(new LoopDevice());
  const fault = device.startQueue(0, { ...config, device: 0x80000000 });
  assert.equal(fault?.kind, "ring-address");
  assert.equal(device.queue(0), undefined);
  assert.equal(events.length, 1);
  assert.match(device.broken ?? "", /^queue 0: /);
  device.reset();
  assert.equal(device.broken, undefined);
});

test("chains in front of a malformed one are served; then the device needs a reset, said once", limit, () => {
  const lines: [LogLevel, string][] = [];
  const log = { log: (level: LogLevel, message: string) => void lines.push([level, message]) };
  const { device, memory, config, ring, offer, events } = setUp(new LoopDevice({ environment: nodeEnvironment(log) }));
  memory.write(BUFFERS, Uint8Array.of(1, 2, 3, 4));
  device.startQueue(0, config);
  offer(0);
  offer(1);
  ring.writeDescriptor(2, { address: BUFFERS, length: 4, flags: 1, next: 99 });
  for (let i = 0; i < 10; i++) device.kick(0);
  const copied = new Uint8Array(4);
  memory.read(BUFFERS + 32, copied);
  assert.deepEqual(copied, Uint8Array.of(1, 2, 3, 4));
  assert.equal(events.filter((event) => event.startsWith("queue 0: ")).length, 1);
  assert.equal(lines.length, 1);
  assert.equal(device.faults, 1);
});

test("a driver that breaks and resets the device in a loop does not fill the log", limit, () => {
  const lines: string[] = [];
  let time = 0;
  const environment = { ...nodeEnvironment({ log: (_, line) => void lines.push(line) }), now: () => time };
  const { device, events } = setUp(new LoopDevice({ environment }));
  for (let i = 0; i < 100; i++, time += 100) {
    device.breakDown();
    device.reset();
  }
  assert.equal(events.length, 100);
  assert.deepEqual(lines, [
    "loop0: broken on purpose; the device needs a reset (fault 1)",
    "loop0: broken on purpose; the device needs a reset (fault 51)",
  ]);
});

test("one kick does not keep the thread: the rest is served in a later turn", limit, async () => {
  const size = 8192;
  const { device, config, ring, offer } = setUp(new LoopDevice(), size);
  device.startQueue(0, config);
  for (let n = 0; n < size / 2; n++) offer(n);
  device.kick(0);
  const first = ring.usedIdx;
  assert.ok(first > 0 && first < size / 2);
  while (ring.usedIdx < size / 2) await new Promise((resolve) => setImmediate(resolve));
});

test("a few chains of very many descriptors do not keep the thread either", limit, async () => {
  const { device, memory, config, ring } = setUp(new LoopDevice(), 16);
  const view = memory.regions[0]?.view as DataView;
  const entries = 65536;
  for (let i = 0; i < entries; i++)
    writeSplitDescriptor(view, BUFFERS + 16 * i, {
      address: 0,
      length: 0,
      flags: i + 1 < entries ? 1 : 0,
      next: i + 1,
    });
  device.setFeatures(FeatureSet.of(VIRTIO_F_VERSION_1, VIRTIO_F_INDIRECT_DESC));
  device.startQueue(0, config);
  for (let n = 0; n < 16; n++) {
    ring.writeDescriptor(n, { address: BUFFERS, length: 16 * entries, flags: 4 });
    ring.offer(n);
  }
  device.kick(0);
  assert.ok(ring.usedIdx > 0 && ring.usedIdx < 16);
  while (ring.usedIdx < 16) await new Promise((resolve) => setImmediate(resolve));
});

test("the rest of a bounded turn is dropped when the queue stops meanwhile", limit, async () => {
  const size = 8192;
  const { device, config, ring, offer } = setUp(new LoopDevice(), size);
  device.startQueue(0, config);
  for (let n = 0; n < size / 2; n++) offer(n);
  device.kick(0);
  const served = ring.usedIdx;
  device.reset();
  for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
  assert.equal(ring.usedIdx, served);
});

test("a kick from inside a notification makes the loop look again and does not nest", limit, () => {
  let depth = 0;
  let deepest = 0;
  let next = 1;
  const rig = setUp(new LoopDevice(), 256, () => {
    depth++;
    deepest = Math.max(deepest, depth);
    if (next < 100) rig.offer(next++);
    rig.device.kick(0);
    depth--;
  });
  rig.device.startQueue(0, rig.config);
  rig.offer(0);
  rig.device.kick(0);
  assert.equal(rig.ring.usedIdx, 100);
  assert.equal(deepest, 1);
});

test("a device that cannot take more is asked again after it made room", limit, () => {
  class Narrow extends LoopDevice {
    room = 1;
    asked = 0;
    /** Room that is made while a batch is looked at, as by a back end that completes at once. */
    inside = 0;
    protected override onChains(running: RunningQueue, batch: ChainBatch): boolean {
      const taken = Math.min(this.room, batch.count);
      for (let c = 0; c < taken; c++) running.queue.push(batch.id[c] as number, 0);
      if (taken < batch.count) running.queue.unpop(batch.count - taken);
      this.room -= taken;
      this.asked++;
      if (this.inside > 0 && this.room === 0) {
        this.inside--;
        this.more(1);
        return false;
      }
      return this.room > 0;
    }
    more(room: number): void {
      this.room = room;
      this.service(this.queue(0) as RunningQueue);
    }
  }
  const { device, config, ring, offer } = setUp(new Narrow());
  device.startQueue(0, config);
  for (let n = 0; n < 5; n++) offer(n);
  device.kick(0);
  assert.equal(ring.usedIdx, 1);
  assert.equal(device.asked, 1);
  device.inside = 1;
  device.more(1);
  assert.equal(ring.usedIdx, 3);
  assert.equal(device.asked, 3);
  device.more(10);
  assert.equal(ring.usedIdx, 5);
  assert.equal(ring.usedFlags, 0);
});

test("what finishes after a stop touches neither ring nor memory", limit, () => {
  const { device, config, offer, memory, ring } = setUp(new LoopDevice());
  device.startQueue(1, config);
  offer(0);
  device.kick(1);
  assert.equal(device.held.length, 1);
  device.stopQueue(1);
  const before = memory.regions[0]?.u8.slice();
  assert.equal(device.finish(), 1);
  assert.deepEqual(memory.regions[0]?.u8.slice(), before);
  assert.equal(ring.usedIdx, 0);
});

test("a broken device lets in-flight chains end and takes no others", limit, () => {
  const { device, config, offer, ring, events } = setUp(new LoopDevice());
  device.startQueue(1, config);
  offer(0);
  device.kick(1);
  device.breakDown();
  device.breakDown();
  assert.deepEqual(events, ["broken on purpose"]);
  offer(1);
  device.kick(1);
  assert.equal(device.held.length, 1);
  assert.equal(device.finish(), 0);
  assert.equal(ring.usedIdx, 1);
});

test("configuration space: every access is clamped, only declared bytes are written", limit, () => {
  const offset = fc.oneof(fc.nat(20), fc.constantFrom(2 ** 31, 2 ** 32 - 1));
  const size = fc.constantFrom(1, 2, 4);
  const access = fc.tuple(offset, size, fc.nat(0xffffffff));
  const property = fc.property(fc.array(access), (accesses) => {
    const expected = new Uint8Array(16);
    const written: number[] = [];
    const space = new ConfigSpace(16, { changed: () => undefined, written: (at) => void written.push(at) });
    space.allowWrite(3, 6);
    for (const [at, width, value] of accesses) {
      space.write(at, width, value);
      for (let i = 0; i < width; i++)
        if (at + i >= 3 && at + i < 9) expected[at + i] = Math.floor(value / 256 ** i) % 256;
      const view = new DataView(expected.buffer.slice(0));
      for (let i = 0; i < 16; i++) assert.equal(space.read(i, 1), view.getUint8(i));
      assert.equal(space.read(4, 4), view.getUint32(4, true));
      assert.equal(space.read(14, 4), view.getUint16(14, true));
      assert.equal(space.read(at + 16, width), 0);
    }
    const all = new Uint8Array(20).fill(0xee);
    assert.equal(space.readBytes(0, all), 16);
    assert.deepEqual(all.subarray(0, 16), expected);
    assert.equal(space.readBytes(400, all), 0);
    assert.ok(written.every((at) => at < 9));
  });
  fc.assert(property, { numRuns: 200 });
});
