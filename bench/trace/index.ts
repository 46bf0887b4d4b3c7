// `npm run bench -- trace --json`: what the hooks of traces cost. The peer is the same core with every hook taken out of its sources.
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { median, Side } from "../side.ts";
import { copySources } from "./strip.ts";

export interface BenchRow {
  readonly name: string;
  /** Million block requests a second, 32 a kick. */
  readonly value: number;
  readonly unit: "Mreq/s";
  readonly peer: "no hooks";
  readonly peerValue: number;
  /** value / peerValue */
  readonly ratio: number;
}

const ROUNDS = 15;
/** Fewer would mean that the sources no longer look as bench/trace/strip.ts takes them to. */
const LEAST_HOOKS = 30;

/** Each variant has a process of its own; they take turns. */
export default async function run(emit: (row: BenchRow) => void): Promise<void> {
  const root = fileURLToPath(new URL("../../", import.meta.url));
  const directory = mkdtempSync(join(tmpdir(), "virtkit-bench-"));
  const variants: Side[] = [];
  try {
    const [whole, bare] = ["hooks", "bare"].map((name) => join(directory, name)) as [string, string];
    for (const folder of [whole, bare]) mkdirSync(folder);
    copySources(root, whole, true);
    const left = copySources(root, bare, false);
    if (left < LEAST_HOOKS) throw new Error(`only ${left} hooks were found`);
    const loader = import.meta.resolve("tsx");
    const start = (folder: string, mode: string): Side =>
      new Side(process.execPath, ["--import", loader, join(folder, "bench/trace/worker.ts"), mode]);
    variants.push(start(bare, "off"), start(whole, "off"), start(whole, "stats"), start(bare, "off"));
    const values: number[][] = variants.map(() => []);
    for (let round = 0; round < ROUNDS; round++)
      for (const [i, variant] of variants.entries()) values[i]?.push(await variant.round());
    const [peerValue = 0, off = 0, stats = 0, again = 0] = values.map(median);
    emit(row("trace.off", off, peerValue));
    // The same code twice: how far two figures that should be equal are apart on this machine.
    emit(row("trace.noise", again, peerValue));
    emit(row("trace.stats", stats, peerValue));
  } finally {
    await Promise.all(variants.map((variant) => variant.end()));
    rmSync(directory, { recursive: true, force: true });
  }
}

function row(name: string, value: number, peerValue: number): BenchRow {
  return {
    name,
    value: Number(value.toFixed(3)),
    unit: "Mreq/s",
    peer: "no hooks",
    peerValue: Number(peerValue.toFixed(3)),
    ratio: Number((value / peerValue).toFixed(3)),
  };
}
