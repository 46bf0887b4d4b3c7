// Processes and workers that end in the middle of things.
import { ftruncateSync } from "node:fs";
import { parentPort } from "node:worker_threads";
import { EventDescriptor } from "../host/node/native/events.ts";
import { createMemoryFile, MappedMemory } from "../host/node/native/memory.ts";
import { DescriptorSocket } from "../host/node/native/sockets.ts";
import { OP_READ, RequestTable } from "../host/node/native/table.ts";
import { Uring } from "../host/node/native/uring.ts";
import { typescriptWorker } from "./worker.ts";

const modes: Record<string, () => void | Promise<void>> = {
  throw() {
    const event = new EventDescriptor();
    event.watch(() => {
      throw new Error("from a callback");
    });
    event.signal();
  },
  unref() {
    new EventDescriptor().watch(() => undefined, { keepAlive: false });
    process.on("exit", () => console.log("ended"));
  },
  worker() {
    const event = new EventDescriptor();
    event.watch(() => undefined);
    const [a] = DescriptorSocket.pair();
    a.receive(new Uint8Array(1)).catch(() => undefined);
    const fd = createMemoryFile("virtkit-test", 65536, 0);
    const memory = MappedMemory.map(fd, { length: 65536 });
    const bytes = new Uint8Array(memory.window());
    const table = new RequestTable(8, 8);
    const opened = Uring.open(8, () => undefined);
    if ("ring" in opened) {
      table.op[0] = OP_READ;
      table.fd[0] = fd;
      table.count[0] = 1;
      table.segmentRegion[0] = memory.id;
      table.segmentLength[0] = 4096;
      opened.ring.submit(table, 0, 1);
    }
    // This thread may be the first to load the add-on: its signal handler has to outlive it.
    ftruncateSync(fd, 0);
    parentPort?.on("message", () => process.exit(0));
    parentPort?.postMessage(bytes[5]);
  },
  async workers() {
    for (let i = 0; i < 3; i++) {
      const worker = typescriptWorker(new URL(import.meta.url), { argv: ["worker"] });
      await new Promise((resolve, reject) => worker.once("message", resolve).once("error", reject));
      await worker.terminate();
    }
    console.log("ended");
  },
};

await modes[process.argv[2] as string]?.();
