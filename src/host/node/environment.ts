import { performance } from "node:perf_hooks";
import type { Environment, Logger, LogLevel } from "../../common/environment.ts";

const LEVELS: readonly LogLevel[] = ["debug", "info", "warn", "error"];

/** Writes lines of `level` and above, "virtkit: warn: ...", to standard error or to `write`. */
export function createLogger(
  level: LogLevel = "info",
  write: (line: string) => void = (line) => void process.stderr.write(line),
): Logger {
  const least = LEVELS.indexOf(level);
  return {
    log(of, message) {
      if (LEVELS.indexOf(of) < least) return;
      write(`virtkit: ${of === "info" ? "" : `${of}: `}${message}\n`);
    },
  };
}

/** Node's event loop, clock and standard error. */
export function createEnvironment(log: Logger = createLogger()): Environment {
  return {
    defer: (task) => void setImmediate(task),
    after: (milliseconds, task) => {
      const timer = setTimeout(task, milliseconds);
      timer.unref();
      return () => clearTimeout(timer);
    },
    now: () => performance.now(),
    log,
  };
}

/**
 * Lets the first of many equal messages through and then one in each period, which says how many were left out meanwhile.
 * A guest that provokes the same message again and again must not fill the host's log.
 */
export class RateLimitedLog {
  readonly #environment: Environment;
  readonly #period: number;
  #next = Number.NEGATIVE_INFINITY;
  #left = 0;

  /** @param period milliseconds between two messages */
  constructor(environment: Environment, period = 5000) {
    this.#environment = environment;
    this.#period = period;
  }

  log(level: LogLevel, message: string): void {
    const now = this.#environment.now();
    if (now < this.#next) {
      this.#left++;
      return;
    }
    this.#next = now + this.#period;
    const more = this.#left === 0 ? "" : ` (and ${this.#left} more like it)`;
    this.#left = 0;
    this.#environment.log.log(level, message + more);
  }
}
