import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { after, test } from "node:test";
import { defaultCacheDir, sweepTemporary, temporaryFolder, withLock, writeFileAtomic } from "./cache.ts";
import { ensureDataDisk } from "./data-disk.ts";
import { run } from "./process.ts";
import { progressRenderer } from "./progress-terminal.ts";
import { type StateKey, stateStore } from "./state-store.ts";

const limit = { timeout: 20_000 };
const root = mkdtempSync(join(tmpdir(), "virtkit-cache-"));
after(() => rmSync(root, { recursive: true, force: true }));
let count = 0;
const fresh = (): string => {
  const folder = join(root, String(count++));
  mkdirSync(folder);
  return folder;
};

test("the cache is where VIRTKIT_CACHE, else XDG_CACHE_HOME, else the home folder says", limit, () => {
  assert.equal(defaultCacheDir({ VIRTKIT_CACHE: "/a", XDG_CACHE_HOME: "/b" }), "/a");
  assert.equal(defaultCacheDir({ XDG_CACHE_HOME: "/b" }), "/b/virtkit");
  assert.match(defaultCacheDir({ XDG_CACHE_HOME: "not/absolute" }), /\.cache\/virtkit$/);
});

test("a file is written whole or not at all, and a failure leaves no part of it", limit, async () => {
  const folder = fresh();
  await writeFileAtomic(join(folder, "deep/file"), "one");
  await writeFileAtomic(join(folder, "deep/file"), [Uint8Array.of(1), Uint8Array.of(2)]);
  assert.deepEqual([...readFileSync(join(folder, "deep/file"))], [1, 2]);
  mkdirSync(join(folder, "taken"));
  await assert.rejects(writeFileAtomic(join(folder, "taken"), "x"));
  assert.deepEqual(readdirSync(folder).sort(), ["deep", "taken"]);
});

test("what dead processes left is swept, what living ones use is not", limit, async () => {
  const folder = fresh();
  const dead = spawnSync(process.execPath, ["-e", ""]).pid;
  mkdirSync(join(folder, `.tmp-${dead}-abc`));
  const own = temporaryFolder(folder);
  mkdirSync(join(folder, "other"));
  await sweepTemporary(folder);
  assert.deepEqual(readdirSync(folder).sort(), [own.path.slice(folder.length + 1), "other"].sort());
  await own.remove();
  assert.deepEqual(readdirSync(folder), ["other"]);
});

test("one at a time holds the lock, and the next goes on when it is free", limit, async () => {
  const key = fresh();
  const log: string[] = [];
  let release = (): void => {};
  const first = withLock(
    key,
    undefined,
    () => assert.fail("nobody else holds it"),
    () => {
      log.push("first");
      return new Promise<void>((done) => {
        release = done;
      });
    },
  );
  const waiting = new Promise<void>((waits) => {
    void withLock(key, undefined, waits, async () => log.push("second")).then(() => log.push("end"));
  });
  await waiting;
  // Turns of the loop in which the one that waits gets connected to the holder, both in this process.
  for (let turn = 0; turn < 50; turn++) await new Promise(setImmediate);
  assert.deepEqual(log, ["first"]);
  release();
  await first;
  await withLock(
    key,
    undefined,
    () => {},
    async () => {},
  );
  await withLock(
    `${key}x`,
    undefined,
    () => assert.fail("another key is another lock"),
    async () => {},
  );
});

test("a lock's holder that is killed frees it; waiting can be aborted", limit, async () => {
  const key = fresh();
  const code = `import { withLock } from ${JSON.stringify(new URL("./cache.ts", import.meta.url).href)};
    setInterval(() => {}, 1e6);
    await withLock(${JSON.stringify(key)}, undefined, () => {}, () => { console.log("held"); return new Promise(() => {}); });`;
  const holder = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "-e", code], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  await new Promise((held) => holder.stdout.once("data", held));
  const stop = new AbortController();
  const aborted = withLock(
    key,
    stop.signal,
    () => stop.abort(),
    async () => assert.fail("it is held"),
  );
  await assert.rejects(aborted, { code: "ERR_VIRTKIT_ABORTED" });
  let hasWaited = false;
  await withLock(
    key,
    undefined,
    () => {
      hasWaited = true;
      holder.kill("SIGKILL");
    },
    async () => {},
  );
  assert.equal(hasWaited, true);
});

test("an aborted tool is killed with all that it started", limit, async () => {
  const stop = new AbortController();
  let child = 0;
  const onStatusLine = (line: string): void => {
    child = Number(line);
    stop.abort();
  };
  await assert.rejects(run("sh", ["-c", "sleep 1000 & echo $! >&3; wait"], { signal: stop.signal, onStatusLine }), {
    code: "ERR_VIRTKIT_ABORTED",
  });
  assert(child > 0);
  // run() ends when the pipes are closed by all, so the child is gone, or a zombie where nobody reaps orphans.
  const state =
    spawnSync("ps", ["-o", "stat=", "-p", String(child)])
      .stdout?.toString()
      .trim() ?? "";
  assert.match(state, /^(Z.*)?$/);
});

