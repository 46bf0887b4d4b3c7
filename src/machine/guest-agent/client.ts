import type { CharBackend } from "../../backend/char/types.ts";
import { VirtkitError } from "../../common/error.ts";
import { buildCommand, type CommandOptions } from "./command.ts";
import { GatheredBytes } from "./gathered-bytes.ts";
import { MARK_START, MarkScanner } from "./mark-scanner.ts";
import { AGENT_PORT_NAMES, IncomingPort, OutgoingPort } from "./ports.ts";

/** Takes a command's output as it comes. A promise holds the guest back until it is settled. */
export type OutputHandler = (bytes: Uint8Array) => void | Promise<void>;

export interface ExecOptions extends CommandOptions {
  /** The command's standard input; without it the command reads from /dev/null. */
  readonly stdin?: string | Uint8Array | AsyncIterable<Uint8Array>;
  /** With it, `stdout` of the result is empty. The bytes are the handler's to keep. */
  readonly onStdout?: OutputHandler;
  readonly onStderr?: OutputHandler;
  /** Milliseconds from the command's start; then it is killed. Default: none. */
  readonly timeout?: number;
  /** Kills the command. */
  readonly signal?: AbortSignal;
  /** Most bytes of stdout and stderr together that are gathered for the result. Default 256 MiB. */
  readonly maxOutput?: number;
}

export interface ExecResult {
  /** 0..255; 128 and the signal's number when a signal ended it; 127 when there is no such command. */
  readonly status: number;
  readonly stdout: Uint8Array;
  readonly stderr: Uint8Array;
}

export interface GuestAgentOptions {
  /** Runs `act` after `ms` milliseconds; returns what cancels it. Default: setTimeout. */
  readonly schedule?: (ms: number, act: () => void) => () => void;
}

const DEFAULT_MAX_OUTPUT = 256 * 1024 * 1024;
/** How long the end of the output may be missing after the agent said that its relays have ended. */
const RELAY_GRACE_MS = 5000;
/** How long the agent has to become idle by itself once all output is here. */
const RELEASE_MS = 100;
const LINE_MAX = 4096;

const text = new TextEncoder();

const defaultSchedule = (ms: number, act: () => void): (() => void) => {
  const timer = setTimeout(act, ms);
  return () => clearTimeout(timer);
};

const makeMark = (): string => {
  const random = globalThis.crypto.getRandomValues(new Uint8Array(16));
  return String.fromCharCode(MARK_START) + Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("");
};

async function* once(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  yield bytes;
}

/** One command from its call to the agent's `idle`. */
class Job {
  readonly id: number;
  readonly mark = makeMark();
  readonly command: Uint8Array;
  readonly options: ExecOptions;
  readonly result: Promise<ExecResult>;
  readonly stdout = new GatheredBytes();
  readonly stderr = new GatheredBytes();
  status: number | undefined;
  isStarted = false;
  isKilled = false;
  isIdle = false;
  /** Handlers' promises not settled yet. */
  pending = 0;
  resolve: (result: ExecResult) => void = () => {};
  reject: (cause: unknown) => void = () => {};
  isSettled = false;
  readonly cleanups: (() => void)[] = [];

  constructor(id: number, command: Uint8Array, options: ExecOptions) {
    this.id = id;
    this.command = command;
    this.options = options;
    this.result = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
  }
}

/**
 * The host's half of the agent that runs commands in a prepared guest (docs/guest-agent.md). It is four back ends for
 * virtio console ports and needs nothing else; commands run one at a time, in the order of the calls.
 */
export class GuestAgentClient {
  readonly #control: OutgoingPort;
  readonly #stdin: OutgoingPort;
  readonly #stdout = new IncomingPort(AGENT_PORT_NAMES.stdout);
  readonly #stderr = new IncomingPort(AGENT_PORT_NAMES.stderr);
  readonly #schedule: NonNullable<GuestAgentOptions["schedule"]>;
  readonly #queue: Job[] = [];
  #active: Job | undefined;
  #scanners: readonly MarkScanner[] = [];
  #line = "";
  #isReady = false;
  #closed: VirtkitError | undefined;
  #nextId = 1;
  #whenReady: { act: () => void; fail: (cause: unknown) => void }[] = [];

