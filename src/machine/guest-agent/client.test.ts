import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import type { CharBackend, CharSink } from "../../backend/char/types.ts";
import { GuestAgentClient } from "./client.ts";
import { buildCommand, quote } from "./command.ts";
import { MarkScanner } from "./mark-scanner.ts";
import { AGENT_PORT_NAMES } from "./ports.ts";

const limit = { timeout: 10_000 };
const utf8 = (bytes: Uint8Array): string => Buffer.from(bytes).toString();
const bytes = (value: string): Uint8Array => new TextEncoder().encode(value);

interface Run {
  readonly id: string;
  readonly mark: string;
  readonly mode: string;
  readonly command: string;
}

/** The guest's half by hand: tests say what it writes and when. */
class FakeGuest {
  readonly client: GuestAgentClient;
  readonly runs: Run[] = [];
  readonly lines: string[] = [];
  readonly timers: (() => void)[] = [];
  readonly stdin: Uint8Array[] = [];
  stdinHostOpen = false;
  /** How many bytes of standard input are taken before the guest is full. */
  stdinRoom = Number.POSITIVE_INFINITY;
  readonly #ports = new Map<string, CharBackend>();
  #buffer: Uint8Array = new Uint8Array(0);
  #waiters: (() => void)[] = [];

  constructor() {
    this.client = new GuestAgentClient({
      schedule: (_ms, act) => {
        this.timers.push(act);
        return () => {
          const at = this.timers.indexOf(act);
          if (at >= 0) this.timers.splice(at, 1);
        };
      },
    });
    for (const port of this.client.ports) {
      this.#ports.set(port.name, port);
      port.attach(this.#sink(port.name));
    }
  }

  #sink(name: string): CharSink {
    return {
      receive: (data) => {
        if (name === AGENT_PORT_NAMES.control) return this.#command(data);
        const taken = data.slice(0, this.stdinRoom);
        this.stdinRoom -= taken.length;
        this.stdin.push(taken);
        return taken.length;
      },
      setOpen: (open) => {
        if (name === AGENT_PORT_NAMES.stdin) this.stdinHostOpen = open;
      },
      writable: () => {},
    };
  }

