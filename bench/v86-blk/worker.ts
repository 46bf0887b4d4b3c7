// One case of the v86-blk bench, in a process of its own: rounds on each disk in turn. Arguments: the image, the archive, the case.
import { readFile } from "node:fs/promises";
import { CASES, ROUNDS, WARM_UP_ROUNDS } from "./case.ts";
import { bootWithBothDisks, OWN_DISK, PEER_DISK, runLoad } from "./guest.ts";

const [image = "", archive = "", name = ""] = process.argv.slice(2);
const one = CASES.find((candidate) => candidate.name === name);
if (one === undefined) throw new Error(`there is no case ${name}`);

const machine = await bootWithBothDisks(image, await readFile(archive));
const values: number[] = [];
const peerValues: number[] = [];
for (let round = -WARM_UP_ROUNDS; round < ROUNDS; round++) {
  const seed = round + WARM_UP_ROUNDS + 1;
  const value = await runLoad(machine, one, OWN_DISK, seed);
  const peerValue = await runLoad(machine, one, PEER_DISK, seed);
  if (process.env.BENCH_VERBOSE) console.error(round, value.toFixed(0), peerValue.toFixed(0));
  if (round < 0) continue;
  values.push(value);
  peerValues.push(peerValue);
}
await machine.kill();
process.stdout.write(JSON.stringify({ values, peerValues }));
