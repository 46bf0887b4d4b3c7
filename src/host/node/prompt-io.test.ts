import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { isLocalFile, PromptIo } from "./prompt-io.ts";

const limit = { timeout: 10_000 };
const HIT = 0.02;
const MISS = 5;

/** With a clock and a count of waits of its own. */
function promptIo() {
  let now = 1000;
  let waits = 0;
  const prompt = new PromptIo(
    () => now,
    () => waits,
  );
  return {
    ask: () => prompt.ask(),
    pass: (milliseconds: number) => {
      now += milliseconds;
    },
    took: (milliseconds: number, bytes: number, waited = true) => {
      prompt.begin();
      now += milliseconds;
      if (waited) waits++;
      prompt.end(bytes);
    },
  };
}

test("calls are waited for while the data is at hand", limit, () => {
  const prompt = promptIo();
  for (let i = 0; i < 1000; i++) {
    assert.equal(prompt.ask(), true);
    // One in ten is slow: the machine is busy, or the page was not there.
    prompt.took(i % 10 === 0 ? MISS : HIT, 4096);
  }
});

test("a disk that takes its time is soon waited for once in 64 questions only", limit, () => {
  const prompt = promptIo();
  let waits = 0;
  for (let i = 0; i < 6400; i++) {
    if (!prompt.ask()) continue;
    waits++;
    prompt.took(MISS, 4096);
  }
  assert.ok(waits <= 102, `${waits} waits`);
  let asked = 0;
  while (asked++ < 10_000 && !(prompt.ask() && prompt.ask())) prompt.took(HIT, 4096);
  assert.ok(asked < 10_000, "once the data is at hand again, that is found out");
});

test("a long wait is followed by fifty times its length without one", limit, () => {
  const prompt = promptIo();
  assert.equal(prompt.ask(), true);
  prompt.took(1, 4096);
  for (let i = 0; i < 3; i++) prompt.took(HIT, 4096);
  assert.equal(prompt.ask(), true);
  prompt.took(40, 4096);
  prompt.pass(1999);
  assert.equal(prompt.ask(), false);
  prompt.pass(2);
  assert.equal(prompt.ask(), true);
});

test("a call during which only the CPU went to others is not slow", limit, () => {
  const prompt = promptIo();
  for (let i = 0; i < 100; i++) {
    prompt.took(50, 4096, false);
    assert.equal(prompt.ask(), true);
  }
});

test("while calls are quick nobody asks how often the process waited", limit, () => {
  let asked = 0;
  let now = 0;
  const prompt = new PromptIo(
    () => now,
    () => asked++,
  );
  const took = (milliseconds: number): void => {
    prompt.begin();
    now += milliseconds;
    prompt.end(4096);
  };
  for (let i = 0; i < 100; i++) took(HIT);
  assert.equal(asked, 0);
  took(MISS);
  took(MISS);
  assert.equal(asked, 2);
});

test("a large transfer may take longer than a small one", limit, () => {
  const prompt = promptIo();
  for (let i = 0; i < 100; i++) prompt.took(1.5, 1 << 20);
  assert.equal(prompt.ask(), true);
  for (let i = 0; i < 100; i++) prompt.took(1.5, 4096);
  assert.equal(prompt.ask(), false);
});

test("files of pseudo file systems and files that are not there are not local", limit, (t) => {
  const folder = mkdtempSync(join(tmpdir(), "virtkit-prompt-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  writeFileSync(join(folder, "file"), "x");
  assert.equal(isLocalFile(join(folder, "none")), false);
  assert.equal(isLocalFile("/proc/self/status"), false);
});
