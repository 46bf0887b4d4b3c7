import { VirtkitError } from "../../common/error.ts";
import { checkDescription } from "../../machine/machine-builder.ts";
import { createTypeRegistry } from "../../machine/types.ts";
import type { RunOptions } from "../options/run-options.ts";

/** `virtkit run`: runs the machine until it ends. Returns the status to exit with. */
export async function runCommand(options: RunOptions): Promise<number> {
  checkDescription(options.machine, createTypeRegistry());
  throw new VirtkitError(
    "ERR_VIRTKIT_UNFINISHED",
    "virtkit run: the options are right, but machines cannot be run yet",
  );
}
