import assert from "node:assert/strict";
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import {
  cacheWithoutStates,
  checkExt4,
  filesIn,
  hostTool,
  scratchFolder,
  sparseImage,
} from "../testing/guest-files.ts";
import {
  execInGuest,
  PROGRAM,
  type ProgramResult,
  type RunningProgram,
  startProgram,
  startVirtkit,
} from "../testing/guest-program.ts";

const limit = { timeout: 120_000 };
const MiB = 2 ** 20;
const PROMPT = /root@virtkit:~# /;
/** What a shell in the guest answers when it is there: the typed words themselves do not match. */
const ask = async (run: RunningProgram, command: string, answer: RegExp): Promise<void> => {
  const from = run.stdout.length;
  run.write(`${command}\r`);
  await run.sees(answer, from);
};

/** A shell on a terminal of its own, through script(1), which reports the child's status and whether the terminal is as before. */
const onTerminal = (args: readonly string[], cwd: string): RunningProgram => {
  const words = [...PROGRAM, ...args].map((word) => `'${word}'`).join(" ");
  const command = `before=$(stty -g); ${words}; echo "status $?"; [ "$before" = "$(stty -g)" ] && echo restored`;
  return startProgram(["script", "-qfec", command, "/dev/null"], { cwd, input: "open" });
};

test("poweroff in the shell ends the program with 0; what the guest wrote is on the disk", limit, async (t) => {
  const folder = scratchFolder(t);
  const disk = join(folder, "disk.img");
  const run = onTerminal(["start", "--disk", disk], folder);
  await run.sees(PROMPT);
  await ask(run, "echo kept >file; tty; df . | tail -1", /\/dev\/hvc0\r*\n\/dev\/vda /);
  run.write("poweroff\r");
  await run.sees(/status 0\r*\nrestored\r*\n/);
  run.endInput();
  await run.ended;
  checkExt4(disk);
  const again = startVirtkit(["start", "--disk", disk], { input: "open" });
  await again.sees(PROMPT);
  await ask(again, "cat file; rm file", /\nkept\r*\n/);
  // On a pipe the escape works too.
  again.write("\x01x");
  const { status } = await again.ended;
  assert.equal(status, 0);
  checkExt4(disk);
});

test("Ctrl-A X and the end of the shell quit, and restore the terminal", limit, async (t) => {
  const folder = scratchFolder(t);
  for (const keys of ["\x01x", "\x01X", "exit\r", "\x04"]) {
    const run = onTerminal(["start", "--disk", join(folder, "disk.img")], folder);
    await run.sees(PROMPT);
    // Ctrl-C is the guest's: it ends what runs there, not the program. The child says itself that it has the terminal: while
    // the shell still forks, it takes a Ctrl-C for its own and acts on it when the child ends.
    await ask(run, "sh -c 'echo sleep$((1))ing; exec sleep 1000'", /sleep1ing/);
    const from = run.stdout.length;
    run.write("\x03");
    await run.sees(PROMPT, from);
    await ask(run, "echo $((40 + 2))", /\n42\r*\n/);
    run.write(keys);
    await run.sees(/status 0\r*\nrestored\r*\n/);
    run.endInput();
    await run.ended;
    checkExt4(join(folder, "disk.img"));
  }
});

test("-no-reboot ends the machine when the guest reboots, without it the guest is there again", {
  timeout: 240_000,
}, async () => {
  const once = startVirtkit(["run", "-no-reboot"], { input: "open" });
  await once.sees(PROMPT);
  once.write("reboot -f\r");
  assert.equal((await once.ended).status, 0);
  const twice = startVirtkit(["run"], { input: "open" });
  await twice.sees(PROMPT);
  const from = twice.stdout.length;
  twice.write("reboot -f\r");
  await twice.sees(PROMPT, from);
  await ask(twice, "echo $((40 + 2))", /\n42\r*\n/);
  twice.write("poweroff -f\r");
  assert.equal((await twice.ended).status, 0);
});

const CHILD_LIMIT = 20_000;

/** The program ended by the signal's status, soon, with nothing of it left. */
const endedBy = (result: ProgramResult, status: number, asked: number): void => {
  assert.equal(result.status, status, result.stderr);
  assert.doesNotMatch(result.stderr, /internal error|\n {4}at /);
  assert(performance.now() - asked < CHILD_LIMIT, "it ends soon");
};

