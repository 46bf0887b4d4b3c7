import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { MemoryBlockBackend } from "../backend/block/memory.ts";
import { BLOCK_FLUSH, BLOCK_WRITE, type BlockBackend, type BlockRequests } from "../backend/block/types.ts";
import { SILENT } from "../common/environment.ts";
import { BlkBatch, BlkDriver } from "../driver/blk.ts";
import { VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT } from "../spec/blk.ts";
import { ManualBlockBackend } from "../testing/manual-block.ts";
import { createRig, RIG_CONFIGS, type RigConfig, testEnvironment } from "../testing/rig.ts";
import { statements } from "../testing/statements.ts";
import { BlkDevice, type BlkDeviceOptions } from "./blk.ts";
import { RING_FEATURES } from "./core.ts";

const MIB = 1024 * 1024;
const OPERATION = "device: Device Types / Block Device / Device Operation";
const limit = { timeout: 20_000 };

function blkDevice(backend: BlockBackend, options: Partial<BlkDeviceOptions> = {}): BlkDevice {
  return new BlkDevice({ backend, environment: testEnvironment, ringFeatures: RING_FEATURES, ...options });
}

const rigOf = (device: BlkDevice, config: RigConfig = RIG_CONFIGS[0] as RigConfig) =>
  createRig(device, BlkDriver.type, config);

const backends: [name: string, make: () => BlockBackend][] = [
  ["at hand", () => new MemoryBlockBackend({ capacity: 8 * MIB })],
  ["later, out of order", () => new ManualBlockBackend({ capacity: 8 * MIB, auto: 7 })],
];

for (const config of RIG_CONFIGS) {
  for (const [name, make] of backends) {
    test(`blk, ${config.transport}, ${config.name}, data ${name}: write, read back, flush, id`, limit, async () => {
      const device = blkDevice(make(), { serial: "disk-0001", numQueues: 2 });
      const { driver, close } = await rigOf(device, config);
      assert.equal(driver.capacity, 8 * MIB);
      const image = randomBytes(3 * MIB + 512);
      await driver.write(512, image);
      await driver.flush();
      assert.deepEqual(Buffer.from(await driver.read(512, image.length)), image);
      assert.deepEqual(Buffer.from(await driver.read(8 * MIB - 512, 512)), Buffer.alloc(512));
      assert.equal(await driver.getId(), "disk-0001");
      assert.equal(device.stats.errors, 0);
      assert.equal(device.faults, 0);
      assert.equal(device.inFlight, 0);
      await close();
    });
  }

  test(`blk, ${config.transport}, ${config.name}: a batch of neighbours arrives and is merged`, limit, async () => {
    const backend = new ManualBlockBackend({ capacity: 8 * MIB, auto: "ordered" });
    const device = blkDevice(backend);
    const { driver, dma, close } = await rigOf(device, config);
    const count = 64;
    const data = randomBytes(count * 4096);
    const buffer = dma.alloc(data.length);
    buffer.write(data);
    const batch = new BlkBatch(count);
    for (const type of [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_IN]) {
      for (let i = 0; i < count; i++) {
        batch.type[i] = type;
        batch.sector[i] = i * 8;
        batch.address[i] = buffer.address + i * 4096;
        batch.length[i] = 4096;
        batch.status[i] = 0xff;
      }
      batch.completed = 0;
      if (type === VIRTIO_BLK_T_IN) buffer.bytes.fill(0);
      for (let sent = 0; sent < count || batch.completed < count; ) {
        sent += driver.submit(batch, sent, count - sent);
        await new Promise((resolve) => setImmediate(resolve));
      }
      assert.deepEqual([...batch.status], new Array(count).fill(0));
    }
    assert.deepEqual(Buffer.from(buffer.read()), data);
    assert.ok(device.stats.merged > count, `only ${device.stats.merged} of ${2 * count} were merged`);
    assert.equal(device.stats.reads, count);
    assert.equal(device.stats.writes, count);
    assert.equal(device.stats.readBytes, data.length);
    await close();
  });
}

