import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { isLocalFile, PromptIo } from "./prompt-io.ts";

const limit = { timeout: 10_000 };
const HIT = 0.02;
const MISS = 5;

/** With a clock of its own. */
function promptIo() {
  let now = 1000;
  const prompt = new PromptIo(() => now);
  return {
    ask: () => prompt.ask(),
    pass: (milliseconds: number) => {
      now += milliseconds;
    },
    took: (milliseconds: number, bytes: number) => {
      prompt.begin();
      now += milliseconds;
      prompt.end(bytes);
    },
  };
}

test("calls are waited for while the data is at hand", limit, () => {
  const prompt = promptIo();
  for (let i = 0; i < 1000; i++) {
    assert.equal(prompt.ask(), true);
    // One in three is slow, some by far: the machine is busy with other things.
    prompt.took(i % 3 === 0 ? (i % 30 === 0 ? 40 : MISS) : HIT, 4096);
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
  assert.ok(waits <= 108, `${waits} waits`);
  let asked = 0;
  while (asked++ < 10_000 && !(prompt.ask() && prompt.ask())) prompt.took(HIT, 4096);
  assert.ok(asked < 10_000, "once the data is at hand again, that is found out");
});

test("where several calls were slow, a long wait is followed by fifty times its length without one", limit, () => {
  const prompt = promptIo();
  for (let i = 0; i < 3; i++) {
    assert.equal(prompt.ask(), true);
    prompt.took(40, 4096);
  }
  prompt.pass(1999);
  assert.equal(prompt.ask(), false);
  prompt.pass(2);
  assert.equal(prompt.ask(), true);
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
