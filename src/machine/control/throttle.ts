import type { Environment } from "../../common/environment.ts";

/** Milliseconds between two events of a kind that comes in bursts, as QEMU has it. */
export const EVENT_PERIOD = 1000;

/**
 * Passes the first value on at once, and then at most one a {@link EVENT_PERIOD}: the latest. The last value of a burst always arrives.
 * Returns what takes values, and what ends it.
 */
export function throttle<T>(
  environment: Environment,
  pass: (value: T) => void,
): { readonly push: (value: T) => void; readonly stop: () => void } {
  let waiting: { readonly value: T } | undefined;
  let cancel: (() => void) | undefined;
  const next = (): void => {
    const latest = waiting;
    waiting = undefined;
    cancel = latest === undefined ? undefined : environment.after(EVENT_PERIOD, next);
    if (latest !== undefined) pass(latest.value);
  };
  return {
    push: (value) => {
      waiting = { value };
      if (cancel === undefined) next();
    },
    stop: () => cancel?.(),
  };
}
