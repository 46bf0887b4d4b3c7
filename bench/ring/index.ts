// `npm run bench -- ring --json`: both sides of a virtqueue in one thread, against a C program that does the same.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { median, Side } from "../side.ts";
import { caseName, type RingCase } from "./case.ts";

export interface BenchRow {
  readonly name: string;
  /** Million requests a second: made available, taken, returned and got back. */
  readonly value: number;
  readonly unit: "Mreq/s";
  readonly peer: "c -O2";
  readonly peerValue: number;
  /** value / peerValue */
  readonly ratio: number;
}

const ROUNDS = 7;
const here = (name: string): string => fileURLToPath(new URL(name, import.meta.url));

const CASES: RingCase[] = [false, true].flatMap((packed) =>
  [1, 3].flatMap((descriptors) => [1, 32, 256].map((batch) => ({ packed, descriptors, batch }))),
);

/** Each case and side has a process of its own; the two take turns. Compiles the peer with `cc` first. */
export default async function run(emit: (row: BenchRow) => void): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), "virtkit-bench-"));
  try {
    const peer = join(directory, "ring");
    const { status, error } = spawnSync("cc", ["-O2", "-std=gnu11", "-o", peer, here("ring.c")], { stdio: "inherit" });
    if (status !== 0) throw error ?? new Error("cc could not compile bench/ring/ring.c; install a C compiler (gcc)");
    for (const one of CASES) emit(await measure(one, peer));
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

async function measure(one: RingCase, peer: string): Promise<BenchRow> {
  const args = [one.packed ? "packed" : "split", String(one.descriptors), String(one.batch)];
  const own = new Side(process.execPath, ["--import", "tsx", here("worker.ts"), ...args]);
  const other = new Side(peer, args);
  const values: number[] = [];
  const peerValues: number[] = [];
  try {
    for (let round = 0; round < ROUNDS; round++) {
      values.push(await own.round());
      peerValues.push(await other.round());
    }
  } finally {
    await Promise.all([own.end(), other.end()]);
  }
  const value = median(values);
  const peerValue = median(peerValues);
  return {
    name: caseName(one),
    value: Number(value.toFixed(2)),
    unit: "Mreq/s",
    peer: "c -O2",
    peerValue: Number(peerValue.toFixed(2)),
    ratio: Number((value / peerValue).toFixed(3)),
  };
}
