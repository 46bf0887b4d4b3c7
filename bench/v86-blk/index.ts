// `npm run bench -- v86-blk --json`: our disk over a raw file against v86's own IDE disk, in the same guest.
import { spawnSync } from "node:child_process";
import { randomFillSync } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { prepareGuest } from "../../src/host/node/guest/prepare.ts";
import { benchArchive } from "./archive.ts";
import { type BlkCase, CASES, IMAGE_BYTES } from "./case.ts";

export interface BenchRow {
  readonly name: string;
  readonly value: number;
  readonly unit: "MB/s" | "IOPS";
  readonly peer: "v86 ide";
  readonly peerValue: number;
  /** value / peerValue */
  readonly ratio: number;
}

/** Milliseconds that a case may take on a slow machine; most of them are the guest's boot. */
const CASE_LIMIT = 180_000;

/** Each case boots a guest in a process of its own; there the two disks take turns. Compiles the load with `cc` first. */
export default async function run(emit: (row: BenchRow) => void): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "virtkit-bench-"));
  try {
    const archive = join(folder, "bench.cpio");
    writeFileSync(archive, await benchArchive(await prepareGuest(), folder));
    const image = join(folder, "disk.img");
    writeFileSync(image, randomFillSync(Buffer.alloc(IMAGE_BYTES)));
    for (const one of CASES) emit(measure(one, image, archive));
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

function measure(one: BlkCase, image: string, archive: string): BenchRow {
  const worker = fileURLToPath(new URL("worker.ts", import.meta.url));
  const { status, stdout, error } = spawnSync(
    process.execPath,
    ["--import", "tsx", worker, image, archive, one.name],
    { stdio: ["ignore", "pipe", "inherit"], timeout: CASE_LIMIT, encoding: "utf8" },
  );
  if (status !== 0) throw error ?? new Error(`the process of ${one.name} ended with ${status}`);
  const { values, peerValues } = JSON.parse(stdout) as Record<"values" | "peerValues", number[]>;
  const value = median(values);
  const peerValue = median(peerValues);
  return {
    name: one.name,
    value: Number(value.toFixed(1)),
    unit: one.unit,
    peer: "v86 ide",
    peerValue: Number(peerValue.toFixed(1)),
    ratio: Number((value / peerValue).toFixed(3)),
  };
}

function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] as number;
}
