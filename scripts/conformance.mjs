// `npm run conformance`: runs the unit tests that name statements of the specification and writes docs/conformance.md.
//
//   -- --check      writes nothing, fails when docs/conformance.md is not what the tests say
//   -- --part NAME  writes nothing, prints what is missing of one part (blk, split-ring, ...)
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { dirname, join, relative, resolve, sep } from "node:path";
import { run } from "node:test";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { register } from "tsx/esm/api";

const FILE_LIMIT_MS = 600_000;

const { values: options } = parseArgs({
  options: { check: { type: "boolean", default: false }, part: { type: "string" } },
});
register();
const { PARTS, parseTestName, readUntested } = await import("../src/testing/statements.ts");
const { conformanceReport, problems } = await import("../src/testing/conformance-report.ts");
if (options.part !== undefined && !PARTS.has(options.part)) {
  console.error(`There is no part '${options.part}'. One of: ${[...PARTS.keys()].join(", ")}`);
  process.exit(2);
}

const root = fileURLToPath(new URL("..", import.meta.url));
const helpers = new Map();

const { tests, failures } = await runTests(testFiles());
const untested = readUntested();
const wrong = [
  ...failures,
  ...problems(tests, untested, options.part === undefined ? [...PARTS.keys()] : [options.part]),
];
if (options.part === undefined) report(conformanceReport(tests, untested));
for (const line of wrong) console.error(line);
console.log(`${tests.length} tests that name statements ran; ${wrong.length} problems`);
process.exitCode = wrong.length > 0 ? 1 : process.exitCode;

function report(text) {
  const page = join(root, "docs/conformance.md");
  if (!options.check) return writeFileSync(page, text);
  if (readFileSync(page, "utf8") === text) return;
  console.error("docs/conformance.md is not what the tests say: run npm run conformance");
  process.exitCode = 1;
}

/** Unit test files that name statements themselves or by a helper of src/testing. */
function testFiles() {
  return readdirSync(join(root, "src"), { recursive: true })
    .filter((name) => name.endsWith(".test.ts") && !name.endsWith(".guest.test.ts"))
    .map((name) => join(root, "src", name))
    .filter((path) => !path.endsWith(join("testing", "statements.test.ts")) && namesStatements(path))
    .sort();
}

function namesStatements(path) {
  const known = helpers.get(path);
  if (known !== undefined) return known;
  helpers.set(path, false);
  const text = readFileSync(path, "utf8");
  const imported = [...text.matchAll(/from "(\.[^"]*\/testing\/[^"]+|\.\/[^"]+)"/g)]
    .map(([, specifier]) => resolve(dirname(path), specifier))
    .filter((target) => target.includes(`${sep}testing${sep}`) && !target.endsWith("statements.ts"));
  const names = /\bstatements\(/.test(text) || imported.some(namesStatements);
  helpers.set(path, names);
  return names;
}

/** One row a test that carries ids, and a line for each file that could not be run or test that failed. */
async function runTests(files) {
  // The processes of the test files are TypeScript too.
  process.env.NODE_OPTIONS = `${process.env.NODE_OPTIONS ?? ""} --import tsx`.trim();
  const tests = [];
  const failures = [];
  // The other tests of these files are npm test's business.
  const testNamePatterns = [/\[(?:device|driver): /];
  const stream = run({ files, testNamePatterns, concurrency: availableParallelism(), timeout: FILE_LIMIT_MS });
  const add = (event, passed) => {
    const { shows, ids } = parseTestName(event.name);
    const file = relative(root, event.file ?? event.name)
      .split(sep)
      .join("/");
    if (ids.length > 0 && event.skip === undefined) tests.push({ file, shows, ids, passed });
    const isOutcome = event.details.type !== "suite";
    if (!passed && isOutcome) failures.push(`failed: ${file}: ${shows}`);
  };
  stream.on("test:pass", (event) => add(event, true));
  stream.on("test:fail", (event) => add(event, false));
  await new Promise((done, failed) => stream.on("end", done).on("error", failed).resume());
  return { tests, failures };
}
