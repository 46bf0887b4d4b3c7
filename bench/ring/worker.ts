// The TypeScript side of one case, in a process of its own: a round for each line on standard input.
import { createInterface } from "node:readline";
import { GuestMemory } from "../../src/memory/guest-memory.ts";
import { ChainBatch } from "../../src/virtqueue/chain-batch.ts";
import { createDeviceQueue, createDriverQueue } from "../../src/virtqueue/create.ts";
import { packedLayout, splitLayout } from "../../src/virtqueue/layout.ts";
import * as bench from "./case.ts";

const [format, descriptorsText, batchText] = process.argv.slice(2);
const packed = format === "packed";
const descriptors = Number(descriptorsText);
const batchSize = Number(batchText);
const out = 1;
const SLOTS = bench.SLOTS;
const in_ = descriptors - 1;

const memory = GuestMemory.allocate(bench.MEMORY_BYTES);
const config = (packed ? packedLayout : splitLayout)(bench.QUEUE_ADDRESS, bench.QUEUE_SIZE);
const features = {
  packed,
  indirect: false,
  eventIdx: true,
  inOrder: false,
  notificationData: false,
  legacy: false,
  notifyOnEmpty: false,
};
const driver = createDriverQueue(memory, config, features);
const device = createDeviceQueue(memory, config, features);
const batch = new ChainBatch(256);
const tokens = new Uint32Array(256);
const lengths = new Uint32Array(256);
const sg = {
  address: new Float64Array(bench.SLOTS * 3),
  length: new Uint32Array(bench.SLOTS * 3),
};
for (let slot = 0; slot < bench.SLOTS; slot++) {
  let address = bench.BUFFERS + slot * bench.SLOT_BYTES;
  for (let i = 0; i < 3; i++) {
    sg.address[slot * 3 + i] = address;
    sg.length[slot * 3 + i] = bench.LENGTHS[i] as number;
    address += bench.LENGTHS[i] as number;
  }
}

let slot = 0;
let notifications = 0;
let written = 0;

// Sums go through locals: a module's variable that holds no small integer is a new heap number at each store.
function driverAdds(): void {
  let next = slot;
  for (let i = 0; i < batchSize; i++) {
    if (!driver.add(sg, next * 3, out, in_, next)) throw new Error("no room in the ring");
    next = (next + 1) & (SLOTS - 1);
  }
  slot = next;
  if (driver.publish()) notifications++;
}

function deviceServes(): void {
  do {
    device.disableKicks();
    for (;;) {
      batch.clear();
      const count = device.pop(batch, 256);
      if (count === 0) break;
      const { id, writableBytes } = batch;
      for (let c = 0; c < count; c++) device.push(id[c] as number, writableBytes[c] as number);
      if (device.flush()) notifications++;
    }
  } while (device.enableKicks());
}

function driverGets(): number {
  let got = 0;
  do {
    driver.disableCallbacks();
    const count = driver.get(tokens, lengths, 256);
    let sum = 0;
    for (let i = 0; i < count; i++) sum += (lengths[i] as number) + (tokens[i] as number);
    written += sum;
    got += count;
  } while (driver.enableCallbacks());
  return got;
}

function serve(requests: number): number {
  let done = 0;
  while (done < requests) {
    driverAdds();
    deviceServes();
    done += driverGets();
  }
  return done;
}

function round(seconds: number): number {
  const start = process.hrtime.bigint();
  let done = 0;
  for (;;) {
    done += serve(bench.REQUESTS_A_LOOK);
    const spent = Number(process.hrtime.bigint() - start) / 1e9;
    if (spent >= seconds) return done / spent / 1e6;
  }
}

round(bench.ROUND_SECONDS);
createInterface({ input: process.stdin }).on("line", () => {
  const value = round(bench.ROUND_SECONDS);
  const fault = driver.fault ?? device.fault;
  if (fault !== undefined || notifications === 0) throw new Error(`the queue broke: ${fault?.reason}`);
  process.stdout.write(`${value} ${notifications} ${written}\n`);
});
