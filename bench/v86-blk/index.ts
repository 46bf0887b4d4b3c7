// `npm run bench -- v86-blk --json`: our disk over a raw file against v86's own IDE disk, in the same guest.
import { spawn } from "node:child_process";
import { randomFillSync } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { prepareGuest } from "../../src/host/node/guest/prepare.ts";
import { benchArchive } from "./archive.ts";
import { CASES, type CaseResult, IMAGE_BYTES } from "./case.ts";

export interface BenchRow {
  readonly name: string;
  readonly value: number;
  readonly unit: "MB/s" | "IOPS";
  readonly peer: "v86 ide";
  readonly peerValue: number;
  /** value / peerValue */
  readonly ratio: number;
}

/** Milliseconds that all of it may take on a slow or busy machine; alone it takes about one minute. */
const LIMIT = 600_000;

/** Boots a guest with both disks in a process of its own; there they take turns. Compiles the load with `cc` first. */
export default async function run(emit: (row: BenchRow) => void): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "virtkit-bench-"));
  try {
    const archive = join(folder, "bench.cpio");
    writeFileSync(archive, await benchArchive(await prepareGuest(), folder));
    const image = join(folder, "disk.img");
    writeFileSync(image, randomFillSync(Buffer.alloc(IMAGE_BYTES)));
    await measure(image, archive, emit);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function measure(image: string, archive: string, emit: (row: BenchRow) => void): Promise<void> {
  const worker = fileURLToPath(new URL("worker.ts", import.meta.url));
  const child = spawn(process.execPath, ["--import", "tsx", worker, image, archive], {
    stdio: ["ignore", "pipe", "inherit"],
    timeout: LIMIT,
  });
  const ended = once(child, "exit");
  for await (const line of createInterface({ input: child.stdout })) emit(rowOf(JSON.parse(line) as CaseResult));
  const [status, signal] = await ended;
  if (status !== 0) throw new Error(`the bench's guest ended with ${status ?? signal}`);
}

function rowOf({ name, values, peerValues }: CaseResult): BenchRow {
  const value = median(values);
  const peerValue = median(peerValues);
  return {
    name,
    value: Number(value.toFixed(1)),
    unit: CASES.find((one) => one.name === name)?.unit ?? "MB/s",
    peer: "v86 ide",
    peerValue: Number(peerValue.toFixed(1)),
    ratio: Number((value / peerValue).toFixed(3)),
  };
}

function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] as number;
}
