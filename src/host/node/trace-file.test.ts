import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import type { Environment } from "../../common/environment.ts";
import { scratchFolder } from "../../testing/guest-files.ts";
import { nodeEnvironment } from "../../testing/loop-device.ts";
import type { TraceEvent } from "../../trace/types.ts";
import { TraceFile } from "./trace-file.ts";

const limit = { timeout: 20_000 };
const kick = (queue: number): TraceEvent => ({ kind: "kick", queue, register: "notify" });

function noted(): { environment: Environment; messages: string[] } {
  const messages: string[] = [];
  const environment = nodeEnvironment({ log: (level, message) => void messages.push(`${level}: ${message}`) });
  return { environment, messages };
}

const linesOf = (path: string): { time: number; kind: string; queue: number; count?: number }[] =>
  readFileSync(path, "utf8")
    .split("\n")
    .slice(0, -1)
    .map((line) => JSON.parse(line));

test("every event is in the file when it is closed, in order", limit, async (t) => {
  const path = join(scratchFolder(t), "trace");
  writeFileSync(path, "what was there before".repeat(100));
  const { environment, messages } = noted();
  const file = await TraceFile.open({ path, environment });
  for (let i = 0; i < 50_000; i++) file.record(i, "d", kick(i));
  await file.close();
  file.record(0, "d", kick(0));
  await file.close();
  const lines = linesOf(path);
  assert.equal(lines.length, 50_000);
  assert.ok(lines.every(({ queue, time }, i) => queue === i && time === i));
  assert.deepEqual(messages, []);
});

test("an event comes to the file without a close", limit, async (t) => {
  const path = join(scratchFolder(t), "trace");
  const file = await TraceFile.open({ path, environment: nodeEnvironment() });
  file.record(1, "d", kick(1));
  while (readFileSync(path, "utf8") === "") await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(linesOf(path).length, 1);
  file.record(2, "d", kick(2));
  await file.close();
  assert.equal(linesOf(path).length, 2);
});

test("a file that cannot be made is an error that says why", limit, async (t) => {
  const folder = scratchFolder(t);
  const fifo = join(folder, "fifo");
  execFileSync("mkfifo", [fifo]);
  for (const [path, reason] of [
    [join(folder, "none", "trace"), "no such directory"],
    [folder, "it is a directory"],
    [fifo, "it is a FIFO that nobody reads; start the reader first"],
  ] as const) {
    const error = { code: "ERR_VIRTKIT_TRACE_OPEN", message: `the trace cannot be written to '${path}': ${reason}` };
    await assert.rejects(TraceFile.open({ path, environment: nodeEnvironment() }), error);
    if (path !== fifo) await assert.rejects(TraceFile.check(path), error);
  }
  await TraceFile.check(join(folder, "new"));
  assert.equal(existsSync(join(folder, "new")), false);
});

test("a full disk is one warning, and tracing ends", {
  ...limit,
  skip: !existsSync("/dev/full") && "needs /dev/full",
}, async () => {
  const { environment, messages } = noted();
  const file = await TraceFile.open({ path: "/dev/full", environment });
  for (let i = 0; i < 10_000; i++) file.record(i, "d", kick(i));
  await new Promise((resolve) => setTimeout(resolve, 20));
  for (let i = 0; i < 10_000; i++) file.record(i, "d", kick(i));
  await file.close();
  assert.deepEqual(messages, ["warn: /dev/full: no space left on the device; the trace ends here, the guest goes on"]);
});

test("a file that is too slow loses events, and says how many", limit, async (t) => {
  const path = join(scratchFolder(t), "trace");
  const { environment, messages } = noted();
  const file = await TraceFile.open({ path, environment, maxWaiting: 200_000 });
  for (let i = 0; i < 20_000; i++) file.record(i, "d", kick(i));
  await file.close();
  const lines = linesOf(path);
  const last = lines.pop();
  assert.equal(last?.kind, "lost");
  assert.equal(lines.length + (last?.count ?? 0), 20_000);
  assert.ok(lines.length > 1000);
  assert.deepEqual(messages, [`warn: ${path}: ${last?.count} events of the trace were lost, the file is too slow`]);
});

test("a FIFO with a reader that takes its time gets everything", limit, async (t) => {
  const folder = scratchFolder(t);
  const fifo = join(folder, "fifo");
  execFileSync("mkfifo", [fifo]);
  const reader = spawn("sh", ["-c", 'exec <"$1"; sleep 0.3; wc -l', "sh", fifo], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  let counted = "";
  reader.stdout.on("data", (bytes: Buffer) => {
    counted += bytes.toString();
  });
  const ended = new Promise((resolve) => reader.on("close", resolve));
  const { environment, messages } = noted();
  const open = async (): Promise<TraceFile> => {
    for (;;)
      try {
        return await TraceFile.open({ path: fifo, environment });
      } catch {
        // The reader is not there yet.
        await new Promise((resolve) => setTimeout(resolve, 5));
      }
  };
  const file = await open();
  for (let i = 0; i < 10_000; i++) file.record(i, "d", kick(i));
  await file.close();
  await ended;
  assert.equal(counted.trim(), "10000");
  assert.deepEqual(messages, []);
});