const childrenOf = (pid: number): string[] =>
  readdirSync("/proc").filter((name) => {
    if (!/^\d+$/.test(name)) return false;
    try {
      return readFileSync(`/proc/${name}/environ`, "latin1").includes(`VIRTKIT_TEST_PARENT=${pid}`);
    } catch {
      return false;
    }
  });

test("a signal at any moment ends the program with 128 and its number, in order", { timeout: 300_000 }, async (t) => {
  const folder = scratchFolder(t);
  const image = sparseImage(folder, "disk.img", 32 * MiB);
  hostTool("mke2fs", "-q", "-F", "-t", "ext4", image);
  const args = ["-drive", `file=${image},format=raw,if=virtio`];
  const busy = "mount /dev/vda /mnt; echo mounted; while :; do head -c 50000 /dev/urandom >>/mnt/f; done";
  const sigint = 130;
  const sigterm = 143;
  const mark = `${process.pid}`;
  const env = { VIRTKIT_TEST_PARENT: mark };

  await t.test("while a restored guest comes up, at every stage", { timeout: 120_000 }, async () => {
    const whole = await execInGuest("true", args);
    assert.equal(whole.status, 0);
    for (let part = 0.35; part < 1; part += 0.13) {
      const run = startVirtkit(["run", "--exec", "sleep 1000", ...args], { env });
      // Not to wait for something, but to be at an arbitrary point of the start.
      await new Promise((resolve) => setTimeout(resolve, whole.milliseconds * part));
      const asked = performance.now();
      run.kill("SIGINT");
      const result = await run.ended;
      // Before the program has its handler, Node's own way applies.
      if (result.signal === undefined) endedBy(result, sigint, asked);
      else assert.equal(result.signal, "SIGINT");
      assert.equal(result.stdout.length, 0);
    }
    checkExt4(image);
  });

  await t.test("while a command writes: its disk is unmounted first", limit, async () => {
    for (const [signal, status] of [
      ["SIGINT", sigint],
      ["SIGTERM", sigterm],
      ["SIGHUP", 129],
    ] as const) {
      const run = startVirtkit(["run", "--exec", busy, ...args], { env });
      await run.sees(/mounted/);
      const asked = performance.now();
      run.kill(signal);
      endedBy(await run.ended, status, asked);
      checkExt4(image);
    }
  });

  await t.test("twice: the power is cut, and the journal has what is needed", limit, async () => {
    const run = startVirtkit(["run", "--exec", busy, ...args], { env });
    await run.sees(/mounted/);
    const asked = performance.now();
    run.kill("SIGINT");
    run.kill("SIGTERM");
    const { status } = await run.ended;
    assert(status === sigint || status === sigterm, `${status}`);
    assert(performance.now() - asked < CHILD_LIMIT);
    hostTool("e2fsck", "-p", "-E", "journal_only", image);
    checkExt4(image);
  });

  await t.test("in the shell", limit, async () => {
    const run = startVirtkit(["start", "--disk", image], { env, input: "open" });
    await run.sees(PROMPT);
    const asked = performance.now();
    run.kill("SIGTERM");
    endedBy(await run.ended, sigterm, asked);
    checkExt4(image);
  });

  await t.test("while the kernel boots: no part of a saved state stays", limit, async () => {
    const cache = await cacheWithoutStates(folder);
    const before = filesIn(cache);
    const run = startVirtkit(["run", "--cache", cache, "--exec", "true", ...args], { env });
    await new Promise((resolve) => setTimeout(resolve, 3000));
    const asked = performance.now();
    run.kill("SIGINT");
    endedBy(await run.ended, sigint, asked);
    assert.deepEqual(filesIn(cache), before);
    rmSync(cache, { recursive: true });
  });

  await t.test("while a guest is prepared: nothing half-made stays, no tool runs on", limit, async () => {
    for (const delay of [500, 1500, 3000]) {
      const cache = join(folder, `fresh ${delay}`);
      const run = startVirtkit(["run", "--cache", cache, "--exec", "sleep 1000"], { env });
      await new Promise((resolve) => setTimeout(resolve, delay));
      const asked = performance.now();
      run.kill("SIGTERM");
      const result = await run.ended;
      if (result.signal === undefined) endedBy(result, sigterm, asked);
      const left = existsSync(cache) ? filesIn(cache).filter((name) => /(^|\/)\.|tmp|part/i.test(name)) : [];
      assert.deepEqual(left, []);
      rmSync(cache, { recursive: true, force: true });
    }
    assert.deepEqual(childrenOf(process.pid), []);
  });
});