test(
  statements("blk: a write to a read-only disk fails and changes nothing", `${OPERATION} #1`, `${OPERATION} #2`),
  limit,
  async () => {
    const backend = new ManualBlockBackend({ auto: "ordered" });
    const { driver, dma, close } = await rigOf(blkDevice(backend, { readOnly: true }));
    assert.equal(driver.readOnly, true);
    await assert.rejects(driver.write(0, new Uint8Array(512)), { code: "ERR_VIRTKIT_BLK_READ_ONLY" });
    const buffer = dma.alloc(512);
    assert.equal(await driver.request(VIRTIO_BLK_T_OUT, 0, [buffer], []), 1);
    assert.equal(backend.log.length, 0);
    await close();
  },
);

test("blk: past the end, misaligned and unknown requests get a status, and the device goes on", limit, async () => {
  const backend = new ManualBlockBackend({ capacity: MIB, blockSize: 4096, auto: "ordered" });
  const device = blkDevice(backend);
  const { driver, dma, close } = await rigOf(device);
  const buffer = dma.alloc(8192);
  const page = buffer.slice(0, 4096);
  const ask = (type: number, sector: number, segment = page) =>
    driver.request(
      type,
      sector,
      type === VIRTIO_BLK_T_OUT ? [segment] : [],
      type === VIRTIO_BLK_T_OUT ? [] : [segment],
    );
  for (const type of [VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT]) {
    assert.equal(await ask(type, MIB / 512), 1, "one past the last sector");
    assert.equal(await ask(type, MIB / 512 - 8, buffer), 1, "runs over the end");
    assert.equal(await ask(type, 2 ** 53), 1, "sector times 512 past 2^53");
    assert.equal(await ask(type, 2 ** 64 - 2048), 1, "sector that would wrap to 0");
    assert.equal(await ask(type, 1), 1, "not at a block");
    assert.equal(await ask(type, 0, buffer.slice(0, 512)), 1, "not a whole block");
    assert.equal(await ask(type, 0, buffer.slice(0, 100)), 1, "not a whole sector");
  }
  for (const unknown of [2, 3, 10, 12, 15, 17, 16, 0x80000000, 0xffffffff]) assert.equal(await ask(unknown, 0), 2);
  assert.equal(backend.log.length, 0);
  assert.equal(await ask(VIRTIO_BLK_T_IN, MIB / 512 - 8), 0);
  assert.equal(device.stats.errors, 14);
  assert.equal(device.stats.unsupported, 9);
  await close();
});

test("blk: a failed request fails alone, and its neighbours that were not merged with it do not", limit, async () => {
  const backend = new ManualBlockBackend({ auto: "ordered" });
  backend.fail = (request) => request.offset === 4096;
  const { driver, close } = await rigOf(blkDevice(backend));
  await assert.rejects(driver.read(4096, 512), { code: "ERR_VIRTKIT_BLK_IO" });
  await assert.rejects(driver.write(4096, new Uint8Array(512)), { code: "ERR_VIRTKIT_BLK_IO" });
  await driver.write(0, new Uint8Array(512).fill(7));
  assert.equal((await driver.read(0, 512))[511], 7);
  await close();
});

test(
  statements("blk: writethrough completes a write after its flush only, writeback before", `${OPERATION} #6`),
  limit,
  async () => {
    const backend = new ManualBlockBackend();
    const device = blkDevice(backend);
    const { driver, close } = await rigOf(device);
    assert.equal(driver.writeback, true);
    driver.setWriteback(false);
    assert.equal(driver.writeback, false);
    let done = false;
    const writing = driver.write(0, new Uint8Array(512)).then(() => {
      done = true;
    });
    await turns(() => backend.waiting.length > 0);
    assert.equal(backend.waiting[0]?.op, BLOCK_WRITE);
    backend.answerAll();
    await turns(() => backend.waiting.length > 0);
    assert.equal(backend.waiting[0]?.op, BLOCK_FLUSH);
    await turns();
    assert.equal(done, false);
    backend.answerAll();
    await writing;
    driver.setWriteback(true);
    const again = driver.write(0, new Uint8Array(512));
    await turns(() => backend.waiting.length > 0);
    backend.answerAll();
    await again;
    assert.deepEqual(
      backend.log.map(({ op }) => op),
      [BLOCK_WRITE, BLOCK_FLUSH, BLOCK_WRITE],
    );
    await close();
  },
);

