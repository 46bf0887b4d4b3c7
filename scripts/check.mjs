// `npm run check`: types, lint and format, rules of dependency, unused code. Runs all steps, fails if one fails.
import { spawnSync } from "node:child_process";
import { resolve } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const steps = [
  ["types", "tsc", "--noEmit", "-p", "tsconfig.json"],
  ["types of the core alone (no Node, no DOM)", "tsc", "-p", "tsconfig.core.json"],
  ["lint and format", "biome", "ci", "--error-on-warnings", "."],
  ["rules of dependency", "depcruise", "src", "--config", ".dependency-cruiser.cjs"],
  ["unused code", "knip"],
  ["C of the add-on, without warnings", process.execPath, `${root}scripts/build-native.mjs`, "--strict"],
];

let failed = 0;
for (const [what, command, ...args] of steps) {
  const start = performance.now();
  const { status } = spawnSync(resolve(`${root}node_modules/.bin`, command), args, { cwd: root, stdio: "inherit" });
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  console.log(`${status === 0 ? "ok    " : "FAILED"} ${what} (${seconds} s)`);
  if (status !== 0) failed++;
}
process.exit(failed === 0 ? 0 : 1);
