import { spawn } from "node:child_process";
import { VirtkitError } from "../../../common/error.ts";

export interface RunOptions {
  readonly env?: Readonly<Record<string, string>>;
  readonly cwd?: string;
  /** Bytes for the child's standard input; it is closed after them. */
  readonly input?: Uint8Array;
  readonly signal?: AbortSignal | undefined;
  /** Called with each line the child writes to descriptor 3 (APT's Status-Fd). */
  readonly onStatusLine?: (line: string) => void;
}

export interface RunResult {
  readonly code: number;
  readonly stdout: Uint8Array;
  readonly stderr: string;
}

/** Thrown work that an AbortSignal ended; `cause` is the signal's reason. */
export const abortError = (signal: AbortSignal): VirtkitError =>
  new VirtkitError("ERR_VIRTKIT_ABORTED", "preparing the guest was stopped; run it again to go on", {
    cause: signal.reason,
  });

const killGroup = (pid: number | undefined): void => {
  if (pid === undefined) return;
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // the group is gone already
  }
};

const eachLine = (onLine: (line: string) => void): ((chunk: Buffer) => void) => {
  let rest = "";
  return (chunk) => {
    const lines = (rest + chunk.toString("utf8")).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) onLine(line);
  };
};

/**
 * Runs a tool and gathers its output. The child leads its own process group, so that its helpers (APT's download
 * methods) end with it when `signal` fires or this process exits. A status other than 0 is returned, not thrown.
 * @throws VirtkitError ERR_VIRTKIT_TOOL_MISSING when there is no such tool, ERR_VIRTKIT_ABORTED when stopped
 */
export const run = (tool: string, args: readonly string[], options: RunOptions = {}): Promise<RunResult> =>
  new Promise((resolve, reject) => {
    const { signal } = options;
    if (signal?.aborted) {
      reject(abortError(signal));
      return;
    }
    const child = spawn(tool, args, {
      detached: true,
      stdio: ["pipe", "pipe", "pipe", "pipe"],
      env: { ...process.env, LC_ALL: "C.UTF-8", ...options.env },
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    });
    const kill = (): void => killGroup(child.pid);
    signal?.addEventListener("abort", kill, { once: true });
    process.once("exit", kill);

    const out: Buffer[] = [];
    const err: Buffer[] = [];
    const status = child.stdio[3];
    child.stdout?.on("data", (chunk: Buffer) => out.push(chunk));
    child.stderr?.on("data", (chunk: Buffer) => err.push(chunk));
    status?.on("data", eachLine(options.onStatusLine ?? (() => {})));
    // A tool that ends before it has read its input is judged by its status, not by EPIPE.
    child.stdin?.on("error", () => {});
    child.stdin?.end(options.input ?? "");

    const finish = (act: () => void): void => {
      signal?.removeEventListener("abort", kill);
      process.removeListener("exit", kill);
      act();
    };
    child.once("error", (cause: NodeJS.ErrnoException) =>
      finish(() => {
        if (signal?.aborted) reject(abortError(signal));
        else if (cause.code === "ENOENT")
          reject(new VirtkitError("ERR_VIRTKIT_TOOL_MISSING", `${tool} is not installed`, { cause }));
        else reject(cause);
      }),
    );
    child.once("close", (code, killedBy) =>
      finish(() => {
        if (signal?.aborted) reject(abortError(signal));
        else
          resolve({
            code: code ?? 128,
            stdout: Buffer.concat(out),
            stderr: Buffer.concat(err).toString() + (killedBy ? `\nended by ${killedBy}` : ""),
          });
      }),
    );
  });
