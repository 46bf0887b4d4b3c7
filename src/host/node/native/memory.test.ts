import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { ftruncateSync, readSync, writeSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { assertNothingLeft, heldResources } from "../../../testing/resources.ts";
import { loadNative, nativeProblem } from "./load.ts";
import { createMemoryFile, MAX_WINDOW, MappedMemory, planWindows, WINDOW_STRIDE } from "./memory.ts";
import { closeDescriptors } from "./sockets.ts";
import { OP_READ, RequestTable } from "./table.ts";

const limit = { timeout: 60_000, skip: nativeProblem() ?? false };
const withCode = (code: string) => (error: { code?: string }) => error.code === code;

test("a mapping, its windows and the file are the same bytes", limit, () => {
  const fd = createMemoryFile("virtkit-test", 65536);
  const memory = MappedMemory.map(fd, { length: 65536 });
  assert.equal(memory.shrinkable, false);
  const all = new Uint8Array(memory.window());
  const part = new Uint8Array(memory.window(4096, 16));
  assert.equal(all.length, 65536);
  all[4097] = 7;
  assert.equal(part[1], 7);
  const read = Buffer.alloc(1);
  readSync(fd, read, 0, 1, 4097);
  assert.equal(read[0], 7);
  writeSync(fd, Buffer.from([9]), 0, 1, 4096);
  assert.equal(Atomics.load(new Uint8Array(part.buffer), 0), 9);
  memory.unmap();
  memory.unmap();
  assert.equal(all.length, 0, "windows are taken back");
  assert.equal(part.length, 0);
  assert.throws(() => memory.window(0, 1), withCode("ERR_VIRTKIT_NATIVE_ARGUMENT"));
  closeDescriptors([fd]);
});

test("a mapping may begin anywhere in the file, and not end beyond it", limit, () => {
  const fd = createMemoryFile("virtkit-test", 16384);
  writeSync(fd, Buffer.from("here"), 0, 4, 5000);
  const memory = MappedMemory.map(fd, { offset: 5000, length: 100 });
  assert.equal(Buffer.from(memory.window(0, 4)).toString(), "here");
  memory.unmap();
  for (const [offset, length] of [
    [0, 16385],
    [16384, 1],
    [2 ** 52, 1],
  ] as const)
    assert.throws(() => MappedMemory.map(fd, { offset, length }), withCode("ERR_VIRTKIT_MEMORY_FILE"));
  assert.throws(() => MappedMemory.map(fd, { length: 0 }), withCode("ERR_VIRTKIT_SYSTEM"));
  closeDescriptors([fd]);
});

test("windows outside of the mapping, of read-only mappings and of stale ids are refused", limit, () => {
  const native = loadNative();
  const fd = createMemoryFile("virtkit-test", 8192);
  const memory = MappedMemory.map(fd, { length: 8192 });
  const code = withCode("ERR_VIRTKIT_NATIVE_ARGUMENT");
  for (const [offset, length] of [
    [0, 8193],
    [8192, 1],
    [1, 8192],
    [-1, 1],
    [0.5, 1],
    [0, 0],
  ] as const)
    assert.throws(() => memory.window(offset, length), code);
  const readOnly = MappedMemory.map(fd, { length: 8192, readOnly: true });
  assert.throws(() => readOnly.window(0, 1), code);
  readOnly.unmap();
  memory.unmap();
  const next = MappedMemory.map(fd, { length: 8192 });
  assert.notEqual(next.id, memory.id, "the same place, another id");
  assert.throws(() => native.regionWindow(memory.id, 0, 1), code);
  assert.equal(native.regionUnmap(memory.id), -2);
  next.unmap();
  closeDescriptors([fd]);
});

test("the seals keep a peer from shrinking the file", limit, () => {
  const fd = createMemoryFile("virtkit-test", 8192);
  assert.throws(() => ftruncateSync(fd, 4096), { code: "EPERM" });
  closeDescriptors([fd]);
  const open = createMemoryFile("virtkit-test", 8192, 0);
  const memory = MappedMemory.map(open, { length: 8192 });
  assert.equal(memory.shrinkable, true);
  memory.unmap();
  closeDescriptors([open]);
});

test("windows over large mappings overlap, so that no range of up to 2 GiB straddles two", limit, () => {
  for (const length of [1, MAX_WINDOW, MAX_WINDOW + 1, 3 * MAX_WINDOW, 7 * WINDOW_STRIDE + 4096, 2 ** 45]) {
    const windows = planWindows(length);
    assert.equal(windows[0]?.offset, 0);
    const last = windows.at(-1) as { offset: number; length: number };
    assert.equal(last.offset + last.length, length);
    windows.forEach((window, i) => {
      assert.equal(window.offset, i * WINDOW_STRIDE);
      assert.ok(window.length > 0 && window.length <= MAX_WINDOW);
    });
  }
  const fd = createMemoryFile("virtkit-test", 9 * 2 ** 30);
  const memory = MappedMemory.map(fd, { length: 9 * 2 ** 30 });
  const windows = memory.windows();
  const [, second, third] = windows;
  assert.equal(windows.length, 4);
  assert.equal(second?.buffer.byteLength, MAX_WINDOW);
  new DataView(second?.buffer as ArrayBuffer).setUint8(WINDOW_STRIDE + 5, 42);
  assert.equal(new DataView(third?.buffer as ArrayBuffer).getUint8(5), 42);
  memory.unmap();
  closeDescriptors([fd]);
});

test("1,000 sessions leave no mapping and no descriptor behind", limit, () => {
  const cycle = () => {
    const fd = createMemoryFile("virtkit-test", 1 << 20);
    const memory = MappedMemory.map(fd, { length: 1 << 20 });
    closeDescriptors([fd]);
    new Uint8Array(memory.window())[5] = 1;
    memory.window(4096, 4096);
    memory.unmap();
  };
  cycle();
  const before = heldResources();
  for (let i = 0; i < 1000; i++) cycle();
  assertNothingLeft(before);
});

test("a file that shrinks ends the mapping, not the process", limit, () => {
  const fd = createMemoryFile("virtkit-test", 1 << 20, 0);
  const memory = MappedMemory.map(fd, { length: 1 << 20 });
  const bytes = new Uint8Array(memory.window());
  bytes.fill(1);
  assert.equal(memory.lost, false);
  ftruncateSync(fd, 8192);
  assert.equal(bytes[8191], 1);
  assert.equal(memory.lost, false);
  assert.equal(bytes[1 << 19], 0, "zeros instead of a signal");
  assert.equal(memory.lost, true);
  bytes[8192] = 3;
  bytes.fill(2);
  assert.equal(bytes[(1 << 20) - 1], 2);
  // Batch calls leave a lost mapping alone.
  const table = new RequestTable(1, 1);
  table.op[0] = OP_READ;
  table.count[0] = 1;
  table.segmentRegion[0] = memory.id;
  table.segmentLength[0] = 16;
  assert.equal(table.copyOut(0, 1, new Uint8Array(16)), -14);
  table.close();
  memory.unmap();
  closeDescriptors([fd]);
});

test("the same in the add-on's own copies, and another process' bus errors stay deadly", limit, () => {
  const script = fileURLToPath(new URL("../../../testing/native-lost.ts", import.meta.url));
  const args = [...process.execArgv, "--import", "tsx", script];
  const ours = spawnSync(process.execPath, [...args, "ours"], { encoding: "utf8", timeout: 30_000 });
  assert.equal(ours.stderr, "");
  assert.equal(ours.stdout.trim(), "copied 65536 lost true, then 65536 of others");
  assert.equal(ours.status, 0);
  const raised = spawnSync(process.execPath, [...args, "raised"], { encoding: "utf8", timeout: 30_000 });
  assert.equal(raised.signal, "SIGBUS");
});
