import type { Environment } from "../common/environment.ts";
import { VirtkitError } from "../common/error.ts";

/** How long a driver waits for a device that resets, in milliseconds. */
export const RESET_TIMEOUT = 30_000;

/**
 * Looks at `condition` once a turn of the event loop until it holds.
 * @throws ERR_VIRTKIT_TIMEOUT after `timeout` milliseconds
 */
export async function waitUntil(
  environment: Environment,
  condition: () => boolean,
  what: string,
  timeout = RESET_TIMEOUT,
): Promise<void> {
  const end = environment.now() + timeout;
  while (!condition()) {
    if (environment.now() > end) throw new VirtkitError("ERR_VIRTKIT_TIMEOUT", `${what} took over ${timeout} ms`);
    await new Promise<void>((resolve) => environment.defer(resolve));
  }
}
