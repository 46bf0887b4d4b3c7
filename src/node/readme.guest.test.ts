import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { bootableDisk } from "../testing/boot-sector.ts";
import { scratchFolder, sha256 } from "../testing/guest-files.ts";
import { PROGRAM, startProgram, virtkit } from "../testing/guest-program.ts";
import { fromSources, readmeBlocks, runnableBlocks } from "../testing/readme.ts";

const limit = { timeout: 120_000 };

/** What the README's programs print, in their order. */
const OUTPUTS: readonly string[] = [
  `0 ${sha256(Buffer.from("hello\n"))}  /mnt/greeting\nthe machine ended: poweroff\n`,
  "sector eight 1048576\n",
];

test("the README's programs run as they stand and print what they are for", limit, async (t) => {
  const blocks = runnableBlocks("ts");
  assert.equal(blocks.length, OUTPUTS.length, "each program of the README has its output here");
  const folder = scratchFolder(t);
  // All of PROGRAM but the program itself: Node and the loader of TypeScript.
  const node = PROGRAM.slice(0, -1);
  for (const [index, { code, line }] of blocks.entries()) {
    const file = join(folder, `readme-${line}.mts`);
    writeFileSync(file, fromSources(code));
    const { status, stdout, stderr } = await startProgram([...node, file], { cwd: folder }).ended;
    assert.equal(stderr, "", `README.md:${line}`);
    assert.equal(stdout.toString(), OUTPUTS[index], `README.md:${line}`);
    assert.equal(status, 0, `README.md:${line}`);
  }
});

test("the README's command lines are taken", limit, async (t) => {
  const folder = scratchFolder(t);
  const { image } = bootableDisk("for -boot c ");
  writeFileSync(join(folder, "disk.img"), image);
  const lines = readmeBlocks()
    .filter(({ language }) => language === "sh")
    .flatMap(({ code }) => code.split("\n"))
    .filter((line) => line.startsWith("virtkit "));
  assert(lines.length > 0);
  for (const line of lines) {
    const words = [...line.matchAll(/'([^']*)'|(\S+)/g)].map(([, quoted, plain]) => quoted ?? plain ?? "");
    // Those that stay in a shell end at the end of their input; a kernel of the user's own is not here.
    if (words.includes("-kernel")) continue;
    const args = words.slice(1);
    const { status, stdout, stderr } = await virtkit(args, { cwd: folder, input: "\x01x" });
    assert.equal(stderr, "", line);
    assert.equal(status, 0, line);
    if (words.includes("--exec")) assert(stdout.toString().includes(sha256(image)), line);
  }
});
