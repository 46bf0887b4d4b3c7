import assert from "node:assert/strict";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import {
  BLOCK_DISCARD,
  BLOCK_FLUSH,
  BLOCK_IO_ERROR,
  BLOCK_OK,
  BLOCK_READ,
  BLOCK_WRITE,
} from "../../backend/block/types.ts";
import { BlkDevice } from "../../device/blk.ts";
import { BlkDriver } from "../../driver/blk.ts";
import { blockBackendContract, readOnlyBlockContract, whole } from "../../testing/block-backend.ts";
import { BlockClient } from "../../testing/block-client.ts";
import { createRig, RIG_CONFIGS, type RigConfig, testEnvironment } from "../../testing/rig.ts";
import { FileBlockBackend, type FileBlockOptions, type FileCalls } from "./file-block.ts";
import type { PunchCall } from "./punch-call.ts";
import { openOverlay } from "./scratch-file.ts";

const limit = { timeout: 60_000 };
const folder = fs.mkdtempSync(join(tmpdir(), "virtkit-file-"));
after(() => fs.rmSync(folder, { recursive: true, force: true }));

let files = 0;
function imageOf(size: number, byte = 0): string {
  const path = join(folder, `image${files++}`);
  fs.writeFileSync(path, byte === 0 ? "" : Buffer.alloc(size, byte));
  fs.truncateSync(path, size);
  return path;
}

const open = (path: string, options: Partial<FileBlockOptions> = {}) =>
  FileBlockBackend.open({ path, environment: testEnvironment, ...options });

/** Node's calls, with what a test wants changed. */
const calls = (changed: Partial<FileCalls>): FileCalls => ({
  read: fs.read,
  readv: fs.readv,
  write: fs.write,
  writev: fs.writev,
  fdatasync: fs.fdatasync,
  ...changed,
});

const errno = (code: string): NodeJS.ErrnoException => Object.assign(new Error(`${code}: on purpose`), { code });

blockBackendContract("file", async (capacity) => {
  const path = imageOf(capacity);
  return { backend: await open(path), undo: async () => fs.rmSync(path) };
});

blockBackendContract("file whose system moves a few bytes at a time", async (capacity) => {
  const path = imageOf(capacity);
  let seed = 1;
  const few = (length: number): number => {
    seed = (seed * 1103515245 + 12345) & 0x7fffffff;
    return 1 + ((seed >> 8) % Math.min(length, 3000));
  };
  const short = calls({
    read: (fd, buffer, offset, length, position, done) => fs.read(fd, buffer, offset, few(length), position, done),
    write: (fd, buffer, offset, length, position, done) => fs.write(fd, buffer, offset, few(length), position, done),
    readv: (fd, buffers, position, done) => {
      const [first] = buffers as [Uint8Array];
      fs.read(fd, first, 0, few(first.length), position, done);
    },
    writev: (fd, buffers, position, done) => {
      const [first] = buffers as [Uint8Array];
      fs.write(fd, first, 0, few(first.length), position, done);
    },
  });
  return { backend: await open(path, { calls: short }), undo: async () => fs.rmSync(path) };
});

blockBackendContract("file that frees blocks", async (capacity) => {
  const path = imageOf(capacity);
  return { backend: await open(path, { discard: "unmap" }), undo: async () => fs.rmSync(path) };
});

blockBackendContract("file on a host that cannot free blocks", async (capacity) => {
  const path = imageOf(capacity);
  const punch: PunchCall = (_fd, _offset, _length, done) => done("on purpose");
  return { backend: await open(path, { discard: "unmap", punch }), undo: async () => fs.rmSync(path) };
});

test("file: discards free the host's blocks with discard=unmap, and only then", limit, async () => {
  for (const [discard, expected] of [
    ["unmap", 2],
    ["ignore", 4],
  ] as const) {
    const path = imageOf(4 * 2 ** 20, 1);
    const backend = await open(path, { discard });
    const client = new BlockClient(backend);
    const op = BLOCK_DISCARD;
    const asks = [0, 1].map((i) => ({ op, offset: i * 2 ** 20, length: 2 ** 20, pieces: [] }));
    assert.deepEqual(await client.run(...asks), [BLOCK_OK, BLOCK_OK]);
    await backend.close();
    assert.equal(fs.statSync(path).size, 4 * 2 ** 20);
    const held = (fs.statSync(path).blocks * 512) / 2 ** 20;
    assert.ok(Math.abs(held - expected) < 0.2, `${discard}: ${held} MiB`);
  }
});

