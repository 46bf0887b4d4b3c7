import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { scratchFolder, sha256 } from "../testing/guest-files.ts";
import { PROGRAM, startProgram, virtkit } from "../testing/guest-program.ts";
import { commandLines, fromSources, guideFiles } from "../testing/readme.ts";

const limit = { timeout: 120_000 };
const DEVICE = "docs/guides/own-device.md";
const DISK = "docs/guides/own-disk.md";

/**
 * The guide's modules in a folder where no virtkit is installed. A program, and what it imports, is loaded by Node and not by us, so it
 * gets our sources in place of the package.
 */
function unpack(t: TestContext, guide: string, usesProgram = false): string {
  const folder = scratchFolder(t);
  for (const [name, code] of guideFiles(guide))
    writeFileSync(join(folder, name), usesProgram ? fromSources(code) : code);
  return folder;
}

const lineCount = (guide: string, name: string): number =>
  (guideFiles(guide).get(name) ?? "").split("\n").filter((line) => !line.startsWith("// file:")).length - 1;

test("docs/guides/own-disk.md: the disk, in 30 lines, and its command line, as they stand", limit, async (t) => {
  const folder = unpack(t, DISK);
  assert.ok(lineCount(DISK, "journal-disk.mjs") <= 30);
  const [words = []] = commandLines(DISK);
  const { status, stdout, stderr } = await virtkit(words, { cwd: folder });
  assert.deepEqual([status, stdout.toString(), stderr], [0, "done\n", ""]);
  const journal = readFileSync(join(folder, "journal.txt"), "utf8");
  assert.match(journal, /^(read|write) \d+ \d+$/m);
  assert.match(journal, /^write 1024 1024$|^write 0 \d+$/m);
});

test("docs/guides/own-device.md: the device, in 40 lines, and its command lines, as they stand", limit, async (t) => {
  const folder = unpack(t, DEVICE);
  assert.ok(lineCount(DEVICE, "fortune-rng.mjs") <= 40);
  const [run = [], help = []] = commandLines(DEVICE);
  const { status, stdout, stderr } = await virtkit(run, { cwd: folder });
  assert.deepEqual([status, stdout.toString(), stderr], [0, "ask again later\n", ""]);
  const listed = await virtkit(help, { cwd: folder });
  assert.deepEqual([listed.status, listed.stderr], [0, ""]);
  assert.match(listed.stdout.toString(), /^module=\.\/fortune-rng\.mjs options:\n/);
  assert.match(listed.stdout.toString(), /^ {2}phrase=<str> +- What the guest reads \(default: it is certain\. \)$/m);
  assert.match(listed.stdout.toString(), /^ {2}limit=<size> .*\(default: 4096\)$/m);
});

for (const [guide, output] of [
  [DISK, `${sha256(Buffer.alloc(2 ** 20))}  /dev/vda\n`],
  [DEVICE, "yes\n"],
] as const)
  test(`${guide}: the program, as it stands`, limit, async (t) => {
    const folder = unpack(t, guide, true);
    const node = PROGRAM.slice(0, -1);
    const run = startProgram([...node, join(folder, "from-a-program.mjs")], { cwd: folder });
    const { status, stdout, stderr } = await run.ended;
    assert.equal(stderr, "");
    assert.equal(stdout.toString(), output);
    assert.equal(status, 0);
  });
