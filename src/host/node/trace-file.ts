import { constants } from "node:fs";
import * as fs from "node:fs/promises";
import { dirname } from "node:path";
import type { Environment } from "../../common/environment.ts";
import { VirtkitError } from "../../common/error.ts";
import { traceLine } from "../../trace/json-lines.ts";
import type { TraceSink } from "../../trace/tracing.ts";
import type { TraceEvent } from "../../trace/types.ts";

/** Characters that are written in one go. */
const CHUNK = 64 * 1024;
/** Characters that may wait for a slow file; further events are lost, and counted. */
const MAX_WAITING = 64 * 1024 * 1024;
/** Milliseconds that an event waits at most until it is written. */
const DELAY = 200;
/** Milliseconds between two tries to write to a FIFO that is full, and how long its reader gets at the end. */
const RETRY = 10;
const LINGER = 1000;

/** What a trace file does with the rest of the host. */
export interface TraceFileOptions {
  readonly path: string;
  readonly environment: Environment;
  /** Characters that may wait; 64 Mi unless said. */
  readonly maxWaiting?: number;
}

/**
 * A trace file: a line an event, see docs/tracing.md. The thread never waits for it: lines are written behind its back, and when that
 * fails the first failure is logged and tracing ends, while the machine goes on.
 */
export class TraceFile implements TraceSink {
  readonly path: string;
  readonly #handle: fs.FileHandle;
  readonly #environment: Environment;
  readonly #maxWaiting: number;
  #waiting = "";
  #lost = 0;
  #writing: Promise<void> | undefined;
  #cancelTimer: (() => void) | undefined;
  #failed = false;
  #closing = false;

  private constructor(handle: fs.FileHandle, { path, environment, maxWaiting = MAX_WAITING }: TraceFileOptions) {
    this.path = path;
    this.#handle = handle;
    this.#environment = environment;
    this.#maxWaiting = maxWaiting;
  }

  /**
   * Makes the file, or empties it. A FIFO needs a reader already.
   * @throws ERR_VIRTKIT_TRACE_OPEN with the reason
   */
  static async open(options: TraceFileOptions): Promise<TraceFile> {
    const { path } = options;
    try {
      const fifo = (await fs.stat(path).catch(() => undefined))?.isFIFO() === true;
      const handle = await fs.open(path, fifo ? constants.O_WRONLY | constants.O_NONBLOCK : "w");
      return new TraceFile(handle, options);
    } catch (cause) {
      throw openError(path, cause);
    }
  }

  /**
   * Finds what would keep {@link open} from working, without making anything.
   * @throws ERR_VIRTKIT_TRACE_OPEN with the reason
   */
  static async check(path: string): Promise<void> {
    try {
      const found = await fs.stat(path).catch(() => undefined);
      if (found?.isDirectory() === true) throw Object.assign(new Error(), { code: "EISDIR" });
      await fs.access(found === undefined ? dirname(path) : path, constants.W_OK);
    } catch (cause) {
      throw openError(path, cause);
    }
  }

  record(time: number, device: string, event: TraceEvent): void {
    if (this.#failed || this.#closing) return;
    if (this.#waiting.length > this.#maxWaiting) {
      this.#lost++;
      return;
    }
    if (this.#lost > 0) this.#tellLoss(time);
    this.#waiting += traceLine(time, device, event);
    if (this.#waiting.length >= CHUNK) this.#write();
    else this.#cancelTimer ??= this.#environment.after(DELAY, () => this.#write());
  }

  /** Resolves when everything is in the file and the file is closed. */
  async close(): Promise<void> {
    if (this.#closing) return;
    if (this.#lost > 0) this.#tellLoss(undefined);
    this.#closing = true;
    this.#write();
    await this.#writing;
    await this.#handle.close().catch((error: unknown) => this.#fail(error));
  }

  #tellLoss(time: number | undefined): void {
    const at = time === undefined ? "" : `"time":${Math.round(time * 10) / 10},`;
    this.#waiting += `{${at}"kind":"lost","count":${this.#lost}}\n`;
    this.#environment.log.log(
      "warn",
      `${this.path}: ${this.#lost} events of the trace were lost, the file is too slow`,
    );
    this.#lost = 0;
  }

  #write(): void {
    this.#cancelTimer?.();
    this.#cancelTimer = undefined;
    this.#writing ??= this.#writeAll().finally(() => {
      this.#writing = undefined;
    });
  }

  async #writeAll(): Promise<void> {
    try {
      while (this.#waiting !== "" && !this.#failed) {
        const chunk = Buffer.from(this.#waiting);
        this.#waiting = "";
        await this.#writeChunk(chunk);
      }
    } catch (error) {
      this.#fail(error);
    }
  }

  async #writeChunk(chunk: Uint8Array): Promise<void> {
    let patience = LINGER / RETRY;
    for (let done = 0; done < chunk.length; ) {
      try {
        done += (await this.#handle.write(chunk, done)).bytesWritten;
        patience = LINGER / RETRY;
      } catch (error) {
        // A FIFO whose reader is busy.
        if ((error as NodeJS.ErrnoException).code !== "EAGAIN" || (this.#closing && patience-- <= 0)) throw error;
        await new Promise((resolve) => setTimeout(resolve, RETRY));
      }
    }
  }

  #fail(error: unknown): void {
    if (this.#failed) return;
    this.#failed = true;
    this.#waiting = "";
    const reason = reasonOf(error);
    this.#environment.log.log("warn", `${this.path}: ${reason}; the trace ends here, the guest goes on`);
  }
}

function openError(path: string, cause: unknown): VirtkitError {
  const message = `the trace cannot be written to '${path}': ${reasonOf(cause)}`;
  return new VirtkitError("ERR_VIRTKIT_TRACE_OPEN", message, { cause });
}

function reasonOf(cause: unknown): string {
  const error = cause as NodeJS.ErrnoException;
  if (error.code === "ENXIO") return "it is a FIFO that nobody reads; start the reader first";
  const known: Readonly<Record<string, string>> = {
    ENOENT: "no such directory",
    EISDIR: "it is a directory",
    EACCES: "permission denied",
    EROFS: "the file system is read-only",
    ENOSPC: "no space left on the device",
    EPIPE: "nobody reads it any more",
  };
  return known[error.code ?? ""] ?? (cause instanceof Error ? cause.message : String(cause));
}
