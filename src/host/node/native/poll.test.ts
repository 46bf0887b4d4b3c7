import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { closeSync, openSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { assertNothingLeft, heldResources } from "../../../testing/resources.ts";
import { typescriptWorker } from "../../../testing/worker.ts";
import { EventDescriptor } from "./events.ts";
import { nativeProblem } from "./load.ts";
import { type DescriptorEvents, DescriptorWatch } from "./poll.ts";

const limit = { timeout: 60_000, skip: nativeProblem() ?? false };
const support = new URL("../../../testing/native-ends.ts", import.meta.url);

test("an event descriptor counts, and wakes who watches it", limit, async () => {
  const event = new EventDescriptor();
  assert.equal(event.take(), 0);
  event.signal();
  event.signal();
  assert.equal(event.take(), 2);
  const seen = new Promise<DescriptorEvents>((resolve) => event.watch(resolve));
  event.signal();
  assert.deepEqual(await seen, { readable: true, writable: false, error: undefined });
  assert.equal(event.take(), 0, "taken before the callback");
  event.close();
  event.close();
  event.signal();
});

test("promises and ticks run after a callback, and it may stop its own watch", limit, async () => {
  const event = new EventDescriptor();
  const order: string[] = [];
  await new Promise<void>((resolve) => {
    event.watch(() => {
      order.push("callback");
      event.unwatch();
      process.nextTick(() => order.push("tick"));
      Promise.resolve().then(() => {
        order.push("promise");
        resolve();
      });
    });
    event.signal();
  });
  assert.deepEqual(order, ["callback", "tick", "promise"]);
  event.close();
});

test("one watch of many stops the others of the same turn", limit, async () => {
  const events = Array.from({ length: 8 }, () => new EventDescriptor());
  let calls = 0;
  await new Promise<void>((resolve) => {
    for (const event of events) {
      event.watch(() => {
        calls++;
        for (const each of events) each.close();
        resolve();
      });
      event.signal();
    }
  });
  await new Promise((resolve) => setImmediate(resolve));
  assert.equal(calls, 1);
});

test("a regular file cannot be watched, and that is said", limit, () => {
  const fd = openSync(fileURLToPath(import.meta.url), "r");
  const watch = () => new DescriptorWatch(fd, {}, () => undefined);
  assert.throws(watch, { code: "ERR_VIRTKIT_SYSTEM" });
  closeSync(fd);
});

test("1,000 watches leave nothing behind", limit, async () => {
  const before = heldResources();
  for (let i = 0; i < 1000; i++) {
    const event = new EventDescriptor();
    await new Promise<void>((resolve) => {
      event.watch(() => resolve());
      event.signal();
    });
    event.close();
  }
  assertNothingLeft(before);
});

const inChild = (mode: string) =>
  spawnSync(process.execPath, ["--import", "tsx", fileURLToPath(support), mode], { encoding: "utf8", timeout: 30_000 });

test("an exception in a callback is an uncaught exception", limit, () => {
  const { status, stderr } = inChild("throw");
  assert.match(stderr, /Error: from a callback/);
  assert.equal(status, 1);
});

test("only a watch that keeps the program alive does", limit, () => {
  assert.deepEqual([inChild("unref").status, inChild("unref").stdout], [0, "ended\n"]);
});

test("a worker that is terminated with open watches, rings and mappings takes nothing with it", limit, async () => {
  const before = heldResources();
  for (let i = 0; i < 5; i++) {
    const worker = typescriptWorker(support, { argv: ["worker"] });
    await new Promise((resolve, reject) => worker.once("message", resolve).once("error", reject));
    if (i % 2 === 0) await worker.terminate();
    else {
      worker.postMessage("exit");
      await new Promise((resolve) => worker.once("exit", resolve));
    }
  }
  // Descriptors are numbers of the process and outlive a worker; mappings are its own.
  assert.ok(heldResources().mappings <= before.mappings);
});

test("so does a whole process in which only workers had loaded it", limit, () => {
  const { status, stdout, stderr } = inChild("workers");
  assert.equal(stderr, "");
  assert.deepEqual([status, stdout], [0, "ended\n"]);
});