test("file: neighbouring discards wait as one, and one that fails is told once", limit, async () => {
  const holes: [number, number][] = [];
  const messages: string[] = [];
  const log = { log: (_level: string, message: string) => void messages.push(message) };
  const punch: PunchCall = (_fd, offset, length, done) => {
    holes.push([offset, length]);
    setImmediate(() => done(holes.length < 2 ? undefined : "on purpose"));
  };
  const environment = { ...testEnvironment, log };
  const backend = await open(imageOf(8 * 2 ** 20, 1), { discard: "unmap", punch, environment });
  const client = new BlockClient(backend);
  const discard = (offset: number, length: number) => ({ op: BLOCK_DISCARD, offset, length, pieces: [] });
  const MIB = 2 ** 20;
  const results = await client.run(
    discard(0, MIB),
    discard(MIB, MIB),
    discard(2 * MIB, MIB),
    discard(5 * MIB, MIB),
    discard(4 * MIB, 512),
  );
  assert.deepEqual(results, new Array(5).fill(BLOCK_OK));
  assert.deepEqual(holes, [
    [0, MIB],
    [MIB, 2 * MIB],
  ]);
  assert.equal(messages.length, 1);
  assert.match(messages[0] as string, /no space can be given back to the host \(on purpose\)/);
  await backend.close();
});

blockBackendContract("overlay in a temporary file", async (capacity) => {
  const path = imageOf(capacity);
  const backend = await openOverlay(await open(path, { readOnly: true }), { environment: testEnvironment });
  return { backend, undo: async () => fs.rmSync(path) };
});

readOnlyBlockContract("file opened read-only", 6, async () => ({
  backend: await open(imageOf(4096, 6), { readOnly: true }),
}));

test("file: 5 GiB and offsets past 4 GiB, through device and driver", limit, async () => {
  const path = imageOf(5 * 2 ** 30);
  const backend = await open(path);
  const device = new BlkDevice({ backend, environment: testEnvironment });
  const { driver, close } = await createRig(device, BlkDriver.type, RIG_CONFIGS[0] as RigConfig);
  assert.equal(driver.capacity, 5 * 2 ** 30);
  const at = 4 * 2 ** 30 + 4096;
  await driver.write(at, new Uint8Array(4096).fill(0x5a));
  assert.ok((await driver.read(at, 4096)).every((byte) => byte === 0x5a));
  assert.ok((await driver.read(at - 512, 512)).every((byte) => byte === 0));
  assert.ok((await driver.read(4096, 512)).every((byte) => byte === 0));
  await driver.flush();
  await close();
  await backend.close();
  const fd = fs.openSync(path, "r");
  const byte = new Uint8Array(1);
  fs.readSync(fd, byte, 0, 1, at + 4095);
  fs.closeSync(fd);
  assert.equal(byte[0], 0x5a);
  assert.ok(fs.statSync(path).blocks * 512 < 2 ** 20, "the file stayed sparse");
  fs.rmSync(path);
});

test("file: a flush of the guest's is an fdatasync, and writethrough makes one for each write", limit, async () => {
  const log: string[] = [];
  const watched = calls({
    write: (fd, buffer, offset, length, position, done) =>
      fs.write(fd, buffer, offset, length, position, (error, n) => {
        log.push("wrote");
        done(error, n);
      }),
    fdatasync: (fd, done) =>
      fs.fdatasync(fd, (error) => {
        log.push("synced");
        done(error);
      }),
  });
  const backend = await open(imageOf(65536), { calls: watched });
  const device = new BlkDevice({ backend, environment: testEnvironment });
  const { driver, close } = await createRig(device, BlkDriver.type, RIG_CONFIGS[0] as RigConfig);
  await driver.write(0, new Uint8Array(512));
  log.push("write done");
  await driver.flush();
  log.push("flush done");
  driver.setWriteback(false);
  await driver.write(0, new Uint8Array(512));
  log.push("write done");
  assert.deepEqual(log, ["wrote", "write done", "synced", "flush done", "wrote", "synced", "write done"]);
  await close();
  await backend.close();
});

test("file: a full disk is an I/O error, logged once, and the guest goes on", limit, async () => {
  const lines: string[] = [];
  let full = true;
  const failing = calls({
    write: (fd, buffer, offset, length, position, done) => {
      if (full) setImmediate(done, errno("ENOSPC"), 0);
      else fs.write(fd, buffer, offset, length, position, done);
    },
  });
  const environment = { ...testEnvironment, log: { log: (_level: string, line: string) => void lines.push(line) } };
  const backend = await open(imageOf(65536), { calls: failing, environment });
  const device = new BlkDevice({ backend, environment });
  const { driver, close } = await createRig(device, BlkDriver.type, RIG_CONFIGS[0] as RigConfig);
  for (let i = 0; i < 5; i++)
    await assert.rejects(driver.write(0, new Uint8Array(512)), { code: "ERR_VIRTKIT_BLK_IO" });
  assert.equal(lines.length, 1);
  assert.match(lines[0] as string, /image\d+: writing failed: ENOSPC.*the guest gets an I\/O error/);
  full = false;
  await driver.write(0, new Uint8Array(512).fill(1));
  assert.equal((await driver.read(0, 512))[0], 1);
  await close();
  await backend.close();
});

