import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { test } from "node:test";
import { execInGuest, PROGRAM, startProgram, startVirtkit } from "../testing/guest-program.ts";

const limit = { timeout: 90_000 };

test("stdout and stderr come out apart and byte for byte, and the status is the command's", limit, async () => {
  const { status, stdout, stderr } = await execInGuest("cat; echo wrong >&2; exit 37", [], {
    input: Buffer.from(Array.from({ length: 256 }, (_, byte) => byte)),
  });
  assert.equal(status, 37);
  assert.deepEqual(
    [...stdout],
    Array.from({ length: 256 }, (_, byte) => byte),
  );
  assert.equal(stderr, "wrong\n");
});

test("five megabytes go through the guest and back unharmed", limit, async () => {
  const input = randomBytes(5_000_001);
  const { status, stdout } = await execInGuest("cat", [], { input });
  assert.equal(status, 0);
  assert(stdout.equals(input));
});

test("a command reads its input while the host still writes it, and sees its end", limit, async () => {
  const run = startVirtkit(["run", "--exec", 'while read -r line; do echo "<$line>"; done; echo end'], {
    input: "open",
  });
  run.write("one\n");
  await run.sees(/<one>\n/);
  run.write("two\n");
  await run.sees(/<two>\n/);
  run.endInput();
  const { status, stdout } = await run.ended;
  assert.equal(status, 0);
  assert.equal(stdout.toString(), "<one>\n<two>\nend\n");
});

test("the program ends with its command although its own input stays open", limit, async () => {
  const run = startVirtkit(["run", "--exec", "echo done"], { input: "open" });
  const { status, stdout } = await run.ended;
  assert.equal(status, 0);
  assert.equal(stdout.toString(), "done\n");
});

test("without input a command reads the end of a file at once", limit, async () => {
  const { status, stdout } = await execInGuest("wc -c");
  assert.equal(status, 0);
  assert.equal(stdout.toString().trim(), "0");
});

test(
  "a command that no shell finds ends with 127, one that a signal ended with 128 and its number",
  limit,
  async () => {
    const missing = await execInGuest("there-is-no-such-command");
    assert.equal(missing.status, 127);
    assert.match(missing.stderr, /there-is-no-such-command: not found/);
    const killed = await execInGuest("echo before; kill -SEGV $$");
    assert.equal(killed.status, 139);
    assert.equal(killed.stdout.toString(), "before\n");
  },
);

test("--exec-timeout ends a command and the machine, with what it wrote until then and status 124", limit, async () => {
  const { status, stdout, stderr } = await execInGuest("echo early; sleep 1000; echo late", ["--exec-timeout", "2"]);
  assert.equal(status, 124);
  assert.equal(stdout.toString(), "early\n");
  assert.match(stderr, /^virtkit: the command was killed: it had not ended after 2000 ms\n$/);
});

test("a reader that goes away ends the command as in a pipe of the host's", limit, async () => {
  const run = startVirtkit(["run", "--exec", "yes"]);
  await run.sees(/y\ny\n/);
  run.closeOutput();
  const { status, stderr } = await run.ended;
  assert.equal(stderr, "");
  assert.equal(status, 141);
});

test("output that cannot be written is an error, told once", limit, async () => {
  const words = ["sh", "-c", 'exec "$@" >/dev/full', "sh", ...PROGRAM, "run"];
  for (const args of [
    ["--exec", "echo x"],
    ["-device", "help"],
  ]) {
    const { status, stderr } = await startProgram([...words, ...args]).ended;
    assert.equal(status, 1);
    assert.match(stderr, /^virtkit: standard output cannot be written: ENOSPC.*\n$/);
  }
});

test("a command whose guest goes down, and does not come back soon, ends the program and says why", limit, async () => {
  const off = await execInGuest("poweroff -f; sleep 100");
  assert.equal(off.stderr, "virtkit: the guest switched itself off\n");
  assert.equal(off.status, 1);
  const again = await execInGuest("reboot -f; sleep 100", ["-no-reboot"]);
  assert.equal(again.stderr, "virtkit: the guest rebooted\n");
  assert.equal(again.status, 1);
  const lost = await execInGuest("reboot -f; sleep 100");
  assert.equal(lost.stderr, "virtkit: the guest's agent went away while the command ran\n");
  assert.equal(lost.status, 1);
});
