// `npm run bench -- NAME [--json]`: runs bench/NAME/index.ts, which hands over one row at a time.
import { readdirSync } from "node:fs";
import { register } from "tsx/esm/api";

const benches = readdirSync(new URL("../bench/", import.meta.url), { withFileTypes: true })
  .filter((entry) => entry.isDirectory())
  .map((entry) => entry.name);
const args = process.argv.slice(2);
const json = args.includes("--json");
const names = args.filter((arg) => !arg.startsWith("-"));
const unknown = names.find((name) => !benches.includes(name));
if (names.length === 0 || unknown !== undefined) {
  console.error(
    `${unknown === undefined ? "Which bench?" : `There is no bench '${unknown}'.`} One of: ${benches.join(", ")}`,
  );
  process.exit(2);
}

register();
for (const name of names) {
  const { default: run } = await import(new URL(`../bench/${name}/index.ts`, import.meta.url).href);
  await run((row) => console.log(json ? JSON.stringify(row) : format(row)));
}

function format({ name, value, unit, peer, peerValue, ratio }) {
  const own = `${name.padEnd(28)} ${String(value).padStart(10)} ${unit.padEnd(8)}`;
  return peer === undefined ? own : `${own} ${peer}: ${peerValue}  ratio ${ratio}`;
}
