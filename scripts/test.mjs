// Runs the tests with Node's own runner: `npm test`, or `npm test -- WORD...` for the files whose path holds one of the words.
//
// Guest tests (*.guest.test.ts) run one file at a time after the others, because each boots a machine that keeps a core busy.
// With CI=true a skipped guest test is a failure: something that it needs is missing from the machine, or from our set-up. So is
// any test skipped without a reason; a contract suite skips what one of its implementations cannot have, and says why.
import { spawnSync } from "node:child_process";
import { readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { availableParallelism } from "node:os";
import { join, relative } from "node:path";
import { run } from "node:test";
import { spec } from "node:test/reporters";
import { fileURLToPath, pathToFileURL } from "node:url";
import { installTestTools } from "./test-tools.mjs";

// Milliseconds for a whole file; each case has a shorter limit of its own.
const UNIT_FILE_LIMIT = 600_000;
const GUEST_FILE_LIMIT = 1_200_000;

const root = fileURLToPath(new URL("..", import.meta.url));
const words = process.argv.slice(2);
const counts = { passed: 0, failed: 0, skipped: 0 };
const skipped = [];

const files = readdirSync(join(root, "src"), { recursive: true })
  .filter((name) => name.endsWith(".test.ts"))
  .map((name) => join(root, "src", name))
  .filter((name) => words.length === 0 || words.some((word) => relative(root, name).includes(word)))
  .sort();
const guest = files.filter((name) => name.endsWith(".guest.test.ts"));
const unit = files.filter((name) => !name.endsWith(".guest.test.ts"));

// The files are TypeScript: their processes inherit the loader.
const loader = pathToFileURL(createRequire(import.meta.url).resolve("tsx")).href;
process.env.NODE_OPTIONS = `${process.env.NODE_OPTIONS ?? ""} --import ${loader}`.trim();

installTestTools();
await runFiles(unit, Math.max(1, availableParallelism()), UNIT_FILE_LIMIT, (test) => test.skip === true);
if (guest.length > 0) prepareGuest();
await runFiles(guest, 1, GUEST_FILE_LIMIT, () => true);

if (process.env.CI === "true" && skipped.length > 0) {
  console.error(`With CI=true these may not be skipped:\n${skipped.map((name) => `  ${name}`).join("\n")}`);
  counts.failed += skipped.length;
}
if (files.length === 0) console.error(`No test file matches ${words.join(" ")}`);
console.log(`${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`);
process.exitCode = counts.failed > 0 || counts.passed === 0 ? 1 : 0;

/** What the guest tests boot. Done once and in sight: it is a download, and no test's time should pay for it. */
function prepareGuest() {
  const { status } = spawnSync(process.execPath, [join(root, "src/cli/main.ts"), "guest"], { stdio: "inherit" });
  if (status !== 0) console.error("The guest could not be prepared, so the guest tests will fail.");
}

async function runFiles(list, concurrency, timeout, isForbiddenSkip) {
  if (list.length === 0) return;
  const stream = run({ files: list, concurrency, timeout });
  stream.on("test:pass", (test) => {
    if (test.skip !== undefined) {
      counts.skipped++;
      if (isForbiddenSkip(test)) skipped.push(`${test.name} (${test.skip === true ? "no reason given" : test.skip})`);
    } else if (test.details.type !== "suite") counts.passed++;
  });
  stream.on("test:fail", (test) => {
    if (test.details.type !== "suite") counts.failed++;
  });
  const report = stream.compose(new spec());
  report.pipe(process.stdout, { end: false });
  await new Promise((resolve, reject) => report.on("end", resolve).on("error", reject));
}
