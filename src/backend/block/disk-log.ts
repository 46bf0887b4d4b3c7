import type { Environment, LogLevel } from "../../common/environment.ts";

/** Milliseconds between two messages of a kind. */
const PERIOD = 5000;

/** Messages on a disk: the first of each kind at once, then one in each period, which says how many were left out. */
export class DiskLog {
  readonly #name: string;
  readonly #environment: Environment;
  readonly #kinds = new Map<string, { next: number; left: number }>();

  constructor(name: string, environment: Environment) {
    this.#name = name;
    this.#environment = environment;
  }

  say(level: LogLevel, kind: string, text: string): void {
    const now = this.#environment.now();
    const state = this.#kinds.get(kind) ?? { next: Number.NEGATIVE_INFINITY, left: 0 };
    this.#kinds.set(kind, state);
    if (now < state.next) {
      state.left++;
      return;
    }
    const more = state.left === 0 ? "" : ` (and ${state.left} more like it)`;
    state.next = now + PERIOD;
    state.left = 0;
    this.#environment.log.log(level, `${this.#name}: ${text}${more}`);
  }
}
