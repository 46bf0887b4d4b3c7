import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { parseTrace } from "../testing/follow-a-request.ts";
import { randomImage, scratchFolder } from "../testing/guest-files.ts";
import { execInGuest, startVirtkit } from "../testing/guest-program.ts";

const limit = { timeout: 120_000 };
const disk = (path: string): string[] => ["-drive", `file=${path},format=raw,if=virtio`];

test("--stats prints a table at the end, and nothing of it on standard output", limit, async (t) => {
  const image = randomImage(scratchFolder(t), "disk.img", 2 ** 20);
  const { status, stdout, stderr } = await execInGuest("cat /dev/vda | wc -c; exit 3", [...disk(image), "--stats"]);
  assert.equal(status, 3);
  assert.equal(stdout.toString(), `${2 ** 20}\n`);
  const [head = "", ...rows] = stderr.split("\n");
  assert.match(head, /^device +queue +kicks +chains +bytes read +bytes written +interrupts$/);
  const [, queue, kicks, chains, , written, interrupts] =
    rows.find((row) => row.startsWith("virtio-blk-pci"))?.split(/ {2,}/) ?? [];
  assert.equal(queue, "0");
  assert.ok(Number(kicks) > 0 && Number(chains) >= Number(kicks) && Number(interrupts) > 0);
  assert.ok(Number(written) > 2 ** 20);
  assert.match(
    stderr,
    /\nvirtio-blk-pci, queue 0: µs from pop to push; 50 % within \d+, .*\n +\d+ \.\. \d+ +#+ +\d+\n/,
  );
});

test("a trace is whole after a signal", limit, async (t) => {
  const folder = scratchFolder(t);
  const trace = join(folder, "trace");
  const program = startVirtkit([
    ...["run", "--trace", trace, "--exec", "echo up; while :; do dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null; done"],
    ...disk(randomImage(folder, "disk.img", 2 ** 20)),
  ]);
  await program.sees(/up/);
  program.kill("SIGTERM");
  const { status } = await program.ended;
  assert.equal(status, 143);
  const text = readFileSync(trace, "utf8");
  assert.ok(text.endsWith("\n"));
  const last = parseTrace(text).at(-1);
  assert.deepEqual([last?.kind, last?.["state"]], ["queue", "stop"]);
});

const noFull = existsSync("/dev/full") ? false : "needs /dev/full";
test("a full disk ends the trace, not the guest", { ...limit, skip: noFull }, async () => {
  const { status, stdout, stderr } = await execInGuest("echo alive", ["--trace", "/dev/full"]);
  assert.equal(status, 0);
  assert.equal(stdout.toString(), "alive\n");
  assert.match(stderr, /^virtkit: warn: \/dev\/full: no space left on the device; the trace ends here, .*\n$/);
});

test("wrong traces end with 2 and a way out, before anything is made", limit, async (t) => {
  const folder = scratchFolder(t);
  const image = randomImage(folder, "disk.img", 2 ** 20);
  const file = join(folder, "trace");
  for (const [value, message] of [
    [join(folder, "none", "trace"), /: the trace cannot be written to '.*': no such directory\n$/],
    [image, /: the file is in use: -drive file=/],
    [`${file},device=virtio-blk`, /there is no device 'virtio-blk'\nDid you mean 'virtio-blk-pci'\?/],
    [`${file},kind=kik`, /there are no events of kind 'kik'\nDid you mean 'kick'\?/],
  ] as const) {
    const { status, stderr } = await execInGuest("true", [...disk(image), "--trace", value]);
    assert.equal(status, 2);
    assert.match(stderr, message);
    assert.equal(existsSync(file), false);
  }
});
