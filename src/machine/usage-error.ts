import { VirtkitError } from "../common/error.ts";

export interface UsageErrorParts {
  /** The option as it was given, such as `-device virtio-rng-pci,addr=4`; what it is about, where there was no command line. */
  readonly option?: string;
  /** What to do instead: the nearest valid name, the valid values, a command. Full sentences. */
  readonly hint?: string | undefined;
  readonly cause?: unknown;
}

/**
 * A wrong option, or a wrong value of one. The message is `OPTION: REASON`, with the hint on a line of its own. The command
 * line exits with 2 for it.
 */
export class UsageError extends VirtkitError {
  readonly option: string | undefined;
  readonly reason: string;
  readonly hint: string | undefined;

  constructor(reason: string, parts: UsageErrorParts = {}) {
    const { option, hint } = parts;
    super(
      "ERR_VIRTKIT_USAGE",
      `${option === undefined ? "" : `${option}: `}${reason}${hint === undefined ? "" : `\n${hint}`}`,
      parts.cause === undefined ? undefined : { cause: parts.cause },
    );
    this.name = "UsageError";
    this.option = option;
    this.reason = reason;
    this.hint = hint;
  }

  /**
   * What went wrong, said of this option. An error that already names its option stays as it is; one of another kind with a
   * code of ours becomes the reason; a bug is passed on untouched.
   */
  static of(option: string, error: unknown): unknown {
    if (error instanceof UsageError)
      return error.option === undefined
        ? new UsageError(error.reason, { option, hint: error.hint, cause: error.cause })
        : error;
    if (error instanceof VirtkitError) return new UsageError(error.message, { option, cause: error });
    return error;
  }
}

/** Runs `work`; a wrong value that it finds is reported as one of `option`. */
export function blame<T>(option: string, work: () => T): T {
  try {
    return work();
  } catch (error) {
    throw UsageError.of(option, error);
  }
}

/** {@link blame} for work that takes time. */
export async function blameAsync<T>(option: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    throw UsageError.of(option, error);
  }
}
