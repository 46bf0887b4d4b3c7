import assert from "node:assert/strict";
import { test } from "node:test";
import type { Environment } from "../../common/environment.ts";
import { blockBackendContract, readOnlyBlockContract, whole } from "../../testing/block-backend.ts";
import { BlockClient } from "../../testing/block-client.ts";
import { nodeEnvironment } from "../../testing/loop-device.ts";
import { type Disk, type DiskSource, defineDisk } from "./disk.ts";
import type { DiskBackend } from "./disk-backend.ts";
import { MemoryBlockBackend } from "./memory.ts";
import { type OpenDiskOptions, openDisk } from "./open-disk.ts";
import {
  BLOCK_DISCARD,
  BLOCK_FLUSH,
  BLOCK_IO_ERROR,
  BLOCK_OK,
  BLOCK_READ,
  BLOCK_UNSUPPORTED,
  BLOCK_WRITE,
  type BlockBackend,
  type BlockRequests,
  type BlockSink,
} from "./types.ts";

const limit = { timeout: 20_000 };
const SIZE = 64 * 1024;

/** A disk in memory, answered at once or later. */
function ram(capacity: number, wait: () => Promise<void> | undefined): Disk {
  const bytes = new Uint8Array(capacity);
  const zero = async (offset: number, length: number) => {
    await wait();
    bytes.fill(0, offset, offset + length);
  };
  return {
    capacity,
    read: (offset, buffer) => {
      const later = wait();
      if (later === undefined) return bytes.slice(offset, offset + buffer.length);
      return later.then(() => void buffer.set(bytes.subarray(offset, offset + buffer.length)));
    },
    write: (offset, data) => {
      const later = wait();
      if (later !== undefined) return later.then(() => void bytes.set(data, offset));
      bytes.set(data, offset);
      return data.length;
    },
    flush: () => wait(),
    discard: zero,
    writeZeroes: zero,
  };
}

const environment = nodeEnvironment();
const later = () => new Promise<void>((resolve) => void setImmediate(resolve));

for (const [name, source] of [
  ["disk of one's own that answers at once", (capacity: number) => ram(capacity, () => undefined)],
  ["disk of one's own that answers later", (capacity: number) => ram(capacity, later)],
  ["disk of one's own that a function opens", (capacity: number) => async () => ram(capacity, later)],
  ["back end of one's own", (capacity: number) => new MemoryBlockBackend({ capacity })],
] as const)
  blockBackendContract(name, async (capacity) => ({ backend: await openDisk(source(capacity), { environment }) }));

const fives = { capacity: 4096, read: (_: number, buffer: Uint8Array) => void buffer.fill(5) };
readOnlyBlockContract("disk of one's own without write()", 5, async () => ({
  backend: await openDisk(fives, { environment }),
}));
readOnlyBlockContract("disk of one's own, opened read-only", 5, async () => ({
  backend: await openDisk({ ...fives, write: () => assert.fail("written") }, { environment, readOnly: true }),
}));

/** A disk with a clock that only the test moves, and what is logged. */
async function bench(source: DiskSource, options: Partial<OpenDiskOptions> = {}) {
  const messages: string[] = [];
  let now = 0;
  const timers = new Set<{ at: number; task: () => void }>();
  const clock: Environment = {
    defer: (task) => void setImmediate(task),
    after: (milliseconds, task) => {
      const timer = { at: now + milliseconds, task };
      timers.add(timer);
      return () => void timers.delete(timer);
    },
    now: () => now,
    log: { log: (level, message) => void messages.push(`${level}: ${message}`) },
  };
  const backend = await openDisk(source, { environment: clock, name: "own.mjs", ...options });
  return {
    messages,
    backend,
    timers,
    advance: async (milliseconds: number) => {
      now += milliseconds;
      for (const timer of [...timers].filter(({ at }) => at <= now)) {
        timers.delete(timer);
        timer.task();
      }
      await later();
    },
  };
}

const block = (fill = 0) => whole(new Uint8Array(512).fill(fill));
const read = (offset = 0) => ({ op: BLOCK_READ, offset, pieces: [block()] });
const write = (offset = 0) => ({ op: BLOCK_WRITE, offset, pieces: [block(1)] });
const flush = { op: BLOCK_FLUSH, offset: 0, pieces: [] };

