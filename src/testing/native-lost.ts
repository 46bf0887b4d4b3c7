// A process for the test of bus errors: it may die of them.
import { ftruncateSync } from "node:fs";
import { createMemoryFile, MappedMemory } from "../host/node/native/memory.ts";
import { RequestTable } from "../host/node/native/table.ts";

const fd = createMemoryFile("virtkit-test", 65536, 0);
const memory = MappedMemory.map(fd, { length: 65536 });
const other = MappedMemory.allocate(65536);
const table = new RequestTable(1, 1);
const copy = (from: MappedMemory): number => {
  table.segmentRegion[0] = from.id;
  table.segmentLength[0] = 65536;
  return table.copyOut(0, 1, new Uint8Array(65536));
};
ftruncateSync(fd, 0);
if (process.argv[2] === "ours") {
  const copied = copy(memory);
  console.log(`copied ${copied} lost ${memory.lost}, then ${copy(other)} of others`);
} else process.kill(process.pid, "SIGBUS");
