import { constants } from "node:os";
import type { VirtualMachine } from "../machine/virtual-machine.ts";

type Signal = "SIGINT" | "SIGTERM" | "SIGHUP";
const SIGNALS: readonly Signal[] = ["SIGINT", "SIGTERM", "SIGHUP"];

/**
 * The time between a command's start and its end, in which signals and Ctrl-A X must end it in order: what is being prepared is
 * aborted, a machine is stopped (its guest unmounts its disks), and at the second request its power is cut.
 */
export class Session {
  readonly #abort = new AbortController();
  #machine: VirtualMachine | undefined;
  #asked = false;
  #signal: Signal | undefined;
  readonly #handlers = new Map<Signal, () => void>();

  constructor() {
    for (const signal of SIGNALS) {
      const handler = (): void => {
        this.#signal ??= signal;
        this.quit();
      };
      this.#handlers.set(signal, handler);
      process.on(signal, handler);
    }
  }

  /** Aborted when the session is to end. */
  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  /** Somebody asked for the end. */
  get isEnding(): boolean {
    return this.#asked;
  }

  /** Exit status after a signal as shells have it; undefined without one. */
  get status(): number | undefined {
    return this.#signal === undefined ? undefined : 128 + constants.signals[this.#signal];
  }

  /** From here on the machine is what ends. */
  adopt(machine: VirtualMachine): void {
    this.#machine = machine;
    if (this.#asked) void machine.kill();
  }

  quit(): void {
    this.#abort.abort();
    const machine = this.#machine;
    if (machine !== undefined) void (this.#asked ? machine.kill() : machine.stop());
    this.#asked = true;
  }

  close(): void {
    for (const [signal, handler] of this.#handlers) process.off(signal, handler);
  }
}