test("file: after a flush that failed every later one fails, and closing says so", limit, async () => {
  let failures = 1;
  const failing = calls({
    fdatasync: (fd, done) => (failures-- > 0 ? void setImmediate(done, errno("EIO")) : fs.fdatasync(fd, done)),
  });
  const backend = await open(imageOf(4096), { calls: failing });
  const client = new BlockClient(backend);
  const flush = { op: BLOCK_FLUSH, offset: 0, pieces: [] };
  assert.deepEqual(await client.run(flush), [BLOCK_IO_ERROR]);
  assert.deepEqual(await client.run(flush), [BLOCK_IO_ERROR]);
  failures = 1;
  await assert.rejects(backend.close(), { code: "ERR_VIRTKIT_IMAGE_FLUSH" });
});

test("file: closing makes the last writes durable", limit, async () => {
  let syncs = 0;
  const counted = calls({
    fdatasync: (fd, done) => {
      syncs++;
      fs.fdatasync(fd, done);
    },
  });
  const path = imageOf(4096);
  const backend = await open(path, { calls: counted });
  const client = new BlockClient(backend);
  await client.run({ op: BLOCK_WRITE, offset: 0, pieces: [whole(new Uint8Array(512))] });
  assert.equal(syncs, 0);
  await backend.close();
  assert.equal(syncs, 1);
  const idle = await open(path, { calls: counted });
  await idle.close();
  assert.equal(syncs, 1);
});

test(
  "file: a size that is no whole sectors is rounded up with zeros, and the file grows when its end is written",
  limit,
  async () => {
    const path = imageOf(1000, 8);
    const backend = await open(path);
    assert.equal(backend.capacity, 1024);
    const client = new BlockClient(backend);
    const into = new Uint8Array(1024).fill(9);
    assert.deepEqual(await client.run({ op: BLOCK_READ, offset: 0, pieces: [whole(into)] }), [BLOCK_OK]);
    assert.deepEqual([into[999], into[1000], into[1023]], [8, 0, 0]);
    assert.equal(fs.statSync(path).size, 1000);
    await client.run({ op: BLOCK_WRITE, offset: 512, pieces: [whole(into.subarray(512))] });
    assert.equal(fs.statSync(path).size, 1024);
    await backend.close();
  },
);

test("file: a file that was cut short behind our back gives errors, not zeros", limit, async () => {
  const path = imageOf(8192, 1);
  const backend = await open(path);
  fs.truncateSync(path, 4096);
  const client = new BlockClient(backend);
  const into = whole(new Uint8Array(4096));
  assert.deepEqual(await client.run({ op: BLOCK_READ, offset: 4096, pieces: [into] }), [BLOCK_IO_ERROR]);
  assert.deepEqual(await client.run({ op: BLOCK_READ, offset: 0, pieces: [into] }), [BLOCK_OK]);
  await backend.close();
});

test("file: resizing reaches the file and the device", limit, async () => {
  const path = imageOf(4096);
  const backend = await open(path);
  const client = new BlockClient(backend);
  await backend.resize(8192);
  assert.deepEqual([client.capacity, backend.capacity, fs.statSync(path).size], [8192, 8192, 8192]);
  await assert.rejects(backend.resize(100), { code: "ERR_VIRTKIT_BLOCK_SIZE" });
  await backend.close();
});

test("file: images that cannot be used are refused with a reason and a way out", limit, async () => {
  const missing = join(folder, "missing");
  await assert.rejects(open(missing), {
    code: "ERR_VIRTKIT_IMAGE_MISSING",
    message: /^file=.*missing: there is no such/,
  });
  await assert.rejects(open(join(imageOf(512), "x")), { code: "ERR_VIRTKIT_IMAGE_MISSING" });
  await assert.rejects(open(folder), { code: "ERR_VIRTKIT_IMAGE_DIRECTORY", message: /is a directory/ });
  await assert.rejects(open("/dev/null"), { code: "ERR_VIRTKIT_IMAGE_KIND" });
  const path = imageOf(4096);
  const first = await open(path);
  await assert.rejects(open(path), { code: "ERR_VIRTKIT_IMAGE_LOCKED" });
  await assert.rejects(open(path, { readOnly: true }), { code: "ERR_VIRTKIT_IMAGE_LOCKED" });
  const link = join(folder, "link");
  fs.symlinkSync(path, link);
  await assert.rejects(open(link), { code: "ERR_VIRTKIT_IMAGE_LOCKED" });
  await (await open(path, { locking: false })).close();
  await first.close();
  const readers = await Promise.all([open(path, { readOnly: true }), open(path, { readOnly: true })]);
  await assert.rejects(open(path), { code: "ERR_VIRTKIT_IMAGE_LOCKED" });
  for (const reader of readers) await reader.close();
  await (await open(path)).close();
});

