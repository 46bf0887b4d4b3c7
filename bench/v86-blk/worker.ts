// A guest with both disks, in a process of its own; each case's rounds on the two disks in turn. Arguments: the image and the archive.
// A line of JSON on standard output for each case: its name, and what the rounds gave.
import { readFile } from "node:fs/promises";
import { CASES, type CaseResult, ROUNDS, WARM_UP_ROUNDS } from "./case.ts";
import { bootWithBothDisks, OWN_DISK, PEER_DISK, runLoad } from "./guest.ts";

const [image = "", archive = ""] = process.argv.slice(2);
const machine = await bootWithBothDisks(image, await readFile(archive));
for (const one of CASES) {
  const values: number[] = [];
  const peerValues: number[] = [];
  for (let round = -WARM_UP_ROUNDS; round < ROUNDS; round++) {
    // Another place for each random read: neither side has it from the round before.
    const seed = round + WARM_UP_ROUNDS + 1;
    const value = await runLoad(machine, one, OWN_DISK, seed);
    const peerValue = await runLoad(machine, one, PEER_DISK, seed);
    if (round < 0) continue;
    values.push(value);
    peerValues.push(peerValue);
  }
  process.stdout.write(`${JSON.stringify({ name: one.name, values, peerValues } satisfies CaseResult)}\n`);
}
await machine.kill();
