import { type ChildProcess, spawn } from "node:child_process";
import { createRequire } from "node:module";
import { after } from "node:test";
import { fileURLToPath, pathToFileURL } from "node:url";

const LOADER = pathToFileURL(createRequire(import.meta.url).resolve("tsx")).href;
const MAIN = fileURLToPath(new URL("../cli/main.ts", import.meta.url));

/** The command line program, run from its sources. Append its own arguments. */
export const PROGRAM: readonly string[] = [process.execPath, "--import", LOADER, MAIN];

export interface ProgramResult {
  /** Undefined after a signal's default action. */
  readonly status: number | undefined;
  readonly signal: NodeJS.Signals | undefined;
  readonly stdout: Buffer;
  readonly stderr: string;
  /** From start to end. */
  readonly milliseconds: number;
}

export interface ProgramOptions {
  readonly cwd?: string;
  readonly env?: Readonly<Record<string, string>>;
  /** All of standard input; nothing: /dev/null; "open": a pipe that the test writes to. */
  readonly input?: string | Uint8Array | "open";
}

const running = new Set<RunningProgram>();

// A test that failed or ran out of time leaves its program behind, which would keep the test's process alive.
after(() => {
  for (const program of running) program.kill("SIGKILL");
});

/** A program that runs, what it has written so far, and what it is like at its end. */
export class RunningProgram {
  readonly ended: Promise<ProgramResult>;
  readonly #child: ChildProcess;
  readonly #stdout: Buffer[] = [];
  readonly #stderr: Buffer[] = [];
  readonly #watchers = new Set<() => void>();
  #isOver = false;

  constructor(words: readonly string[], options: ProgramOptions) {
    const started = performance.now();
    const { input } = options;
    const [file = "", ...args] = words;
    const child = spawn(file, args, {
      cwd: options.cwd,
      env: { ...process.env, NODE_OPTIONS: "", NODE_TEST_CONTEXT: "", ...options.env },
      stdio: [input === undefined ? "ignore" : "pipe", "pipe", "pipe"],
    });
    this.#child = child;
    running.add(this);
    child.stdout?.on("data", (bytes: Buffer) => this.#heard(this.#stdout, bytes));
    child.stderr?.on("data", (bytes: Buffer) => this.#heard(this.#stderr, bytes));
    // A program that ends early does not read its input; the test sees that by its result.
    child.stdin?.on("error", () => {});
    if (input !== undefined && input !== "open") child.stdin?.end(input);
    this.ended = new Promise((resolve, reject) => {
      child.on("error", reject);
      child.on("close", (status, signal) => {
        this.#isOver = true;
        running.delete(this);
        for (const watcher of this.#watchers) watcher();
        resolve({
          status: status ?? undefined,
          signal: signal ?? undefined,
          stdout: Buffer.concat(this.#stdout),
          stderr: this.stderr,
          milliseconds: performance.now() - started,
        });
      });
    });
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  get stdout(): string {
    return Buffer.concat(this.#stdout).toString("latin1");
  }

  get stderr(): string {
    return Buffer.concat(this.#stderr).toString();
  }

  write(text: string): void {
    this.#child.stdin?.write(text);
  }

  endInput(): void {
    this.#child.stdin?.end();
  }

  /** As when a reader of a pipe ends. */
  closeOutput(): void {
    this.#child.stdout?.destroy();
  }

  kill(signal: NodeJS.Signals): void {
    this.#child.kill(signal);
  }

  /** Waits until what was written to standard output matches; fails when the program ends before. */
  async sees(pattern: RegExp, from = 0): Promise<void> {
    await this.#until(() => pattern.test(this.stdout.slice(from)), `output that matches ${pattern}`);
  }

  /** The same for standard error. */
  async complains(pattern: RegExp): Promise<void> {
    await this.#until(() => pattern.test(this.stderr), `a message that matches ${pattern}`);
  }

  #heard(into: Buffer[], bytes: Buffer): void {
    into.push(bytes);
    for (const watcher of this.#watchers) watcher();
  }

  #until(isThere: () => boolean, what: string): Promise<void> {
    return new Promise((resolve, reject) => {
      const look = (): void => {
        if (!isThere() && !this.#isOver) return;
        this.#watchers.delete(look);
        if (isThere()) resolve();
        else reject(new Error(`the program ended without ${what}.\nstdout: ${this.stdout}\nstderr: ${this.stderr}`));
      };
      this.#watchers.add(look);
      look();
    });
  }
}

/** Starts any program. The test ends it. */
export const startProgram = (words: readonly string[], options: ProgramOptions = {}): RunningProgram =>
  new RunningProgram(words, options);

/** Starts `virtkit ARGS`. */
export const startVirtkit = (args: readonly string[], options: ProgramOptions = {}): RunningProgram =>
  startProgram([...PROGRAM, ...args], options);

/** Runs `virtkit ARGS` to its end. */
export const virtkit = (args: readonly string[], options: ProgramOptions = {}): Promise<ProgramResult> =>
  startVirtkit(args, options).ended;

/** Runs `virtkit run --exec COMMAND ARGS` to its end. */
export const execInGuest = (
  command: string,
  args: readonly string[] = [],
  options: ProgramOptions = {},
): Promise<ProgramResult> => virtkit(["run", "--exec", command, ...args], options);