test("own disk: what it throws or rejects with is an I/O error, and told once in 5 seconds", limit, async () => {
  const { backend, messages, advance } = await bench(
    defineDisk({
      capacity: SIZE,
      read() {
        throw new RangeError("boom");
      },
      write: () => Promise.reject("no room"),
      flush: () => Promise.reject(new Error("first line\nsecond line")),
    }),
  );
  const client = new BlockClient(backend);
  assert.deepEqual(await client.run(read(512), read(), write(), flush), new Array(4).fill(BLOCK_IO_ERROR));
  assert.equal(messages.length, 1);
  assert.match(
    messages[0] ?? "",
    /^error: own\.mjs: a read of 512 bytes at 512 failed: RangeError: boom; the guest gets an I\/O error$/,
  );
  await advance(5000);
  assert.deepEqual(await client.run(write(1024)), [BLOCK_IO_ERROR]);
  assert.match(
    messages[1] ?? "",
    /a write of 512 bytes at 1024 failed: no room; the guest gets an I\/O error \(and 3 more like it\)$/,
  );
  await advance(5000);
  await client.run(flush);
  assert.match(messages[2] ?? "", /a flush failed: Error: first line; /);
  assert.deepEqual(backend.faults, { errors: 6, timeouts: 0, strays: 0 });
});

const ANSWERS: readonly (readonly [what: string, answer: unknown, message: RegExp | undefined])[] = [
  ["nothing", undefined, undefined],
  ["the number of bytes", 512, undefined],
  ["what a FileHandle returns", { bytesRead: 512, buffer: new Uint8Array(512) }, undefined],
  ["the bytes", new Uint8Array(512), undefined],
  ["too few bytes", new Uint8Array(100), /read\(\) returned 100 bytes where 512 were asked for/],
  ["too many bytes", new Uint8Array(513), /read\(\) returned 513 bytes where 512/],
  ["too small a number", 0, /read\(\) returned 0 bytes where 512/],
  ["too large a number", { bytesRead: 1e9 }, /read\(\) returned 1000000000 bytes/],
  [
    "a string",
    "x".repeat(512),
    /read\(\) returned a string; fill the buffer and return nothing, or return a Uint8Array/,
  ],
  ["null", null, /read\(\) returned null/],
  ["an array", new Array(512).fill(0), /read\(\) returned an array/],
];

for (const [what, answer, message] of ANSWERS)
  test(`own disk: read() that answers ${what}`, limit, async () => {
    for (const how of [(value: unknown) => value, (value: unknown) => Promise.resolve(value)]) {
      const { backend, messages } = await bench({ capacity: SIZE, read: () => how(answer) as undefined });
      const [result] = await new BlockClient(backend).run(read());
      assert.equal(result, message === undefined ? BLOCK_OK : BLOCK_IO_ERROR);
      if (message === undefined) assert.deepEqual(messages, []);
      else assert.match(messages[0] ?? "", message);
    }
  });

test("own disk: write() that takes less than it was given, or answers nonsense", limit, async () => {
  for (const [answer, message] of [
    [100, /write\(\) took 100 of 512 bytes/],
    [{ bytesWritten: 0 }, /write\(\) took 0 of 512 bytes/],
    ["yes", /write\(\) returned a string/],
  ] as const) {
    const { backend, messages } = await bench({ ...fives, write: () => answer as number });
    assert.deepEqual(await new BlockClient(backend).run(write()), [BLOCK_IO_ERROR]);
    assert.match(messages[0] ?? "", message);
  }
});

test(
  "own disk: what it keeps of a request stays as it was, and what it writes late reaches nobody",
  limit,
  async () => {
    const kept: Uint8Array[] = [];
    const { backend } = await bench({
      capacity: SIZE,
      read: (_, buffer) => void kept.push(buffer.fill(1)),
      write: (_, data) => void kept.push(data),
    });
    const client = new BlockClient(backend);
    const pieces = [whole(new Uint8Array(512).fill(7))];
    await client.run({ op: BLOCK_WRITE, offset: 0, pieces });
    pieces[0]?.buffer.fill(8);
    assert.ok(kept[0]?.every((byte) => byte === 7));
    await client.run({ op: BLOCK_READ, offset: 0, pieces });
    kept[1]?.fill(9);
    assert.ok(pieces[0]?.buffer.every((byte) => byte === 1));
  },
);

