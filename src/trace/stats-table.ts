import type { QueueStats, TraceStats } from "./stats.ts";

const HEADINGS = ["device", "queue", "kicks", "chains", "bytes read", "bytes written", "interrupts"];
const BAR = 40;

/** The counters and histograms as text for a terminal; queues that were never used are left out. */
export function statsTable(stats: TraceStats): string {
  const used = stats.queues.filter((queue) => queue.kicks + queue.popped + queue.interrupts > 0);
  if (used.length === 0) return "No queue was used.\n";
  const rows = used.map((queue) => [
    queue.device,
    ...[queue.queue, queue.kicks, queue.popped, queue.readableBytes, queue.writtenBytes, queue.interrupts].map(String),
  ]);
  const faults = [...stats.faults].map(([device, count]) => `${device}: ${count} rules broken by the driver\n`);
  return [table([HEADINGS, ...rows]), ...faults, ...used.map(histogram)].join("");
}

/** The first column to the left, the others to the right. */
function table(rows: readonly (readonly string[])[]): string {
  const widths = HEADINGS.map((_, column) => Math.max(...rows.map((row) => row[column]?.length ?? 0)));
  const line = (row: readonly string[]): string =>
    row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i] ?? 0) : cell.padStart(widths[i] ?? 0))).join("  ");
  return rows.map((row) => `${line(row)}\n`).join("");
}

function histogram({ device, queue, latency }: QueueStats): string {
  if (latency.count === 0) return "";
  const figures = [0.5, 0.9, 0.99].map((share) => `${share * 100} % within ${Math.round(latency.quantile(share))}`);
  const octaves = latency.octaves();
  const most = Math.max(...octaves.map(({ count }) => count));
  const lines = octaves.map(({ from, to, count }) => {
    const bar = "#".repeat(Math.ceil((count / most) * BAR));
    return `${String(from).padStart(10)} .. ${String(to).padEnd(10)} ${bar.padEnd(BAR)} ${count}\n`;
  });
  const title = `\n${device}, queue ${queue}: µs from pop to push; ${figures.join(", ")}, at most ${Math.round(latency.max)}\n`;
  return title + lines.join("");
}
