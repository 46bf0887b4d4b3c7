// node --import tsx src/testing/ring-fuzz-main.ts --side device-split --operations 10000000 --seed 1
import { parseArgs } from "node:util";
import { fuzzRing, RING_SIDES } from "./ring-fuzz.ts";

const { values } = parseArgs({
  options: {
    side: { type: "string", multiple: true },
    operations: { type: "string", default: "10000000" },
    seed: { type: "string", default: String(Date.now() % 1_000_000) },
  },
});
const operations = Number(values.operations);
const seed = Number(values.seed);
const sides = RING_SIDES.filter((side) => values.side === undefined || values.side.includes(side));
if (sides.length === 0 || !(operations > 0) || !Number.isInteger(seed)) {
  console.error(`usage: ring-fuzz-main [--side ${RING_SIDES.join("|")}]... [--operations N] [--seed N]`);
  process.exit(2);
}
for (const side of sides) {
  const start = Date.now();
  const { chains, faults, operations: done } = fuzzRing({ side, operations, seed });
  console.log(JSON.stringify({ side, seed, operations: done, chains, faults, seconds: (Date.now() - start) / 1000 }));
}