const key: StateKey = { guestId: "0123456789abcdef", memoryBytes: 1 << 27, engineVersion: "v86-1" };

test("a state comes back under its own key only, at offset 0 of its buffer", limit, async () => {
  const store = stateStore(fresh());
  const state = Uint8Array.from({ length: 100_000 }, (_, index) => index * 7);
  assert.equal(await store.get(key), undefined);
  await store.put(key, state);
  const got = await store.get(key);
  assert.deepEqual(got, state);
  assert.equal(got?.byteOffset, 0);
  for (const other of [{ memoryBytes: 1 }, { engineVersion: "v86-2" }, { guestId: "f".repeat(16) }, { extra: "x" }]) {
    assert.equal(await store.get({ ...key, ...other }), undefined);
  }
});

test("a damaged state is not given and does not stay", limit, async () => {
  const folder = fresh();
  const store = stateStore(folder);
  for (const damage of [
    (bytes: Buffer) => bytes.subarray(1),
    (bytes: Buffer) => bytes.fill(9, 5, 6),
    () => Buffer.alloc(0),
  ]) {
    await store.put(key, new Uint8Array(1000));
    const [{ file }] = await store.list();
    writeFileSync(file, damage(readFileSync(file)));
    assert.equal(await store.get(key), undefined);
    assert.deepEqual(await store.list(), []);
  }
});

test("beyond the limit the least recently used states go; one guest's can be removed", limit, async () => {
  const store = stateStore(fresh(), { keep: 2 });
  const at = (memoryBytes: number): StateKey => ({ ...key, memoryBytes });
  await store.put(at(1), Uint8Array.of(1));
  const [first] = await store.list();
  await store.put(at(2), Uint8Array.of(2));
  for (const { file } of await store.list()) utimesSync(file, 1000, file === first.file ? 1000 : 2000);
  await store.get(at(1));
  await store.put(at(3), Uint8Array.of(3));
  assert.notEqual(await store.get(at(1)), undefined, "used last");
  assert.equal(await store.get(at(2)), undefined);
  assert.equal(await store.remove("f".repeat(16)), 0);
  assert.equal(await store.remove(key.guestId), 2);
});

test("a data disk is sparse, formatted where mke2fs is, and never touched again", limit, async () => {
  const path = join(fresh(), "deep/disk.img");
  const made = await ensureDataDisk(path, { size: 64 * 2 ** 20 });
  assert.equal(made.isNew, true);
  writeFileSync(path, "mine", { flag: "r+" });
  const again = await ensureDataDisk(path, { size: 128 * 2 ** 20 });
  assert.deepEqual(again, { path, size: 64 * 2 ** 20, isNew: false, isFormatted: made.isFormatted });
  assert.equal(readFileSync(path).toString("latin1", 0, 4), "mine");
});

test("a data disk that cannot be is refused with its path", limit, async () => {
  const folder = fresh();
  await assert.rejects(ensureDataDisk(join(folder, "x"), { size: 1000 }), { code: "ERR_VIRTKIT_DATA_DISK" });
  await assert.rejects(ensureDataDisk("/dev/null/x"), { code: "ERR_VIRTKIT_DATA_DISK", message: /\/dev\/null\/x/ });
  await assert.rejects(ensureDataDisk(folder), { code: "ERR_VIRTKIT_DATA_DISK" });
  await assert.rejects(ensureDataDisk("/proc/virtkit/x"), { code: "ERR_VIRTKIT_DATA_DISK" });
  const other = join(folder, "notes.txt");
  writeFileSync(other, "my notes\n".repeat(1000));
  await assert.rejects(ensureDataDisk(other), {
    code: "ERR_VIRTKIT_DATA_DISK",
    message: /something else than an ext4/,
  });
  writeFileSync(join(folder, "empty"), "");
  await assert.rejects(ensureDataDisk(join(folder, "empty")), { code: "ERR_VIRTKIT_DATA_DISK" });
});

const rendered = (isTTY: boolean): string => {
  const stream = Object.assign(new PassThrough(), {
    isTTY,
    columns: 80,
    cursorTo: () => true,
    moveCursor: () => true,
    clearLine: () => true,
  });
  const renderer = progressRenderer(stream);
  renderer.onProgress({ stage: "download", done: 0, total: 2_000_000, unit: "bytes" });
  renderer.onProgress({ stage: "download", done: 1_000_000, total: 2_000_000, unit: "bytes" });
  renderer.onProgress({ stage: "unpack", done: 0, total: 1, unit: "steps" });
  renderer.finish();
  return String(stream.read());
};

test("progress is one line a stage where there is no terminal, and a bar where there is", limit, () => {
  assert.equal(rendered(false), "virtkit: downloading the packages\nvirtkit: unpacking\n");
  assert.match(rendered(true), /downloading the packages .*of 2\.0 MB/);
});