test("blk: a flush that fails fails the writes that waited for it", limit, async () => {
  const backend = new ManualBlockBackend({ auto: "ordered" });
  backend.fail = ({ op }) => op === BLOCK_FLUSH;
  const { driver, close } = await rigOf(blkDevice(backend, { writeCache: "off" }));
  assert.equal(driver.writeback, false);
  await assert.rejects(driver.write(0, new Uint8Array(512)), { code: "ERR_VIRTKIT_BLK_IO" });
  await assert.rejects(driver.flush(), { code: "ERR_VIRTKIT_BLK_IO" });
  await close();
});

test("blk: more requests than slots wait in the ring and all come through", limit, async () => {
  const backend = new ManualBlockBackend();
  const device = blkDevice(backend, { maxInFlight: 3, numQueues: 2 });
  const { driver, dma, close } = await rigOf(device);
  const buffer = dma.alloc(512);
  const answers = Array.from({ length: 100 }, (_, i) => driver.request(VIRTIO_BLK_T_IN, i * 2, [], [buffer]));
  for (let left = 100; left > 0; ) {
    await turns(() => backend.waiting.length > 0);
    assert.ok(backend.waiting.length <= 3);
    left -= backend.answerAll();
  }
  assert.deepEqual(await Promise.all(answers), new Array(100).fill(0));
  await close();
});

test("blk: a request larger than one I/O is worked off in parts, also when guest memory moves", limit, async () => {
  for (const fixed of [true, false]) {
    for (const backend of [
      new ManualBlockBackend({ capacity: 16 * MIB, auto: 3 }),
      new MemoryBlockBackend({ capacity: 16 * MIB }),
    ]) {
      const device = blkDevice(backend);
      const { driver, dma, close } = await rigOf(device, { ...(RIG_CONFIGS[0] as RigConfig), fixed });
      const data = randomBytes(5 * MIB + 512);
      const buffer = dma.alloc(data.length);
      buffer.write(data);
      const parts = [buffer.slice(0, 512), buffer.slice(512, 3 * MIB), buffer.slice(512 + 3 * MIB, 2 * MIB)];
      assert.equal(await driver.request(VIRTIO_BLK_T_OUT, 1, parts, []), 0);
      buffer.write(new Uint8Array(data.length));
      assert.equal(await driver.request(VIRTIO_BLK_T_IN, 1, [], parts), 0);
      assert.deepEqual(Buffer.from(buffer.read()), data);
      assert.equal(device.stats.writtenBytes, data.length);
      await close();
    }
  }
});

test(
  "blk: a reset with I/O in flight over memory that moves lets go at once; late answers touch nothing",
  limit,
  async () => {
    const backend = new ManualBlockBackend({ contents: new Uint8Array(8192).fill(0x77) });
    const device = blkDevice(backend);
    const { driver, memory, close } = await rigOf(device, { ...(RIG_CONFIGS[0] as RigConfig), fixed: false });
    const reading = driver.read(0, 4096);
    const writing = driver.write(4096, new Uint8Array(4096).fill(1));
    const failures = Promise.allSettled([reading, writing]);
    await turns(() => backend.waiting.length === 2);
    await driver.restart();
    for (const { status } of await failures) assert.equal(status, "rejected");
    // The next write waits for the one that is still on its way, so that the disk sees them in order.
    const next = driver.write(4096, new Uint8Array(4096).fill(2));
    await turns();
    assert.equal(backend.waiting.length, 2);
    const before = memory.regions[0]?.u8.slice();
    for (const request of [...backend.waiting]) backend.answer(request);
    assert.ok(before !== undefined && Buffer.compare(before, memory.regions[0]?.u8 ?? new Uint8Array(0)) === 0);
    backend.completed();
    await turns(() => backend.waiting.length === 1);
    backend.answerAll();
    await next;
    assert.equal(backend.disk.peek(4096, 1)[0], 2);
    await close();
  },
);