  constructor(options: GuestAgentOptions = {}) {
    this.#schedule = options.schedule ?? defaultSchedule;
    this.#control = new OutgoingPort(
      AGENT_PORT_NAMES.control,
      (open) => {
        if (!open) this.#lost();
      },
      (bytes) => this.#receiveControl(bytes),
    );
    this.#control.setOpen(true);
    this.#stdin = new OutgoingPort(AGENT_PORT_NAMES.stdin, (open) => {
      if (open) return;
      this.#stdin.setOpen(false);
      this.#next();
    });
  }

  /** A back end for each port; its `name` is the port's. Attach all four to one console device. */
  get ports(): readonly CharBackend[] {
    return [this.#control, this.#stdin, this.#stdout, this.#stderr];
  }

  /** Whether the agent has said that it is there. */
  get isReady(): boolean {
    return this.#isReady;
  }

  /** Waits for the agent. @throws VirtkitError ERR_VIRTKIT_AGENT when it is not there after `timeout` milliseconds */
  ready(timeout: number): Promise<void> {
    if (this.#isReady) return Promise.resolve();
    if (this.#closed) return Promise.reject(this.#closed);
    return new Promise((resolve, reject) => {
      const cancel = this.#schedule(timeout, () =>
        waiter.fail(
          new VirtkitError(
            "ERR_VIRTKIT_AGENT",
            `the guest's agent did not answer within ${timeout} ms; commands need a guest of \`virtkit guest\`, or its agent in yours`,
          ),
        ),
      );
      const leave = (): void => {
        cancel();
        this.#whenReady = this.#whenReady.filter((other) => other !== waiter);
      };
      const waiter = {
        act: () => {
          leave();
          resolve();
        },
        fail: (cause: unknown) => {
          leave();
          reject(cause);
        },
      };
      this.#whenReady.push(waiter);
    });
  }

  /**
   * Runs a command: a line for the shell, or a program and its arguments. The result comes when the command has
   * ended and all that it wrote has arrived; what it left in the background runs on and its output is dropped.
   * @throws VirtkitError ERR_VIRTKIT_EXEC_COMMAND, ERR_VIRTKIT_EXEC_ENV, ERR_VIRTKIT_EXEC_TIMEOUT,
   *   ERR_VIRTKIT_EXEC_OUTPUT (too much, or cut off), ERR_VIRTKIT_ABORTED, ERR_VIRTKIT_AGENT (it went away)
   */
  async exec(command: string | readonly string[], options: ExecOptions = {}): Promise<ExecResult> {
    if (this.#closed) throw this.#closed;
    const job = new Job(this.#nextId++, buildCommand(command, options), options);
    const { signal } = options;
    const abort = (): void =>
      this.#kill(
        job,
        new VirtkitError("ERR_VIRTKIT_ABORTED", "the command was stopped by its signal", { cause: signal?.reason }),
      );
    signal?.addEventListener("abort", abort, { once: true });
    job.cleanups.push(() => signal?.removeEventListener("abort", abort));
    this.#queue.push(job);
    if (signal?.aborted) abort();
    this.#next();
    return job.result;
  }

  /**
   * Ends everything: commands that run or wait fail.
   * @param why what the machine's end was, for their error
   */
  close(why = "the machine was stopped", cause?: unknown): void {
    this.#closed ??= new VirtkitError("ERR_VIRTKIT_AGENT", why, cause === undefined ? undefined : { cause });
    this.#isReady = false;
    this.#failAll(this.#closed);
  }

  #next(): void {
    if (this.#active || !this.#isReady) return;
    const job = this.#queue[0];
    // The last command's reader of the standard input may be seen to close its port after the agent's `idle`.
    if (!job || (job.options.stdin !== undefined && this.#stdin.isGuestOpen)) return;
    this.#queue.shift();
    this.#active = job;
    const mark = text.encode(job.mark);
    const { onStdout, onStderr } = job.options;
    const out = new MarkScanner(mark, (bytes) => this.#output(job, this.#stdout, job.stdout, onStdout, bytes));
    const err = new MarkScanner(mark, (bytes) => this.#output(job, this.#stderr, job.stderr, onStderr, bytes));
    this.#scanners = [out, err];
    this.#stdout.receiver = (bytes) => this.#scan(job, out, bytes);
    this.#stderr.receiver = (bytes) => this.#scan(job, err, bytes);
    const { stdin } = job.options;
    if (stdin !== undefined) {
      this.#stdin.clear();
      this.#stdin.setOpen(true);
      this.#feed(job, typeof stdin === "string" ? text.encode(stdin) : stdin);
    }
    const mode = stdin === undefined ? "nostdin" : "stdin";
    this.#control.send(text.encode(`run ${job.id} ${job.mark} ${mode} ${job.command.length}\n`));
    this.#control.send(job.command);
  }

  /** Sends the standard input as the guest takes it, then closes the port, which the command sees as the end. */
  #feed(job: Job, source: Uint8Array | AsyncIterable<Uint8Array>): void {
    const chunks = (source instanceof Uint8Array ? once(source) : source)[Symbol.asyncIterator]();
    const port = this.#stdin;
    const isWanted = (): boolean => this.#active === job && job.status === undefined;
    const fail = (cause: unknown): void => this.#kill(job, cause);
    const pull = async (): Promise<void> => {
      const next = await chunks.next();
      if (!isWanted()) return;
      if (next.done) {
        port.onEmpty = () => {};
        port.setOpen(false);
      } else if (next.value.length === 0) await pull();
      else port.send(next.value);
    };
    // The pump calls back when all was taken; the line goes first and tells the guest that the port is connected.
    port.onEmpty = () => {
      if (isWanted()) pull().catch(fail);
    };
    job.cleanups.push(() => {
      port.onEmpty = () => {};
      chunks.return?.()?.catch(() => {});
    });
    port.send(text.encode("\n"));
  }

  #output(
    job: Job,
    port: IncomingPort,
    into: GatheredBytes,
    handler: OutputHandler | undefined,
    bytes: Uint8Array,
  ): void {
    if (job.isSettled) return;
    if (!handler) {
      const limit = job.options.maxOutput ?? DEFAULT_MAX_OUTPUT;
      if (job.stdout.length + job.stderr.length + bytes.length <= limit) into.add(bytes);
      else {
        const message = `the command wrote more than ${limit} bytes; raise maxOutput or take the output with onStdout and onStderr`;
        this.#kill(job, new VirtkitError("ERR_VIRTKIT_EXEC_OUTPUT", message));
      }
      return;
    }
    let wait: void | Promise<void>;
    try {
      wait = handler(bytes.slice());
    } catch (cause) {
      this.#kill(job, cause);
      return;
    }
    if (!(wait instanceof Promise)) return;
    port.pause();
    job.pending++;
    wait
      .catch((cause: unknown) => this.#kill(job, cause))
      .finally(() => {
        job.pending--;
        this.#settle(job);
        port.resume();
      });
  }

  #scan(job: Job, scanner: MarkScanner, bytes: Uint8Array): void {
    if (scanner.found) return;
    scanner.push(bytes);
    if (scanner.found) this.#settle(job);
  }

  /** Gives the result once the status and both marks are there; the agent may then drop what still holds the output. */
  #settle(job: Job): void {
    if (job !== this.#active || job.status === undefined || !this.#scanners.every((scanner) => scanner.found)) return;
    if (job.pending > 0) return;
    if (!job.isSettled || job.isKilled) this.#finish(job);
    if (job.isIdle) this.#free(job);
  }

  #finish(job: Job): void {
    // Rarely needed: only a process left in the background holds the output longer than this.
    if (!job.isIdle) {
      this.#schedule(RELEASE_MS, () => {
        if (this.#active === job && !job.isIdle) this.#control.send(text.encode(`done ${job.id}\n`));
      });
    }
    if (job.isSettled) return;
    this.#end(job);
    job.resolve({ status: job.status ?? 0, stdout: job.stdout.join(), stderr: job.stderr.join() });
  }

  #end(job: Job): void {
    job.isSettled = true;
    for (const cleanup of job.cleanups.splice(0)) cleanup();
  }

  #fail(job: Job, cause: unknown): void {
    if (job.isSettled) return;
    this.#end(job);
    job.reject(cause);
  }

  /** The agent can take the next command. */
  #free(job: Job): void {
    if (this.#active !== job) return;
    this.#active = undefined;
    this.#scanners = [];
    this.#stdout.receiver = undefined;
    this.#stderr.receiver = undefined;
    this.#next();
  }

  /** Fails the call now and has the guest end the command. */
  #kill(job: Job, cause: unknown): void {
    const waiting = this.#queue.indexOf(job);
    if (waiting >= 0) this.#queue.splice(waiting, 1);
    this.#fail(job, cause);
    if (this.#active !== job || job.isKilled) return;
    job.isKilled = true;
    this.#stdin.setOpen(false);
    if (job.isStarted && job.status === undefined) this.#control.send(text.encode(`kill ${job.id}\n`));
  }

  #receiveControl(bytes: Uint8Array): void {
    // The agent's lines are ASCII; anything else is not one of them.
    for (const byte of bytes) {
      if (byte !== 0x0a) {
        if (this.#line.length < LINE_MAX) this.#line += String.fromCharCode(byte);
        continue;
      }
      const line = this.#line;
      this.#line = "";
      this.#receiveLine(line);
    }
  }

  #receiveLine(line: string): void {
    const [verb, first, second] = line.split(" ");
    if (verb === "agent") {
      this.#greeted();
      return;
    }
    const job = this.#active;
    if (!job || Number(first) !== job.id) return;
    if (verb === "started") this.#started(job);
    else if (verb === "exit" && /^\d{1,3}$/.test(second ?? "") && job.status === undefined) {
      job.status = Number(second) & 0xff;
      this.#settle(job);
    } else if (verb === "idle") this.#idle(job);
  }

  #greeted(): void {
    if (this.#active) this.#lost();
    this.#isReady = true;
    for (const waiter of [...this.#whenReady]) waiter.act();
    this.#next();
  }

  #started(job: Job): void {
    job.isStarted = true;
    if (job.isKilled) this.#control.send(text.encode(`kill ${job.id}\n`));
    const { timeout } = job.options;
    if (timeout === undefined || job.isSettled) return;
    const cancel = this.#schedule(timeout, () =>
      this.#kill(
        job,
        new VirtkitError("ERR_VIRTKIT_EXEC_TIMEOUT", `the command was killed: it had not ended after ${timeout} ms`),
      ),
    );
    job.cleanups.push(cancel);
  }

  #idle(job: Job): void {
    job.isIdle = true;
    if (job.isKilled || this.#scanners.every((scanner) => scanner.found)) {
      if (job.pending === 0) this.#free(job);
      return;
    }
    // The streams travel apart from the control port: their last bytes may still be on the way.
    const cancel = this.#schedule(RELAY_GRACE_MS, () => {
      if (this.#active !== job) return;
      this.#fail(
        job,
        new VirtkitError(
          "ERR_VIRTKIT_EXEC_OUTPUT",
          "the end of the command's output is missing: were the agent's relays killed?",
        ),
      );
      this.#free(job);
    });
    job.cleanups.push(cancel);
  }

  /** The agent, or the whole guest, started anew: what ran is lost. */
  #lost(): void {
    this.#isReady = false;
    this.#line = "";
    this.#stdin.setOpen(false);
    const job = this.#active;
    if (!job) return;
    this.#fail(job, new VirtkitError("ERR_VIRTKIT_AGENT", "the guest's agent went away while the command ran"));
    this.#active = undefined;
    this.#scanners = [];
    this.#stdout.receiver = undefined;
    this.#stderr.receiver = undefined;
  }

  #failAll(cause: unknown): void {
    for (const waiter of [...this.#whenReady]) waiter.fail(cause);
    const active = this.#active;
    this.#active = undefined;
    if (active) this.#fail(active, cause);
    for (const job of this.#queue.splice(0)) this.#fail(job, cause);
  }
}
