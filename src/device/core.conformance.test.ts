import assert from "node:assert/strict";
import { test } from "node:test";
import { MemoryBlockBackend } from "../backend/block/index.ts";
import { FeatureSet } from "../common/feature-set.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import * as balloon from "../spec/balloon.ts";
import * as blk from "../spec/blk.ts";
import * as console from "../spec/console.ts";
import { VIRTIO_F_RING_RESET, VIRTIO_F_SR_IOV, VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { VIRTIO_CONFIG_S_NEEDS_RESET } from "../spec/status.ts";
import { LOOP_COPYQ, LOOP_HOLDQ, LoopDevice } from "../testing/loop-device.ts";
import { RawSplitRing } from "../testing/raw-ring.ts";
import { testEnvironment } from "../testing/rig.ts";
import { statements } from "../testing/statements.ts";
import { LoopbackTransport } from "../transport/loopback/index.ts";
import { BalloonDevice } from "./balloon.ts";
import { BlkDevice } from "./blk.ts";
import { ConsoleDevice } from "./console.ts";
import { type DeviceCore, RING_FEATURES } from "./core.ts";
import { QUEUE_DESC_LOW, QUEUE_DEVICE_LOW, QUEUE_DRIVER_LOW } from "./queue-registers.ts";
import { RngDevice } from "./rng.ts";
import { StatusMachine } from "./status-machine.ts";

// What every device does, seen through the registers that PCI, MMIO and the loopback transport have in common.

const limit = { timeout: 30_000 };
const FACILITIES = "device: Basic Facilities of a Virtio Device";
const RESERVED = "device: Reserved Feature Bits";
const BUFFERS = 0x80000;
const SIZE = 16;

/** A device under its registers, with hand-written rings. */
class Bench {
  readonly memory = GuestMemory.allocate(1 << 20);
  /** Notifications, each with the status at that moment. */
  readonly events: string[] = [];
  readonly machine: StatusMachine;
  readonly device: LoopDevice;

  constructor(device = new LoopDevice()) {
    this.device = device;
    const note = (what: string) => this.events.push(`${what} at ${this.machine.status}`);
    this.machine = new StatusMachine(device, {
      memory: this.memory,
      queueInterrupt: (index) => note(`queue ${index}`),
      configInterrupt: () => note("config"),
      deviceReset: () => undefined,
      queueReset: () => undefined,
    });
  }

  get bytes(): Uint8Array {
    return this.memory.regions[0]?.u8 ?? assert.fail("no memory");
  }

  negotiate(...features: number[]): void {
    const accepted = FeatureSet.of(VIRTIO_F_VERSION_1, ...features);
    for (let i = 0; i < 4; i++) {
      this.machine.driverFeatureSelect = i;
      this.machine.writeDriverFeature(accepted.word(i));
    }
    for (const status of [1, 3, 11]) this.machine.writeStatus(status);
    assert.equal(this.machine.status, 11);
  }

  /** Programs and enables a split queue at `desc`. */
  enable(index: number, desc = 0x1000 + index * 0x8000, size = SIZE): RawSplitRing {
    const { queues } = this.machine;
    const place = { size, desc, driver: desc + 0x2000, device: desc + 0x4000 };
    queues.select = index;
    queues.writeSize(size);
    queues.writeAddress(QUEUE_DESC_LOW, place.desc);
    queues.writeAddress(QUEUE_DRIVER_LOW, place.driver);
    queues.writeAddress(QUEUE_DEVICE_LOW, place.device);
    queues.writeEnable(1);
    return new RawSplitRing(new DataView(this.bytes.buffer), place);
  }

  /** A chain of a readable and a writable buffer. */
  offer(ring: RawSplitRing, n: number): void {
    ring.writeDescriptor(2 * n, { address: BUFFERS + 64 * n, length: 4, flags: 1, next: 2 * n + 1 });
    ring.writeDescriptor(2 * n + 1, { address: BUFFERS + 64 * n + 32, length: 4, flags: 2 });
    ring.offer(2 * n);
  }

  /** Everything that could make the device look at a queue or tell of something. */
  stir(): void {
    for (let queue = 0; queue < 2; queue++) {
      this.machine.kick(queue);
      this.device.kick(queue);
    }
    this.device.finish();
  }
}

test(
  statements("nothing is taken, used or notified before DRIVER_OK", `${FACILITIES} / Device Status Field #1`),
  limit,
  () => {
    const bench = new Bench();
    for (const status of [1, 3]) bench.machine.writeStatus(status);
    bench.negotiate();
    const rings = [bench.enable(LOOP_COPYQ), bench.enable(LOOP_HOLDQ)];
    for (const ring of rings) bench.offer(ring, 0);
    const before = bench.bytes.slice();
    bench.stir();
    assert.deepEqual(bench.bytes, before);
    assert.deepEqual(bench.events, []);
    bench.machine.writeStatus(15);
    assert.equal(rings[0]?.usedIdx, 1);
    assert.deepEqual(bench.events, ["queue 0 at 15"]);
  },
);

test(
  statements(
    "a device that breaks sets DEVICE_NEEDS_RESET and then sends a configuration change notification",
    `${FACILITIES} / Device Status Field #2`,
  ),
  limit,
  () => {
    const bench = new Bench();
    bench.negotiate();
    const ring = bench.enable(LOOP_COPYQ);
    bench.machine.writeStatus(15);
    // A descriptor outside guest memory breaks the queue.
    ring.writeDescriptor(0, { address: 0x7fff0000, length: 4, flags: 0 });
    ring.offer(0);
    bench.machine.kick(LOOP_COPYQ);
    assert.deepEqual(bench.events, [`config at ${15 | VIRTIO_CONFIG_S_NEEDS_RESET}`]);

    const own = new Bench();
    own.negotiate();
    own.machine.writeStatus(15);
    own.device.breakDown();
    assert.deepEqual(own.events, [`config at ${15 | VIRTIO_CONFIG_S_NEEDS_RESET}`]);
  },
);

interface Type {
  readonly name: string;
  /** With everything switched on. */
  create(ringFeatures?: FeatureSet): DeviceCore;
  /** Feature bits that the specification gives this type. */
  readonly known: readonly number[];
}

const bitsOf = (spec: object): number[] =>
  Object.entries(spec).flatMap(([name, value]) =>
    /^VIRTIO_[A-Z]+_F_/.test(name) && typeof value === "number" ? [value] : [],
  );
const option = (ringFeatures?: FeatureSet) => (ringFeatures === undefined ? {} : { ringFeatures });

const TYPES: readonly Type[] = [
  {
    name: "blk",
    create: (ringFeatures) =>
      new BlkDevice({
        backend: new MemoryBlockBackend({ capacity: 1 << 20 }),
        environment: testEnvironment,
        discard: true,
        writeZeroes: true,
        numQueues: 2,
        ...option(ringFeatures),
      }),
    known: bitsOf(blk),
  },
  {
    name: "console",
    create: (ringFeatures) =>
      new ConsoleDevice({ environment: testEnvironment, cols: 80, rows: 25, ...option(ringFeatures) }),
    known: bitsOf(console),
  },
  {
    name: "rng",
    create: (ringFeatures) =>
      new RngDevice({
        source: { name: "zeros", fill: (into) => void into.fill(0) },
        environment: testEnvironment,
        ...option(ringFeatures),
      }),
    known: [],
  },
  {
    name: "balloon",
    create: (ringFeatures) =>
      new BalloonDevice({
        environment: testEnvironment,
        deflateOnOom: true,
        freePageReporting: true,
        pagePoison: true,
        mustTellHost: true,
        ...option(ringFeatures),
      }),
    known: bitsOf(balloon),
  },
];
const transportOf = (device: DeviceCore): LoopbackTransport =>
  new LoopbackTransport(device, { memory: GuestMemory.allocate(4096), environment: testEnvironment });
const RINGS = [undefined, FeatureSet.EMPTY, RING_FEATURES];

test(
  statements(
    "every device offers VERSION_1, whatever else is chosen, and SR_IOV never",
    `${RESERVED} #1`,
    `${RESERVED} #3`,
  ),
  limit,
  () => {
    for (const { create } of TYPES)
      for (const ringFeatures of RINGS) {
        const { offeredFeatures } = create(ringFeatures);
        assert.equal(offeredFeatures.has(VIRTIO_F_VERSION_1), true);
        assert.equal(offeredFeatures.has(VIRTIO_F_SR_IOV), false);
      }
  },
);

test(
  statements(
    "no feature is offered that is not of the type or of the core, or that the device then refuses",
    `${FACILITIES} / Feature Bits #1`,
    `${FACILITIES} / Feature Bits #3`,
  ),
  limit,
  () => {
    for (const { name, create, known } of TYPES)
      for (const ringFeatures of RINGS) {
        const offered = create(ringFeatures).offeredFeatures;
        const foreign = offered.without(...known).minus(RING_FEATURES);
        assert.deepEqual([...foreign], [], name);
        // Each by itself, so that it requires nothing which is not there, and all at once.
        for (const choice of [...[...offered].map((bit) => FeatureSet.of(VIRTIO_F_VERSION_1, bit)), offered]) {
          const transport = transportOf(create(ringFeatures));
          for (const status of [1, 3]) transport.setStatus(status);
          transport.setDriverFeatures(choice);
          transport.setStatus(11);
          assert.equal(transport.getStatus(), 11, `${name} refuses ${choice}`);
        }
      }
  },
);

test(
  statements("a reset puts the status back to 0, from whatever state", `${FACILITIES} / Device Reset #1`),
  limit,
  () => {
    for (const writes of [[1], [1, 3], [11], [15], [15, 0x80 | 15]]) {
      const bench = new Bench();
      bench.negotiate();
      bench.enable(LOOP_COPYQ);
      for (const status of writes) bench.machine.writeStatus(status);
      if (writes.length > 1) bench.device.breakDown();
      assert.notEqual(bench.machine.status, 0);
      bench.machine.writeStatus(0);
      assert.equal(bench.machine.status, 0);
    }
  },
);

test(
  statements(
    "a device that was reset keeps away from queues and sends nothing until it is up again",
    `${FACILITIES} / Device Reset #2`,
  ),
  limit,
  async () => {
    const bench = new Bench();
    bench.negotiate();
    const [copy, hold] = [bench.enable(LOOP_COPYQ), bench.enable(LOOP_HOLDQ)];
    bench.machine.writeStatus(15);
    bench.offer(hold, 0);
    bench.machine.kick(LOOP_HOLDQ);
    assert.equal(bench.device.held.length, 1);
    bench.machine.writeStatus(0);
    bench.events.length = 0;
    bench.offer(copy, 1);
    bench.offer(hold, 2);
    const before = bench.bytes.slice();
    const quiet = () => {
      bench.stir();
      bench.device.config.update(() => undefined);
      assert.deepEqual(bench.bytes, before);
      assert.deepEqual(bench.events, []);
    };
    quiet();
    await new Promise((resolve) => setImmediate(resolve));
    quiet();
    for (const status of [1, 3]) bench.machine.writeStatus(status);
    quiet();
    bench.machine.writeStatus(0);
    bench.negotiate();
    quiet();
    bench.enable(LOOP_COPYQ);
    bench.machine.writeStatus(15);
    assert.deepEqual(bench.events, ["queue 0 at 15"]);
  },
);

test(
  statements(
    "every field of the configuration can be read before FEATURES_OK, the conditional ones too",
    `${FACILITIES} / Device Configuration Space #1`,
  ),
  limit,
  async () => {
    for (const { name, create } of TYPES) {
      const device = create();
      const { size } = device.config;
      const expected = new Uint8Array(device.config.view.buffer.slice(0));
      const transport = transportOf(device);
      await transport.reset();
      for (const status of [0, 1, 3]) {
        if (status > 0) transport.setStatus(status);
        const seen = Uint8Array.from({ length: size }, (_, i) => transport.readConfig(i, 1));
        assert.deepEqual(seen, expected, `${name} at status ${status}`);
      }
    }
    const disk = TYPES[0]?.create() as DeviceCore;
    assert.equal(disk.config.read(blk.VIRTIO_BLK_CFG_NUM_QUEUES, 2), 2);
    assert.notEqual(disk.config.read(blk.VIRTIO_BLK_CFG_MAX_DISCARD_SECTORS, 4), 0);
    const console80 = TYPES[1]?.create() as DeviceCore;
    assert.deepEqual([console80.config.read(0, 2), console80.config.read(2, 2)], [80, 25]);
  },
);

const RESET = `${FACILITIES} / Virtqueues / Virtqueue Reset`;

test(
  statements(
    "a queue that was reset runs no request, notifies for none, and begins anew where and as large as it is told",
    `${RESET} / Virtqueue Reset #1`,
    `${RESET} / Virtqueue Reset #2`,
    `${RESET} / Virtqueue Re-enable #1`,
  ),
  limit,
  () => {
    const bench = new Bench();
    bench.negotiate(VIRTIO_F_RING_RESET);
    const [copy, hold] = [bench.enable(LOOP_COPYQ), bench.enable(LOOP_HOLDQ)];
    bench.machine.writeStatus(15);
    for (let n = 0; n < 3; n++) bench.offer(copy, n);
    bench.machine.kick(LOOP_COPYQ);
    bench.offer(hold, 0);
    bench.machine.kick(LOOP_HOLDQ);
    assert.deepEqual([copy.usedIdx, bench.device.held.length], [3, 1]);
    for (const queue of [LOOP_COPYQ, LOOP_HOLDQ]) {
      bench.machine.queues.select = queue;
      bench.machine.queues.writeReset(1);
      assert.deepEqual([bench.machine.queues.enabled, bench.machine.queues.resetting], [false, false]);
    }
    bench.events.length = 0;
    bench.offer(copy, 3);
    bench.offer(hold, 1);
    const before = bench.bytes.slice();
    bench.stir();
    assert.deepEqual(bench.bytes, before);
    assert.deepEqual(bench.events, []);

    // Elsewhere and smaller: the first entries of new rings are looked at, and the first used element is written.
    const again = bench.enable(LOOP_COPYQ, 0x40000, 4);
    assert.equal(bench.device.queue(LOOP_COPYQ)?.queue.size, 4);
    bench.offer(again, 0);
    bench.machine.kick(LOOP_COPYQ);
    assert.deepEqual([again.usedIdx, again.readUsed(0)], [1, { id: 0, length: 4 }]);
    assert.deepEqual(bench.events, ["queue 0 at 15"]);
    for (let n = 1; n < 9; n++) {
      bench.offer(again, n % 2);
      bench.machine.kick(LOOP_COPYQ);
    }
    assert.equal(again.usedIdx, 9);
  },
);