test("blk: a reset with I/O in flight in guest memory itself waits for it", limit, async () => {
  const backend = new ManualBlockBackend();
  const { driver, close } = await rigOf(blkDevice(backend));
  const reading = assert.rejects(driver.read(0, 4096), { code: "ERR_VIRTKIT_RESET" });
  await turns(() => backend.waiting.length === 1);
  let restarted = false;
  const restarting = driver.restart().then(() => {
    restarted = true;
  });
  await turns();
  assert.equal(restarted, false);
  backend.answerAll();
  await restarting;
  await reading;
  await close();
});

test("blk: answers that are not due are dropped", limit, async () => {
  const backend = new ManualBlockBackend({ contents: new Uint8Array(512).fill(5) });
  const { driver, close } = await rigOf(blkDevice(backend));
  const reading = driver.read(0, 512);
  await turns(() => backend.waiting.length === 1);
  const [request] = backend.waiting as [(typeof backend.waiting)[0]];
  backend.stray(request.slot, request.generation - 1);
  backend.stray(request.slot + 1, 0);
  backend.completed();
  await turns();
  backend.answerAll();
  backend.stray(request.slot, request.generation);
  assert.equal((await reading)[0], 5);
  assert.equal((await driver.read(0, 0)).length, 0);
  await close();
});

test("blk: own buffers come back, and are bounded: more requests than fit wait", limit, async () => {
  const backend = new ManualBlockBackend({ capacity: 64 * MIB });
  const { driver, dma, close } = await rigOf(blkDevice(backend), { ...(RIG_CONFIGS[0] as RigConfig), fixed: false });
  const buffer = dma.alloc(2 * MIB);
  const reads = Array.from({ length: 40 }, (_, i) => driver.request(VIRTIO_BLK_T_IN, (i % 16) * 8192, [], [buffer]));
  for (let left = 40; left > 0; ) {
    await turns(() => backend.waiting.length > 0);
    assert.ok(backend.waiting.reduce((sum, { length }) => sum + length, 0) <= 32 * MIB);
    left -= backend.answerAll();
  }
  assert.deepEqual(await Promise.all(reads), new Array(40).fill(0));
  await close();
});

test("blk: each byte that is read is marked written once, however many parts the request has", limit, async () => {
  const device = blkDevice(new MemoryBlockBackend({ capacity: 16 * MIB }));
  const { driver, dma, memory, close } = await rigOf(device, { ...(RIG_CONFIGS[0] as RigConfig), fixed: false });
  const buffer = dma.alloc(5 * MIB);
  const parts = [buffer.slice(0, 3 * MIB), buffer.slice(3 * MIB, 2 * MIB)];
  let marked = 0;
  let next = buffer.address;
  memory.observeWrites((address, length) => {
    if (address < buffer.address || address >= buffer.address + buffer.length) return;
    assert.equal(address, next);
    next = address + length;
    marked += length;
  });
  assert.equal(await driver.request(VIRTIO_BLK_T_IN, 0, [], parts), 0);
  memory.observeWrites(undefined);
  assert.equal(marked, buffer.length);
  await close();
});

test("blk: a slot that rests holds no memory of the guest's and no own buffer", limit, async () => {
  for (const fixed of [true, false]) {
    let seen: BlockRequests | undefined;
    const backend = new ManualBlockBackend({ capacity: 8 * MIB, auto: 3 });
    const attach = backend.attach.bind(backend);
    backend.attach = (requests, sink) => {
      seen = requests;
      attach(requests, sink);
    };
    const { driver, close } = await rigOf(blkDevice(backend), { ...(RIG_CONFIGS[0] as RigConfig), fixed });
    await driver.write(0, new Uint8Array(MIB));
    await driver.read(0, MIB);
    const held = seen?.vector.flatMap(({ buffer }) => buffer.map(({ length }) => length)) ?? [];
    assert.ok(held.length > 0);
    assert.deepEqual(new Set(held), new Set([0]));
    await close();
  }
});