test("file: no permission is told apart", limit, async () => {
  const path = imageOf(4096);
  fs.chmodSync(path, 0o444);
  await asNobody(path, async () => {
    await assert.rejects(open(path), { code: "ERR_VIRTKIT_IMAGE_PERMISSION", message: /readonly=on/ });
    fs.chmodSync(path, 0);
    await assert.rejects(open(path, { readOnly: true }), { code: "ERR_VIRTKIT_IMAGE_PERMISSION" });
  });
});

/** Root may write everything, so a test of permissions that runs as root has to be somebody else for a while, who owns `path`. */
async function asNobody(path: string, work: () => Promise<void>): Promise<void> {
  if (process.seteuid === undefined || process.getuid?.() !== 0) return work();
  const nobody = 65534;
  fs.chmodSync(dirname(path), 0o755);
  fs.chownSync(path, nobody, nobody);
  process.seteuid(nobody);
  try {
    await work();
  } finally {
    process.seteuid(0);
  }
}

/** Requests whose buffers are good inside submit only. */
function nowClient(backend: FileBlockBackend): BlockClient {
  const client = new BlockClient(backend);
  client.requests.now.fill(1);
  return client;
}

const answersNow = async (client: BlockClient, ask: Parameters<BlockClient["run"]>[0]): Promise<number> => {
  const before = client.order.length;
  const done = client.run(ask);
  assert.equal(client.order.length, before + 1, "answered inside submit");
  return (await done)[0] as number;
};

test("what must be answered inside submit is, in one piece or many, to the end of an odd file", limit, async () => {
  const path = imageOf(8192 + 100, 7);
  const few = (length: number): number => Math.max(1, Math.floor(length / 3));
  const backend = await open(path, {
    calls: {
      ...calls({}),
      readSync: (fd, buffer, offset, length, position) => fs.readSync(fd, buffer, offset, few(length), position),
      readvSync: (fd, buffers, position) => fs.readvSync(fd, [buffers[0]?.subarray(0, 100) as Uint8Array], position),
      writeSync: (fd, buffer, offset, length, position) => fs.writeSync(fd, buffer, offset, few(length), position),
      writevSync: (fd, buffers, position) => fs.writevSync(fd, [buffers[0]?.subarray(0, 9) as Uint8Array], position),
    },
  });
  const client = nowClient(backend);
  const data = Buffer.from(Array.from({ length: 1024 }, (_, i) => i & 0xff));
  const pieces = [whole(data.subarray(0, 512)), whole(data.subarray(512))];
  assert.equal(await answersNow(client, { op: BLOCK_WRITE, offset: 512, pieces }), BLOCK_OK);
  assert.equal(await answersNow(client, { op: BLOCK_WRITE, offset: 4096, pieces: [whole(data)] }), BLOCK_OK);
  const read = Buffer.alloc(1024, 0xff);
  assert.equal(await answersNow(client, { op: BLOCK_READ, offset: 4096, pieces: [whole(read)] }), BLOCK_OK);
  assert.deepEqual(read, data);
  const last = [Buffer.alloc(256, 0xff), Buffer.alloc(256, 0xff)] as const;
  assert.equal(await answersNow(client, { op: BLOCK_READ, offset: 8192, pieces: last.map(whole) }), BLOCK_OK);
  assert.deepEqual(Buffer.concat(last), Buffer.concat([Buffer.alloc(100, 7), Buffer.alloc(412)]));
  assert.deepEqual(fs.readFileSync(path).subarray(512, 1536), data);
  await backend.close();
});

test("a call that fails inside submit is an I/O error there", limit, async () => {
  const path = imageOf(8192);
  const fails = (): never => {
    throw errno("EIO");
  };
  const sync = { readSync: fails, readvSync: fails, writeSync: fails, writevSync: () => 0 };
  const backend = await open(path, { calls: { ...calls({}), ...sync } });
  const client = nowClient(backend);
  const pieces = [whole(Buffer.alloc(512))];
  assert.equal(await answersNow(client, { op: BLOCK_READ, offset: 0, pieces }), BLOCK_IO_ERROR);
  assert.equal(await answersNow(client, { op: BLOCK_WRITE, offset: 0, pieces }), BLOCK_IO_ERROR);
  const two = [...pieces, whole(Buffer.alloc(512))];
  assert.equal(await answersNow(client, { op: BLOCK_WRITE, offset: 0, pieces: two }), BLOCK_IO_ERROR);
  await backend.close();
});

test("without calls that wait nothing is promised", limit, async () => {
  const backend = await open(imageOf(8192), { calls: calls({}) });
  assert.equal(backend.finishesNow(), false);
  await backend.close();
});
