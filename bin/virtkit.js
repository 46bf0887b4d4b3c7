#!/usr/bin/env node
import { existsSync } from "node:fs";

const main = new URL("../dist/cli/main.js", import.meta.url);
if (existsSync(main)) await import(main.href);
else {
  console.error("virtkit: dist/ is missing; build it with `npm ci` or `npm run build`");
  process.exitCode = 1;
}
