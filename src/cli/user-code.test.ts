import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { scratchFolder } from "../testing/guest-files.ts";
import { PROGRAM, startProgram } from "../testing/guest-program.ts";

const source = (name: string): string => JSON.stringify(fileURLToPath(new URL(name, import.meta.url)));

/** Loads a module, and throws something itself a little later if it is told to. */
const HOST = `import { catchUserCode } from ${source("./user-code.ts")};
import { loadUserModule } from ${source("../host/node/user-module.ts")};
catchUserCode({ log: (level, message) => console.log(level, message) });
await loadUserModule("own.mjs");
setTimeout(() => { if (process.argv[2] === "fail") throw new Error("my own"); console.log("going on"); }, 50);
`;

test("what a module throws in a timer, or rejects with for nobody, is logged; what others throw ends the program", {
  timeout: 30_000,
}, async (t) => {
  const folder = scratchFolder(t);
  writeFileSync(join(folder, "host.mts"), HOST);
  writeFileSync(
    join(folder, "own.mjs"),
    `setTimeout(() => { throw new RangeError("boom"); }, 1);
     setTimeout(() => { Promise.reject(new Error("nobody waits")); }, 10);
     export default {};`,
  );
  const words = [...PROGRAM.slice(0, -1), join(folder, "host.mts")];
  const good = await startProgram(words, { cwd: folder }).ended;
  assert.deepEqual([good.status, good.stderr], [0, ""]);
  assert.deepEqual(good.stdout.toString().trim().split("\n"), [
    "error a module throws outside of a request: RangeError: boom (own.mjs:1:26); the machine goes on",
    "error a module throws outside of a request: Error: nobody waits (own.mjs:2:40); the machine goes on",
    "going on",
  ]);
  const bad = await startProgram([...words, "fail"], { cwd: folder }).ended;
  assert.notEqual(bad.status, 0);
  assert.match(bad.stderr, /Error: my own/);
});

test("a module that ends the program is told of, and is no success", { timeout: 30_000 }, async (t) => {
  const folder = scratchFolder(t);
  writeFileSync(join(folder, "host.mts"), HOST);
  writeFileSync(join(folder, "own.mjs"), "setTimeout(() => process.exit(0), 1); export default {};");
  const { status, stderr } = await startProgram([...PROGRAM.slice(0, -1), join(folder, "host.mts")], { cwd: folder })
    .ended;
  assert.deepEqual([status, stderr], [1, "virtkit: a module ended the program with process.exit(0)\n"]);
});