test("own disk: a request that is not answered fails in time, the others go on", limit, async () => {
  let release: (() => void) | undefined;
  const { backend, messages, advance, timers } = await bench({
    capacity: SIZE,
    read: (offset, buffer) =>
      offset === 0
        ? new Promise((resolve) => {
            release = () => resolve(void buffer.fill(9));
          })
        : void buffer.fill(3),
  });
  const client = new BlockClient(backend);
  const into = new Uint8Array(512);
  const hangs = client.run({ op: BLOCK_READ, offset: 0, pieces: [whole(into)] });
  await advance(9_999);
  assert.deepEqual(await client.run(read(512)), [BLOCK_OK]);
  assert.equal(client.order.length, 1);
  await advance(1);
  assert.deepEqual(await hangs, [BLOCK_IO_ERROR]);
  assert.match(
    messages[0] ?? "",
    /^error: own\.mjs: a read of 512 bytes at 0 was not answered within 10 s; .*timeout=/,
  );
  release?.();
  await later();
  assert.ok(into.every((byte) => byte === 0));
  assert.deepEqual(backend.faults, { errors: 0, timeouts: 1, strays: 0 });
  assert.deepEqual(await client.run(read(512)), [BLOCK_OK]);
  await advance(60_000);
  assert.deepEqual([messages.length, timers.size], [1, 0]);
});

test(
  "own disk: while it answers nothing at all, requests fail after a second; then they have their time again",
  limit,
  async () => {
    const waiting: (() => void)[] = [];
    const { backend, messages, advance } = await bench({
      capacity: SIZE,
      read: () => new Promise((resolve) => void waiting.push(() => resolve(undefined))),
    });
    const client = new BlockClient(backend);
    const first = client.run(read());
    await advance(10_000);
    assert.deepEqual(await first, [BLOCK_IO_ERROR]);
    const second = client.run(read());
    await advance(1000);
    assert.deepEqual(await second, [BLOCK_IO_ERROR]);
    assert.equal(messages.length, 1);
    waiting[0]?.();
    await later();
    const third = client.run(read());
    await advance(9000);
    waiting[2]?.();
    assert.deepEqual(await third, [BLOCK_OK]);
    assert.deepEqual(backend.faults, { errors: 0, timeouts: 2, strays: 0 });
  },
);

test("own disk: of requests that are never answered it gets 256, and no more", limit, async () => {
  let asked = 0;
  const never = {
    capacity: SIZE,
    read: () => {
      asked++;
      return new Promise<undefined>(() => {});
    },
  };
  const { backend, messages, advance } = await bench(never, { timeout: 500 });
  const client = new BlockClient(backend);
  for (let round = 0; round < 6; round++) {
    const all = client.run(...Array.from({ length: 60 }, () => read()));
    await advance(500);
    assert.deepEqual(await all, new Array(60).fill(BLOCK_IO_ERROR));
  }
  assert.ok(asked >= 256 && asked < 320, `${asked}`);
  assert.match(messages.join("\n"), /256 requests were never answered/);
});

test("own disk: timeout 0 waits for ever, but not at the end", limit, async () => {
  const never = () => new Promise<undefined>(() => {});
  const { backend, messages, advance } = await bench(
    { capacity: SIZE, read: never, write: never, flush: never, close: never },
    { timeout: 0 },
  );
  const client = new BlockClient(backend);
  const hangs = client.run(read());
  await advance(1e9);
  assert.equal(client.order.length, 0);
  const closed = backend.close();
  for (let i = 0; i < 3; i++) await advance(10_000);
  await closed;
  assert.deepEqual(await hangs, [BLOCK_IO_ERROR]);
  assert.deepEqual(
    messages.map((message) => /did not (.*) within 10 s/.exec(message)?.[1]),
    ["answer what it was asked", "flush", "close"],
  );
});

test("own disk: close() flushes, then closes; what fails there is told", limit, async () => {
  const calls: string[] = [];
  const { backend, messages } = await bench({
    capacity: SIZE,
    read: () => undefined,
    write: () => undefined,
    flush: () => void calls.push("flush"),
    close: async () => {
      calls.push("close");
      throw new Error("too late");
    },
  });
  new BlockClient(backend);
  await backend.close();
  assert.deepEqual(calls, ["flush", "close"]);
  assert.deepEqual(messages, ["error: own.mjs: close failed: Error: too late"]);
});

