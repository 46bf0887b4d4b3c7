import { ringContract } from "../testing/ring-contract.ts";

const SPLIT_SIZES = [1, 2, 4, 256];
const PACKED_SIZES = [1, 2, 3, 5, 7, 256];

for (const packed of [false, true])
  for (const size of packed ? PACKED_SIZES : SPLIT_SIZES)
    for (const eventIdx of [false, true])
      for (const inOrder of [false, true])
        for (const indirect of [false, true]) {
          const on = Object.entries({ eventIdx, inOrder, indirect }).filter(([, value]) => value);
          const name = [packed ? "packed" : "split", size, ...on.map(([feature]) => feature)].join(" ");
          ringContract(name, { packed, eventIdx, inOrder, indirect }, size, indirect);
        }

for (const packed of [false, true])
  ringContract(`${packed ? "packed" : "split"} 32768`, { packed, eventIdx: true }, 32768, false);
