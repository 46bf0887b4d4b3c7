import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { after, before, test } from "node:test";
import type { VirtualMachine } from "../machine/virtual-machine.ts";
import { createMachine } from "./create-machine.ts";

const limit = { timeout: 60_000 };
const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString();

let machine: VirtualMachine;

before(
  async () => {
    machine = await createMachine();
    await machine.start();
  },
  { timeout: 240_000 },
);

after(async () => {
  await machine.stop();
}, limit);

const output = async (command: string | readonly string[]): Promise<string> =>
  text((await machine.exec(command)).stdout);

test("every exit status comes back", limit, async () => {
  for (const status of [0, 1, 2, 126, 127, 128, 129, 200, 254, 255])
    assert.equal((await machine.exec(`exit ${status}`)).status, status);
});

test("a signal's end is 128 and its number, be it the shell or a program", limit, async () => {
  assert.equal((await machine.exec("kill -KILL $$")).status, 137);
  assert.equal((await machine.exec("kill -INT $$; sleep 5")).status, 130);
  assert.equal((await machine.exec(["sh", "-c", "kill -TERM $$"])).status, 143);
});

test("a program's arguments arrive as they are", limit, async () => {
  const words = [
    "",
    " ",
    "a b",
    "it's",
    '"',
    "$HOME",
    "`x`",
    "\\",
    "*",
    "-n",
    "new\nline",
    "ü€😀",
    "!",
    "a".repeat(5000),
  ];
  const { stdout } = await machine.exec(["sh", "-c", 'for word; do printf "%s\\0" "$word"; done', "sh", ...words]);
  assert.deepEqual(text(stdout).split("\0").slice(0, -1), words);
});

test("environment and folder are the caller's for this command only", limit, async () => {
  const { stdout } = await machine.exec('printf "%s|%s" "$GREETING" "$PWD"', {
    env: { GREETING: "it's\n$HOME" },
    cwd: "/proc/self/..",
  });
  assert.equal(text(stdout), "it's\n$HOME|/proc");
  assert.equal(await output('echo "[$GREETING] $PWD"'), "[] /root\n");
  assert.equal((await machine.exec("true", { cwd: "/no/such/folder" })).status, 126);
});

test("calls at once run in the order in which they were made", limit, async () => {
  const results = await Promise.all(
    Array.from({ length: 8 }, (_, index) =>
      machine.exec(`cat; echo ${index} >>/tmp/order`, { stdin: `input ${index}` }),
    ),
  );
  assert.deepEqual(
    results.map(({ stdout }) => text(stdout)),
    results.map((_, index) => `input ${index}`),
  );
  assert.equal(await output("cat /tmp/order"), "0\n1\n2\n3\n4\n5\n6\n7\n");
});

test("files of any bytes are written and read, in place of what was there", limit, async () => {
  const data = randomBytes(1_500_000);
  const path = "/tmp/it's a file ü";
  await machine.writeFile(path, randomBytes(2_000_000));
  await machine.writeFile(path, data);
  assert(Buffer.from(await machine.readFile(path)).equals(data));
  await machine.writeFile("-dash", "");
  assert.equal((await machine.readFile("/root/-dash")).length, 0);
  const size = Number(text(await machine.readFile("/sys/devices/system/cpu/cpu0/uevent")).length);
  assert(size > 0, "also files of no size of their own");
  await assert.rejects(machine.readFile("/no/such"), {
    code: "ERR_VIRTKIT_GUEST_FILE",
    message: /\/no\/such.*No such file/,
  });
  await assert.rejects(machine.writeFile("/no/such", "x"), { code: "ERR_VIRTKIT_GUEST_FILE" });
  await assert.rejects(machine.readFile("/tmp"), { code: "ERR_VIRTKIT_GUEST_FILE", message: /directory/ });
});

test("an aborted command is dead in the guest, and the next one runs", limit, async () => {
  const abort = new AbortController();
  const started = machine.exec("echo $$ >/tmp/pid; echo up; sleep 1000 & sleep 1001", {
    signal: abort.signal,
    onStdout: () => abort.abort(),
  });
  await assert.rejects(started, { code: "ERR_VIRTKIT_ABORTED" });
  assert.equal(
    await output("ls -d /proc/$(cat /tmp/pid) 2>/dev/null; pgrep -f 'sleep 100[01]' || echo none"),
    "none\n",
  );
  await assert.rejects(machine.exec("echo x", { signal: AbortSignal.abort() }), { code: "ERR_VIRTKIT_ABORTED" });
});

