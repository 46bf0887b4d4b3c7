// Reads of 512 bytes from a disk in memory, by our own driver over the loopback transport: a round for each line on standard input.
import { createInterface } from "node:readline";
import { MemoryBlockBackend } from "../../src/backend/block/memory.ts";
import { SILENT } from "../../src/common/environment.ts";
import { BlkDevice } from "../../src/device/blk.ts";
import { BlkBatch, BlkDriver } from "../../src/driver/blk.ts";
import { LoopbackMachine } from "../../src/engine/loopback/index.ts";
import { VIRTIO_BLK_T_IN } from "../../src/spec/blk.ts";
import { TraceStats } from "../../src/trace/stats.ts";
import { Tracing } from "../../src/trace/tracing.ts";

const BATCH = 32;
const ROUND_SECONDS = 0.4;
const BATCHES_A_LOOK = 256;
const CAPACITY = 2 ** 20;

const environment = {
  defer: (task: () => void) => void setImmediate(task),
  after: () => () => undefined,
  now: () => performance.now(),
  log: SILENT,
};
const tracing = new Tracing(environment.now);
if (process.argv[2] === "stats") tracing.addSink(new TraceStats());
const machine = new LoopbackMachine({ environment, delivery: "direct", tracerOf: (name) => tracing.tracer(name) });
const backend = new MemoryBlockBackend({ capacity: CAPACITY });
const driver = await machine.attach(new BlkDevice({ backend, environment }), BlkDriver.type);

const buffer = machine.dma.alloc(BATCH * 512, 512);
const batch = new BlkBatch(BATCH);
for (let i = 0; i < BATCH; i++) {
  batch.type[i] = VIRTIO_BLK_T_IN;
  // No neighbours: each request is an I/O of its own.
  batch.sector[i] = i * 3;
  batch.address[i] = buffer.address + i * 512;
  batch.length[i] = 512;
}

/** Million requests a second. */
async function round(): Promise<number> {
  const start = process.hrtime.bigint();
  for (let done = 0; ; done += BATCHES_A_LOOK * BATCH) {
    const spent = Number(process.hrtime.bigint() - start) / 1e9;
    if (spent >= ROUND_SECONDS) return done / spent / 1e6;
    for (let i = 0; i < BATCHES_A_LOOK; i++) {
      batch.completed = 0;
      if (driver.submit(batch, 0, BATCH) !== BATCH) throw new Error("no room for a batch");
      // Now and then the device leaves the rest for a later turn.
      while (batch.completed !== BATCH) await new Promise(setImmediate);
    }
  }
}

await round();
for await (const _line of createInterface({ input: process.stdin })) process.stdout.write(`${await round()}\n`);
