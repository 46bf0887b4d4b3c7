import assert from "node:assert/strict";
import { once } from "node:events";
import { test } from "node:test";
import { Worker } from "node:worker_threads";
import { GuestMemory } from "../memory/guest-memory.ts";
import { MemoryRegion } from "../memory/memory-region.ts";
import { NO_FEATURES } from "../testing/ring-contract.ts";
import { ChainBatch, createDeviceQueue, createDriverQueue, packedLayout, splitLayout } from "./index.ts";

// The other side changes the rings while we read them. Whatever is read twice, or checked and read again, shows here as a
// segment outside its region or as an exception.

const RINGS = 0x400;
const SIZE = 16;

/** Writes small random words all over the rings until the last word of the memory is set. */
const SCRIBBLER = `
  const { workerData } = require("node:worker_threads");
  const words = new Uint32Array(workerData);
  const flags = [0, 1, 2, 3, 4, 5, 0x80, 0x81, 0x8000, 0x8002];
  let x = 88172645;
  const random = () => ((x ^= x << 13), (x ^= x >>> 17), (x ^= x << 5), x >>> 0);
  const stop = words.length - 1;
  while (Atomics.load(words, stop) === 0)
    for (let i = 0; i < 1000; i++) {
      const at = random() % ${RINGS / 4};
      const kind = random() % 4;
      words[at] =
        kind === 0 ? random() % 0x2000 : kind === 1 ? random() % 64 : kind === 2
          ? flags[random() % 10] + 65536 * (random() % 20)
          : random() % 20 + 65536 * flags[random() % 10];
    }
`;

for (const packed of [false, true])
  test(`${packed ? "packed" : "split"}: rings that change under our eyes`, { timeout: 60_000 }, async () => {
    const shared = new SharedArrayBuffer(0x2000);
    const words = new Uint32Array(shared);
    const memory = new GuestMemory([
      new MemoryRegion(0, shared, { size: 0x1000 }),
      new MemoryRegion(0x1000, shared, { byteOffset: 0x1000, size: 0x800, readOnly: true }),
    ]);
    const config = (packed ? packedLayout : splitLayout)(0, SIZE);
    const worker = new Worker(SCRIBBLER, { eval: true, workerData: shared });
    await once(worker, "online");
    const batch = new ChainBatch(SIZE);
    const tokens = new Uint32Array(SIZE);
    const lengths = new Uint32Array(SIZE);
    const sg = { address: Float64Array.of(0x800), length: Uint32Array.of(16) };
    let chains = 0;
    let faults = 0;
    try {
      // On a busy machine the other thread may have to wait for a processor.
      for (let round = 0; round < 30_000 || (faults <= 100 && round < 3_000_000); round++) {
        const features = {
          ...NO_FEATURES,
          packed,
          indirect: true,
          eventIdx: round % 2 === 0,
          inOrder: round % 3 === 0,
        };
        const device = createDeviceQueue(memory, config, features);
        for (let i = 0; i < 4; i++) {
          batch.clear();
          chains += device.pop(batch, SIZE);
          checkSegments(memory, batch);
          for (let c = 0; c < batch.count; c++) device.push(batch.id[c] as number, 0);
          device.flush();
          device.enableKicks();
        }
        if (device.fault !== undefined) faults++;
        const driver = createDriverQueue(memory, config, features);
        for (let i = 0; i < 4; i++) {
          driver.add(sg, 0, 0, 1, i);
          driver.publish();
          const count = driver.get(tokens, lengths, SIZE);
          for (let g = 0; g < count; g++) assert.ok((tokens[g] as number) < 4 && (lengths[g] as number) <= 16);
          driver.enableCallbacks();
        }
      }
    } finally {
      Atomics.store(words, words.length - 1, 1);
      await worker.terminate();
    }
    assert.ok(chains > 100 && faults > 100, `${chains} chains, ${faults} faults`);
  });

function checkSegments(memory: GuestMemory, batch: ChainBatch): void {
  for (let c = 0; c < batch.count; c++) {
    const first = batch.first[c] as number;
    const readable = batch.readable[c] as number;
    const count = readable + (batch.writable[c] as number);
    let bytes = 0;
    for (let s = first; s < first + count; s++) {
      const region = memory.regions[batch.region[s] as number] as MemoryRegion;
      assert.ok((batch.offset[s] as number) + (batch.length[s] as number) <= region.size);
      assert.ok(!(region.readOnly && s >= first + readable), "a writable segment in read-only memory");
      bytes += batch.length[s] as number;
    }
    assert.equal(bytes, (batch.readableBytes[c] as number) + (batch.writableBytes[c] as number));
  }
}