/** A back end that answers as the test says. */
class Raw implements BlockBackend {
  readonly name = "raw";
  readonly capacity = SIZE;
  readonly readOnly = false;
  readonly blockSize = 512;
  readonly physicalBlockSize = 512;
  readonly inline = false;
  sink: BlockSink | undefined;
  requests: BlockRequests | undefined;
  readonly act: (raw: Raw, slot: number, generation: number) => void;

  constructor(act: Raw["act"]) {
    this.act = act;
  }
  attach(requests: BlockRequests, sink: BlockSink): void {
    this.requests = requests;
    this.sink = sink;
  }
  submit(slots: ArrayLike<number>, count: number): void {
    for (let i = 0; i < count; i++)
      this.act(this, slots[i] as number, this.requests?.generation[slots[i] as number] as number);
  }
  async close(): Promise<void> {}
}

test(
  "own back end: a request that it answers twice is done once; the rest is counted and told once",
  limit,
  async () => {
    const { backend, messages } = await bench(
      new Raw((raw, slot, generation) => {
        const answer = () => raw.sink?.complete(slot, generation, BLOCK_OK);
        answer();
        answer();
        setImmediate(answer);
      }),
    );
    const client = new BlockClient(backend);
    for (let i = 0; i < 10; i++) assert.deepEqual(await client.run(read(), write(512)), [BLOCK_OK, BLOCK_OK]);
    await later();
    assert.equal(backend.faults.strays, 40);
    assert.deepEqual(messages, [
      "error: own.mjs: answered twice, or without being asked: a read of 512 bytes at 0; ignored",
    ]);
  },
);

test(
  "own back end: answers for slots that there are not, or with no result, and an exception in submit",
  limit,
  async () => {
    const strays = await bench(
      new Raw((raw, slot, generation) => {
        for (const other of [-1, 1e9, Number.NaN, slot + 0.5]) raw.sink?.complete(other, generation, BLOCK_OK);
        raw.sink?.complete(slot, generation - 1, BLOCK_OK);
        raw.sink?.complete(slot, generation, 77);
        raw.sink?.resized(-5);
      }),
    );
    assert.deepEqual(await new BlockClient(strays.backend).run(read()), [BLOCK_IO_ERROR]);
    assert.deepEqual(strays.backend.faults, { errors: 1, timeouts: 0, strays: 5 });
    assert.equal(strays.backend.capacity, SIZE);
    assert.match(strays.messages.join("\n"), /capacity is -5/);
    const throws = await bench(
      new Raw((raw, slot, generation) => {
        if (raw.requests?.offset[slot] === 512) throw new Error("boom");
        raw.sink?.complete(slot, generation, BLOCK_OK);
      }),
    );
    const results = await new BlockClient(throws.backend).run(read(), read(512), read(1024));
    assert.deepEqual(results, [BLOCK_OK, BLOCK_IO_ERROR, BLOCK_IO_ERROR]);
  },
);

test("own disk: without flush, discard and the like", limit, async () => {
  const { backend } = await bench({ capacity: SIZE, read: () => undefined, write: () => undefined });
  const client = new BlockClient(backend);
  const discard = { op: BLOCK_DISCARD, offset: 0, length: 512, pieces: [] };
  assert.deepEqual(await client.run(flush, discard), [BLOCK_OK, BLOCK_UNSUPPORTED]);
  assert.deepEqual([backend.discard, backend.writeZeroes, backend.resize], [false, false, undefined]);
});

test("own disk: it can be given another size where it has resize()", limit, async () => {
  const sizes: number[] = [];
  const { backend } = await bench({ ...fives, resize: (capacity) => void sizes.push(capacity) });
  const client = new BlockClient(backend);
  await backend.resize?.(8192);
  assert.deepEqual([client.capacity, backend.capacity, sizes], [8192, 8192, [8192]]);
});

test("own disk: a capacity that changes by itself is not followed", limit, async () => {
  const disk = { ...fives, capacity: 4096 };
  const { backend, messages } = await bench(disk);
  const client = new BlockClient(backend);
  disk.capacity = 8192;
  await client.run(read());
  assert.equal(backend.capacity, 4096);
  assert.deepEqual(messages, ["warn: own.mjs: its capacity was 4096 and is 8192 now; the guest keeps the first"]);
});