test("blk: neighbours are merged up to 2 MiB", limit, async () => {
  const backend = new ManualBlockBackend({ capacity: 16 * MIB, auto: "ordered" });
  const { driver, dma, close } = await rigOf(blkDevice(backend));
  const buffer = dma.alloc(MIB / 2);
  const batch = new BlkBatch(10);
  for (let i = 0; i < 10; i++) {
    batch.type[i] = VIRTIO_BLK_T_IN;
    batch.sector[i] = i * 1024;
    batch.address[i] = buffer.address;
    batch.length[i] = buffer.length;
  }
  assert.equal(driver.submit(batch, 0, 10), 10);
  await turns(() => batch.completed === 10);
  assert.deepEqual(
    backend.log.map(({ length }) => length / MIB),
    [2, 2, 1],
  );
  await close();
});

test("blk: a new size reaches the driver", limit, async () => {
  const backend = new MemoryBlockBackend({ capacity: MIB });
  const { driver, close } = await rigOf(blkDevice(backend));
  const changed = new Promise<number>((resolve) => {
    driver.onCapacityChanged = resolve;
  });
  backend.resize(2 * MIB);
  assert.equal(await changed, 2 * MIB);
  await driver.write(2 * MIB - 512, new Uint8Array(512).fill(9));
  await close();
});

for (const config of RIG_CONFIGS)
  test(`blk, ${config.transport}, ${config.name}: a disk grows and shrinks under load`, limit, async () => {
    const backend = new MemoryBlockBackend({ capacity: MIB });
    const { driver, close } = await rigOf(blkDevice(backend), config);
    const sizes: number[] = [];
    const seen = new Promise<void>((resolve) => {
      driver.onCapacityChanged = (capacity) => {
        sizes.push(capacity);
        if (capacity === MIB / 2) resolve();
      };
    });
    const load = Array.from({ length: 20 }, (_, i) => driver.write(i * 4096, new Uint8Array(4096).fill(i)));
    backend.resize(4 * MIB);
    await turns(() => driver.capacity === 4 * MIB);
    await driver.write(4 * MIB - 4096, new Uint8Array(4096).fill(3));
    backend.resize(MIB / 2);
    await Promise.all(load);
    await seen;
    assert.deepEqual(sizes, [4 * MIB, MIB / 2]);
    await assert.rejects(driver.read(MIB / 2, 512), { code: "ERR_VIRTKIT_BLK_RANGE" });
    assert.equal((await driver.read(19 * 4096, 1 * 512))[0], 19);
    await close();
  });

test("blk: the driver keeps to SIZE_MAX and SEG_MAX", limit, async () => {
  const backend = new ManualBlockBackend({ auto: "ordered" });
  const device = blkDevice(backend, { sizeMax: 4096, segMax: 4, queueSize: 16 });
  const { driver, close } = await rigOf(device);
  assert.deepEqual(driver.limits, { segMax: 4, sizeMax: 4096 });
  const data = randomBytes(100 * 1024);
  await driver.write(0, data);
  for (const { op, length } of backend.log) assert.ok(op === BLOCK_WRITE && length <= 4 * 4096);
  assert.deepEqual(Buffer.from(await driver.read(0, data.length)), data);
  await close();
});

