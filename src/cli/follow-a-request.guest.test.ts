import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { followARequest, parseTrace, type TraceLine } from "../testing/follow-a-request.ts";
import { randomImage, scratchFolder } from "../testing/guest-files.ts";
import { execInGuest } from "../testing/guest-program.ts";

/** What is the same in each run: neither times and addresses nor how the guest's memory was cut. */
const FIELDS =
  "device kind names accepted queue register state format size type sector length op offset result status by".split(
    " ",
  );

const same = (lines: readonly TraceLine[]): object[] =>
  lines.map((line) => Object.fromEntries(FIELDS.flatMap((name) => (name in line ? [[name, line[name]]] : []))));

function until(lines: readonly TraceLine[], isLast: (line: TraceLine) => boolean): TraceLine[] {
  const last = lines.findIndex(isLast);
  assert.ok(last >= 0, "the trace ends early");
  return lines.slice(0, last + 1);
}

test("docs/follow-a-request.md shows what a stock guest's write looks like", { timeout: 120_000 }, async (t) => {
  const folder = scratchFolder(t);
  const image = randomImage(folder, "disk.img", 2 ** 20);
  const trace = join(folder, "trace.jsonl");
  const { command, listing } = followARequest();
  const { status } = await execInGuest(command, [
    ...["--trace", `file=${trace},device=disk`],
    ...["-drive", `file=${image},format=raw,if=none,id=d0`, "-device", "virtio-blk-pci,drive=d0,id=disk"],
  ]);
  assert.equal(status, 0);
  const lines = parseTrace(readFileSync(trace, "utf8"));

  const bringUp = until(lines, ({ names }) => String(names).includes("DRIVER_OK"));
  const negotiation = bringUp.filter(({ kind }) => kind === "status" || kind === "features");
  assert.deepEqual(same(negotiation), same(listing("status features")));

  const queues = lines.filter(({ kind }) => kind === "queue");
  assert.deepEqual(same(until(queues, ({ state }) => state === "start")), same(listing("queue")));

  const begin = lines.findIndex(({ kind, type }) => kind === "request-begin" && type === "OUT");
  const kick = lines
    .slice(0, begin)
    .map(({ kind }) => kind)
    .lastIndexOf("kick");
  const request = until(lines.slice(kick), ({ kind }) => kind === "interrupt");
  assert.deepEqual(same(request), same(listing("request")));
  const heads = request.flatMap(({ kind, head }) => (kind === "pop" ? [head] : []));
  assert.equal(heads.length, 2);
  const merged = request.find(({ kind }) => kind === "merge");
  assert.deepEqual([merged?.["head"], merged?.["into"]], [heads[1], heads[0]]);
});
