// Compiles src/ to dist/. Runs by itself after `npm ci` (npm's prepare script).
import { spawnSync } from "node:child_process";
import { existsSync, rmSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const tsc = `${root}node_modules/typescript/bin/tsc`;

if (!existsSync(tsc)) {
  // `npm ci --omit=dev`: nothing to compile with. A packed virtkit brings its dist/ along.
  if (existsSync(`${root}dist/index.js`)) process.exit(0);
  console.error("virtkit: TypeScript is not installed, so dist/ cannot be built; run `npm ci` without --omit=dev");
  process.exit(1);
}
rmSync(`${root}dist`, { recursive: true, force: true });
const { status } = spawnSync(process.execPath, [tsc, "-p", `${root}tsconfig.build.json`], { stdio: "inherit" });
process.exit(status ?? 1);
