import assert from "node:assert/strict";
import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { makeFolder } from "./make-folder.ts";

const limit = { timeout: 10_000 };

test("folders are made as deep as asked for, twice as well", limit, async (t) => {
  const root = mkdtempSync(join(tmpdir(), "virtkit-"));
  t.after(() => rmSync(root, { recursive: true }));
  const deep = join(root, "a", "b", "c");
  await Promise.all([makeFolder(deep), makeFolder(deep)]);
  await makeFolder(deep);
  assert(statSync(deep).isDirectory());
  writeFileSync(join(root, "file"), "");
  await assert.rejects(makeFolder(join(root, "file")), { code: "ENOTDIR" });
  await assert.rejects(makeFolder(join(root, "file", "x")), { code: "ENOTDIR" });
});

test("a file system that takes no folders is an error, not a hang", limit, async () => {
  await assert.rejects(makeFolder("/proc/virtkit/x"), { code: "ENOENT" });
});