  #command(data: Uint8Array): number {
    this.#buffer = Buffer.concat([this.#buffer, data]);
    for (;;) {
      const end = this.#buffer.indexOf(10);
      if (end < 0) break;
      const line = utf8(this.#buffer.subarray(0, end));
      const [verb, id, mark, mode, size] = line.split(" ");
      const length = verb === "run" ? Number(size) : 0;
      if (this.#buffer.length < end + 1 + length) break;
      const command = utf8(this.#buffer.subarray(end + 1, end + 1 + length));
      this.#buffer = this.#buffer.subarray(end + 1 + length);
      if (verb === "run") this.runs.push({ id, mark, mode, command });
      else this.lines.push(line);
    }
    for (const waiter of this.#waiters.splice(0)) waiter();
    return data.length;
  }

  port(name: keyof typeof AGENT_PORT_NAMES): CharBackend {
    const port = this.#ports.get(AGENT_PORT_NAMES[name]);
    assert(port);
    return port;
  }

  say(name: keyof typeof AGENT_PORT_NAMES, data: string | Uint8Array): number {
    return this.port(name).write(typeof data === "string" ? bytes(data) : data);
  }

  start(): void {
    this.port("control").guestOpen(true);
    this.say("control", "agent 1\n");
  }

  /** The run after `count` others. */
  async run(count = 0): Promise<Run> {
    while (this.runs.length <= count) await new Promise<void>((done) => this.#waiters.push(done));
    const run = this.runs[count];
    this.say("control", `started ${run.id}\n`);
    return run;
  }

  end(run: Run, status: number): void {
    this.say("stdout", run.mark);
    this.say("stderr", run.mark);
    this.say("control", `exit ${run.id} ${status}\nidle ${run.id}\n`);
  }
}

test("a command's status, stdout and stderr come back apart and byte for byte", limit, async () => {
  const guest = new FakeGuest();
  const result = guest.client.exec("some command");
  guest.start();
  const run = await guest.run();
  assert.equal(run.command, "some command\n");
  assert.equal(run.mode, "nostdin");
  guest.say("stdout", Uint8Array.of(0, 1, 2, 0xff));
  guest.say("stderr", "oh");
  guest.end(run, 37);
  assert.deepEqual(await result, { status: 37, stdout: Uint8Array.of(0, 1, 2, 0xff), stderr: bytes("oh") });
});

test(
  "the result waits for the marks even when the status comes first, and for the status otherwise",
  limit,
  async () => {
    const guest = new FakeGuest();
    guest.start();
    let isDone = false;
    const result = guest.client.exec("x").finally(() => {
      isDone = true;
    });
    const run = await guest.run();
    guest.say("control", `exit ${run.id} 0\n`);
    guest.say("stdout", `late${run.mark}`);
    await new Promise(setImmediate);
    assert.equal(isDone, false);
    guest.say("stderr", run.mark);
    assert.equal(utf8((await result).stdout), "late");
  },
);

test(
  "output of a process left in the background is dropped, and `done` frees the agent for the next command",
  limit,
  async () => {
    const guest = new FakeGuest();
    guest.start();
    const first = guest.client.exec("sleep 9 &");
    const second = guest.client.exec("next");
    const run = await guest.run();
    guest.say("stdout", `mine${run.mark}not mine`);
    guest.say("stderr", run.mark);
    guest.say("control", `exit ${run.id} 0\n`);
    assert.equal(utf8((await first).stdout), "mine");
    for (const timer of [...guest.timers]) timer();
    assert.deepEqual(guest.lines, [`done ${run.id}`]);
    guest.say("stdout", "more that is not mine");
    assert.equal(guest.runs.length, 1, "the next command waits for idle");
    guest.say("control", `idle ${run.id}\n`);
    const next = await guest.run(1);
    guest.end(next, 0);
    assert.equal((await second).stdout.length, 0);
  },
);

test("standard input is fed as the guest takes it, after a first line, and closed at its end", limit, async () => {
  const guest = new FakeGuest();
  guest.start();
  guest.stdinRoom = 4;
  const result = guest.client.exec("cat", { stdin: "hello" });
  const run = await guest.run();
  assert.equal(run.mode, "stdin");
  assert.equal(guest.stdinHostOpen, true);
  assert.equal(guest.stdin.length, 0, "nothing before the guest opened the port");
  guest.port("stdin").guestOpen(true);
  await new Promise(setImmediate);
  guest.stdinRoom = 100;
  guest.port("stdin").drained();
  await new Promise(setImmediate);
  assert.equal(utf8(Buffer.concat(guest.stdin)), "\nhello");
  assert.equal(guest.stdinHostOpen, false);
  guest.port("stdin").guestOpen(false);
  guest.end(run, 0);
  await result;
});

test("a command with input waits until the last reader of the port is gone", limit, async () => {
  const guest = new FakeGuest();
  guest.start();
  const first = guest.client.exec("true", { stdin: "unread" });
  const run = await guest.run();
  guest.port("stdin").guestOpen(true);
  guest.end(run, 0);
  await first;
  const second = guest.client.exec("cat", { stdin: "x" });
  await new Promise(setImmediate);
  assert.equal(guest.runs.length, 1);
  guest.port("stdin").guestOpen(false);
  const next = await guest.run(1);
  assert.equal(guest.stdinHostOpen, true);
  guest.end(next, 0);
  await second;
});

test("a time-out kills the command, fails the call at once and lets the next one run", limit, async () => {
  const guest = new FakeGuest();
  guest.start();
  const result = guest.client.exec("sleep 100", { timeout: 5 });
  const run = await guest.run();
  guest.timers[0]();
  await assert.rejects(result, { code: "ERR_VIRTKIT_EXEC_TIMEOUT" });
  assert.deepEqual(guest.lines, [`kill ${run.id}`]);
  guest.end(run, 137);
  const next = guest.client.exec("next");
  guest.end(await guest.run(1), 0);
  assert.equal((await next).status, 0);
});

test("an aborted command is killed once it has started, one that waits is never sent", limit, async () => {
  const guest = new FakeGuest();
  guest.start();
  const running = new AbortController();
  const waiting = new AbortController();
  const first = guest.client.exec("one", { signal: running.signal });
  const second = guest.client.exec("two", { signal: waiting.signal });
  running.abort();
  waiting.abort();
  await assert.rejects(first, { code: "ERR_VIRTKIT_ABORTED" });
  await assert.rejects(second, { code: "ERR_VIRTKIT_ABORTED" });
  assert.deepEqual(guest.lines, [], "a kill before the start would find no process");
  const run = await guest.run();
  assert.deepEqual(guest.lines, [`kill ${run.id}`]);
  guest.end(run, 137);
  assert.equal(guest.runs.length, 1);
});

test("a handler's promise holds the guest's output back", limit, async () => {
  const guest = new FakeGuest();
  guest.start();
  let release = (): void => {};
  const seen: string[] = [];
  const onStdout = (data: Uint8Array): Promise<void> => {
    seen.push(utf8(data));
    return new Promise((done) => {
      release = done;
    });
  };
  const result = guest.client.exec("x", { onStdout });
  const run = await guest.run();
  assert.equal(guest.say("stdout", "a"), 1);
  assert.equal(guest.say("stdout", "b"), 0, "the guest has to wait");
  release();
  await new Promise(setImmediate);
  assert.equal(guest.say("stdout", `b${run.mark}`), 1 + run.mark.length);
  guest.say("stderr", run.mark);
  guest.say("control", `exit ${run.id} 0\nidle ${run.id}\n`);
  release();
  await result;
  assert.deepEqual(seen, ["a", "b"]);
});

test("more output than maxOutput kills the command and says so", limit, async () => {
  const guest = new FakeGuest();
  guest.start();
  const result = guest.client.exec("yes", { maxOutput: 3 });
  const run = await guest.run();
  guest.say("stdout", "1234");
  await assert.rejects(result, { code: "ERR_VIRTKIT_EXEC_OUTPUT" });
  assert.deepEqual(guest.lines, [`kill ${run.id}`]);
});

test("an agent that goes away fails what ran, and what waits runs when it is back", limit, async () => {
  const guest = new FakeGuest();
  guest.start();
  const first = guest.client.exec("one");
  const second = guest.client.exec("two");
  await guest.run();
  guest.port("control").guestOpen(false);
  await assert.rejects(first, { code: "ERR_VIRTKIT_AGENT" });
  assert.equal(guest.client.isReady, false);
  guest.start();
  guest.end(await guest.run(1), 5);
  assert.equal((await second).status, 5);
});

test("output cut off by the loss of the relays is an error, not a short result", limit, async () => {
  const guest = new FakeGuest();
  guest.start();
  const result = guest.client.exec("killall dd");
  const run = await guest.run();
  guest.say("stdout", "part");
  guest.say("control", `exit ${run.id} 0\nidle ${run.id}\n`);
  for (const timer of [...guest.timers]) timer();
  await assert.rejects(result, { code: "ERR_VIRTKIT_EXEC_OUTPUT" });
});

test("ready() fails with the way out when no agent answers; close() fails all", limit, async () => {
  const guest = new FakeGuest();
  const ready = guest.client.ready(10);
  guest.timers[0]();
  await assert.rejects(ready, { code: "ERR_VIRTKIT_AGENT" });
  const result = guest.client.exec("x");
  guest.client.close();
  await assert.rejects(result, { code: "ERR_VIRTKIT_AGENT" });
  await assert.rejects(guest.client.exec("y"), { code: "ERR_VIRTKIT_AGENT" });
});

test("nonsense on the control port is ignored", limit, async () => {
  const guest = new FakeGuest();
  guest.say("control", "exit 1 0\n");
  guest.start();
  const result = guest.client.exec("x");
  const run = await guest.run();
  guest.say("control", Buffer.alloc(1_000_000, 0x41));
  guest.say("control", `\nexit\nexit ${run.id} abc\nexit 99 1\nidle 99\n\n`);
  guest.end(run, 2);
  assert.equal((await result).status, 2);
});

test("the scanner gives exactly what is ahead of the mark, however the stream is cut", limit, () => {
  const mark = Uint8Array.of(1, 5, 6, 5);
  const content = fc.array(fc.constantFrom(1, 5, 6, 7), { maxLength: 30 });
  fc.assert(
    fc.property(content, content, fc.array(fc.integer({ min: 1, max: 7 }), { minLength: 1 }), (before, after, cuts) => {
      const stream = Uint8Array.from([...before, ...mark, ...after]);
      const expected = Buffer.from(stream).subarray(0, Buffer.from(stream).indexOf(Buffer.from(mark)));
      const got: number[] = [];
      const scanner = new MarkScanner(mark, (data) => got.push(...data));
      for (let at = 0, turn = 0; at < stream.length; turn++) {
        const size = cuts[turn % cuts.length];
        scanner.push(stream.subarray(at, at + size));
        at += size;
      }
      assert.equal(scanner.found, true);
      assert.deepEqual(Buffer.from(got), expected);
    }),
  );
});

test("commands are quoted for the shell, and what no shell can take is refused", limit, () => {
  assert.equal(quote("it's"), "'it'\\''s'");
  assert.equal(
    utf8(buildCommand(["ls", "a b"], { cwd: "-x", env: { A: "1" } })),
    "export A='1'\ncd './-x' || exit 126\nexec 'ls' 'a b'\n",
  );
  assert.throws(() => buildCommand("x", { env: { "A-B": "1" } }), { code: "ERR_VIRTKIT_EXEC_ENV" });
  assert.throws(() => buildCommand([], {}), { code: "ERR_VIRTKIT_EXEC_COMMAND" });
  assert.throws(() => buildCommand("a\0b", {}), { code: "ERR_VIRTKIT_EXEC_COMMAND" });
});