test("blk: a request that never fits the queue is refused, and nobody behind it suffers", limit, async () => {
  const backend = new ManualBlockBackend({ capacity: MIB });
  const { driver, dma, close } = await rigOf(blkDevice(backend, { queueSize: 8 }));
  const buffer = dma.alloc(512);
  const read = (pieces: number) => driver.request(VIRTIO_BLK_T_IN, 0, [], new Array(pieces).fill(buffer));
  for (let i = 0; i < 10; i++) await assert.rejects(read(20), { code: "ERR_VIRTKIT_CHAIN" });
  // The ring is full now, so these wait.
  const first = Array.from({ length: 8 }, () => read(1));
  const waiting = [read(20), read(1)];
  const settled = Promise.allSettled([...first, ...waiting]);
  let done = false;
  void settled.then(() => {
    done = true;
  });
  while (!done) {
    backend.answerAll();
    await turns();
  }
  assert.deepEqual(
    (await settled).map(({ status }) => status),
    [...first.map(() => "fulfilled"), "rejected", "fulfilled"],
  );
  await close();
});

test("blk: a back end that throws costs the guest an I/O error, and nothing else", limit, async () => {
  const backend = new MemoryBlockBackend({ capacity: MIB });
  const device = blkDevice(backend, { environment: { ...testEnvironment, log: SILENT } });
  const { driver, close } = await rigOf(device);
  const submit = backend.submit.bind(backend);
  backend.submit = (slots, count) => {
    submit(slots, count - 1);
    throw new Error("broken");
  };
  await assert.rejects(driver.write(0, new Uint8Array(512)), { code: "ERR_VIRTKIT_BLK_IO" });
  await assert.rejects(driver.flush(), { code: "ERR_VIRTKIT_BLK_IO" });
  backend.submit = submit;
  await driver.write(0, new Uint8Array(512).fill(1));
  assert.equal((await driver.read(0, 512))[511], 1);
  assert.equal(device.inFlight, 0);
  assert.equal(device.stats.errors, 2);
  await close();
});

test("blk: configuration as QEMU lays it out", limit, async () => {
  const backend = new ManualBlockBackend({ capacity: 64 * MIB, auto: "ordered" });
  const options = { numQueues: 4, logicalBlockSize: 1024, physicalBlockSize: 4096, minIoSize: 4096, optIoSize: 65536 };
  const { driver, close } = await rigOf(blkDevice(backend, options));
  assert.equal(driver.queues.length, 4);
  assert.deepEqual(driver.limits, { segMax: 254, sizeMax: 2 ** 32 - 1 });
  assert.deepEqual(driver.topology, {
    logicalBlockSize: 1024,
    physicalBlockSize: 4096,
    minIoSize: 4096,
    optIoSize: 65536,
  });
  assert.deepEqual(driver.geometry, { cylinders: 130, heads: 16, sectors: 62 });
  await close();
});

test("blk: properties out of range are refused by name", limit, () => {
  const backend = new MemoryBlockBackend({ capacity: MIB });
  const wrong: [Partial<BlkDeviceOptions>, RegExp][] = [
    [{ queueSize: 3 }, /queue-size=3/],
    [{ numQueues: 0 }, /num-queues=0/],
    [{ serial: "x".repeat(21) }, /serial=/],
    [{ logicalBlockSize: 256 }, /logical_block_size=256/],
    [{ physicalBlockSize: 256 }, /physical_block_size=256/],
    [{ minIoSize: 100 }, /min_io_size=100/],
    [{ optIoSize: 100 }, /opt_io_size=100/],
    [{ segMax: 255 }, /seg-max=255/],
    [{ sizeMax: 1 }, /size-max=1/],
    [{ maxInFlight: 0 }, /maxInFlight 0/],
  ];
  for (const [options, message] of wrong)
    assert.throws(() => blkDevice(backend, options), { code: "ERR_VIRTKIT_BLK_OPTION", message });
});

test("blk: without FLUSH every write is durable when it completes", limit, () => {
  const device = blkDevice(new ManualBlockBackend());
  assert.equal(device.setFeatures(RING_FEATURES), true);
  assert.equal(device.writeback, false);
  device.reset();
  assert.equal(device.writeback, true);
});

/** Lets the event loop turn: until `condition` holds, or a few times. */
async function turns(condition?: () => boolean): Promise<void> {
  for (let i = 0; condition === undefined ? i < 10 : !condition(); i++) {
    assert.ok(i < 100_000, "waited in vain");
    await new Promise((resolve) => setImmediate(resolve));
  }
}