test("a time-out kills the whole group of a command", limit, async () => {
  await assert.rejects(machine.exec("sleep 2001 | sleep 2002", { timeout: 300 }), { code: "ERR_VIRTKIT_EXEC_TIMEOUT" });
  assert.equal(await output("pgrep -f 'sleep 200[12]' || echo none"), "none\n");
});

test("a child that is left behind with the output lives on and holds nothing up", limit, async () => {
  const { stdout } = await machine.exec("(sleep 1; echo late; sleep 3000) & echo $!");
  const pid = text(stdout).trim();
  assert.match(pid, /^\d+$/);
  assert.equal(await output("sleep 1.5; echo mine"), "mine\n");
  assert.equal((await machine.exec(`kill -0 ${pid}`)).status, 0);
  assert.equal((await machine.exec(`kill ${pid}`)).status, 0);
});

test("a command that closes its output, or reads none of its input, ends as usual", limit, async () => {
  assert.equal((await machine.exec("exec >&- 2>&-; exit 3")).status, 3);
  assert.equal((await machine.exec("exit 4", { stdin: randomBytes(1_000_000) })).status, 4);
  const { stdout } = await machine.exec("head -c 3", { stdin: randomBytes(1_000_000).fill("abcdef") });
  assert.equal(text(stdout), "abc");
});

test("output beyond maxOutput ends a command; with handlers there is no such bound", limit, async () => {
  await assert.rejects(machine.exec("yes", { maxOutput: 100_000 }), { code: "ERR_VIRTKIT_EXEC_OUTPUT" });
  let seen = 0;
  const { status, stdout } = await machine.exec("head -c 400000 /dev/zero", {
    maxOutput: 10,
    onStdout: (bytes) => {
      seen += bytes.length;
    },
  });
  assert.deepEqual([status, stdout.length, seen], [0, 0, 400_000]);
});

test("a handler that throws ends the command with its error", limit, async () => {
  const fault = new Error("from the handler");
  await assert.rejects(machine.exec("yes", { onStdout: () => Promise.reject(fault) }), fault);
  assert.equal(await output("echo next"), "next\n");
});

test("standard input may come in pieces, late, and fail", limit, async () => {
  const { stdout } = await machine.exec("sha256sum; echo end", {
    stdin: (async function* () {
      for (const piece of ["a", "", "b", "c"]) yield Buffer.from(piece);
    })(),
  });
  assert.match(text(stdout), /^ba7816bf.*\nend\n$/);
  const fault = new Error("from the source");
  const failing = (async function* (): AsyncGenerator<Uint8Array> {
    yield Buffer.from("x");
    throw fault;
  })();
  await assert.rejects(machine.exec("cat", { stdin: failing }), fault);
  assert.equal(await output("echo next"), "next\n");
});

test("a long script is taken whole", limit, async () => {
  const script = `${Array.from({ length: 20_000 }, (_, line) => `x=$((x + ${line % 7}))`).join("\n")}\necho $x`;
  const expected = Array.from({ length: 20_000 }, (_, line) => line % 7).reduce((sum, value) => sum + value, 0);
  assert.equal(await output(script), `${expected}\n`);
});

test("the guest's clock is the host's, although its state was saved earlier", limit, async () => {
  const asked = Date.now();
  const seconds = Number(await output("date +%s"));
  assert(
    seconds * 1000 > asked - 3000 && seconds * 1000 < Date.now() + 3000,
    `${seconds} is not about ${asked / 1000}`,
  );
});

test("after a reboot commands run again; the one that was running fails", { timeout: 240_000 }, async () => {
  const id = await output("cat /proc/sys/kernel/random/boot_id; touch /tmp/mark");
  let resets = 0;
  const off = machine.on("reset", () => {
    resets++;
  });
  await assert.rejects(machine.exec("reboot -f; sleep 1000"), { code: "ERR_VIRTKIT_AGENT" });
  // Asked for while the kernel boots: it waits.
  assert.notEqual(await output("cat /proc/sys/kernel/random/boot_id"), id);
  off();
  assert.equal(resets, 1);
  assert.equal((await machine.exec("ls /tmp/mark")).status, 1);
  assert.equal(text((await machine.exec("cat", { stdin: "after" })).stdout), "after");
});

test("stop() ends the machine in order; then commands are refused", limit, async () => {
  const running = machine.exec("sleep 1000");
  running.catch(() => {});
  const [reason] = await Promise.all([machine.ended, machine.stop(), machine.stop()]);
  assert(reason === "poweroff" || reason === "stopped");
  await assert.rejects(running, { code: "ERR_VIRTKIT_AGENT" });
  await assert.rejects(machine.exec("true"), { code: "ERR_VIRTKIT_MACHINE_STATE" });
  await assert.rejects(machine.start(), { code: "ERR_VIRTKIT_MACHINE_STATE" });
});
