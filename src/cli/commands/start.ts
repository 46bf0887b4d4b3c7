import { VirtkitError } from "../../common/error.ts";

export interface StartOptions {
  /** Directory of prepared guests; undefined for the usual one. */
  readonly cache: string | undefined;
  /** Image of the disk that keeps the files; undefined for the usual one. */
  readonly disk: string | undefined;
  readonly useSavedState: boolean;
}

/** `virtkit start`: a shell in the prepared guest. Returns the status to exit with. */
export async function startCommand(_options: StartOptions): Promise<number> {
  throw new VirtkitError("ERR_VIRTKIT_UNFINISHED", "virtkit start: machines cannot be run yet");
}
