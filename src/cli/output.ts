import { constants } from "node:os";
import type { Writable } from "node:stream";
import { VirtkitError } from "../common/error.ts";

/** Where the command line writes. */
export interface CliOutput {
  out(text: string): void;
  err(text: string): void;
  /** Characters in a line of the help. */
  readonly columns: number;
}

/** What a program ends with whose reader is gone, as shells have it. */
export const EXIT_BROKEN_PIPE = 128 + constants.signals.SIGPIPE;

/** Standard output or error could not take what was to be written. */
export class OutputError extends VirtkitError {
  /** Nobody reads any more, which is nothing to complain about. */
  readonly isBrokenPipe: boolean;

  constructor(name: string, cause: NodeJS.ErrnoException) {
    super("ERR_VIRTKIT_OUTPUT", `${name} cannot be written: ${cause.message}`, { cause });
    this.isBrokenPipe = cause.code === "EPIPE";
  }
}

/** A stream of this process for a command's output. Node reports failures of such streams late, and apart from the write. */
export class ProcessOutput {
  readonly #stream: Writable;
  readonly #name: string;
  #failure: OutputError | undefined;

  constructor(stream: Writable, name: string) {
    this.#stream = stream;
    this.#name = name;
    stream.on("error", this.#onError);
  }

  /**
   * Resolves when the stream can take more, so that a slow reader holds the guest back.
   * @throws OutputError also for what was written earlier
   */
  write(bytes: Uint8Array): Promise<void> | undefined {
    if (this.#failure !== undefined) throw this.#failure;
    const stream = this.#stream;
    if (stream.write(bytes)) return undefined;
    return new Promise((resolve, reject) => {
      const done = (): void => {
        stream.off("drain", done).off("close", done).off("error", done);
        if (this.#failure === undefined) resolve();
        else reject(this.#failure);
      };
      stream.on("drain", done).on("close", done).on("error", done);
    });
  }

  /** Waits for the last write. @throws OutputError when it, or one before it, failed */
  async end(): Promise<void> {
    // Also called when the stream is destroyed.
    await new Promise<void>((resolve) => this.#stream.write("", () => resolve()));
    // The error follows the callback.
    await new Promise(setImmediate);
    this.#stream.off("error", this.#onError);
    if (this.#failure !== undefined) throw this.#failure;
  }

  readonly #onError = (error: NodeJS.ErrnoException): void => {
    this.#failure ??= new OutputError(this.#name, error);
  };
}