const REFUSED: readonly (readonly [what: string, value: unknown, message: RegExp])[] = [
  ["a string", "disk.img", /^own\.mjs is no disk: it is a string; give an object with capacity and read\(\)/],
  ["null", null, /it is null/],
  ["an empty object", {}, /capacity is missing.*; read is missing: give a function read\(offset, buffer\)/],
  ["a misspelt capacity", { size: 4096, read() {} }, /capacity is missing.*\(it has size, which means nothing here\)/],
  ["a capacity that is text", { ...fives, capacity: "4096" }, /capacity is a string; give a number of bytes/],
  ["a capacity that is a bigint", { ...fives, capacity: 4096n }, /capacity is a bigint/],
  ["a capacity of NaN", { ...fives, capacity: Number.NaN }, /capacity is NaN; give a whole number of bytes above 0/],
  ["a negative capacity", { ...fives, capacity: -512 }, /capacity is -512/],
  ["a capacity of 0", { ...fives, capacity: 0 }, /capacity is 0/],
  ["an endless capacity", { ...fives, capacity: Number.POSITIVE_INFINITY }, /capacity is Infinity/],
  ["a capacity beyond 2^53", { ...fives, capacity: 2 ** 60 }, /capacity is 1152921504606847000; give a whole number/],
  ["a capacity of half blocks", { ...fives, capacity: 1000 }, /no multiple of the block size 512.*512 and 1024/],
  ["a capacity of half large blocks", { ...fives, capacity: 6144, blockSize: 4096 }, /block size 4096.*4096 and 8192/],
  ["a block size of 1000", { ...fives, blockSize: 1000 }, /blockSize is 1000; give a power of two from 512 to 2097152/],
  ["a block size that is text", { ...fives, blockSize: "512" }, /blockSize is a string/],
  [
    "a physical block that is smaller",
    { ...fives, blockSize: 1024, physicalBlockSize: 512 },
    /physicalBlockSize is 512/,
  ],
  ["a read that is no function", { capacity: 512, read: 5 }, /read is a number/],
  ["a write that is no function", { ...fives, write: true }, /write is a boolean; give a function, or leave it out/],
  ["a readOnly that is text", { ...fives, readOnly: "no" }, /readOnly is a string; give true or false/],
  ["no write, though writable", { ...fives, readOnly: false }, /write is missing/],
  ["half a back end", { capacity: 512, submit() {} }, /attach is undefined; a BlockBackend has both/],
  [
    "a capacity that throws",
    Object.defineProperty({}, "capacity", {
      get: () => {
        throw new Error("boom");
      },
    }),
    /looking at it failed: Error: boom/,
  ],
  ["a function that throws", () => Promise.reject(new Error("no server")), /opening it failed: Error: no server/],
  ["a function that opens nothing", () => undefined, /it is undefined/],
];

for (const [what, value, message] of REFUSED)
  test(`own disk: ${what} is refused with the reason`, limit, async () => {
    await assert.rejects(openDisk(value, { environment, name: "own.mjs" }), (error) => {
      assert.equal((error as { code?: string }).code, "ERR_VIRTKIT_MODULE");
      assert.match((error as Error).message, message);
      return true;
    });
  });

test("own disk: a function that does not come to an end is not waited for", limit, async () => {
  const timers: (() => void)[] = [];
  const opening: Promise<DiskBackend> = openDisk(() => new Promise<Disk>(() => {}), {
    environment: {
      ...environment,
      after: (_, task) => {
        timers.push(task);
        return () => undefined;
      },
    },
    name: "own.mjs",
  });
  timers[0]?.();
  await assert.rejects(opening, /own\.mjs: opening it takes longer than 10 s/);
});

test("own disk: a function is told the drive's options", limit, async () => {
  const { messages } = await bench(
    ({ options, readOnly, log }) => {
      log(`${JSON.stringify(options)} ${readOnly}`);
      return fives;
    },
    { options: { size: "4M" }, readOnly: true },
  );
  assert.deepEqual(messages, ['warn: own.mjs: {"size":"4M"} true']);
});
