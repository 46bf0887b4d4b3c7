import type { Environment } from "../../common/environment.ts";
import { type PunchCall, punchHoleLater } from "./punch-call.ts";

/** Called once a hole is punched; false when that cannot be done on this host or file. */
export type Punched = (ok: boolean) => void;

interface Hole {
  readonly offset: number;
  length: number;
  readonly done: Punched[];
}

/**
 * Gives the blocks of ranges of a file back to the host, one hole at a time; neighbours that wait meanwhile become one hole. The
 * first that fails ends it for good: the means are not there, or the file system cannot do it. See docs/adr/0005-freeing-host-blocks.md.
 */
export class HolePuncher {
  /** False once it turned out that it cannot be done. */
  works = true;
  readonly #fd: number;
  readonly #name: string;
  readonly #environment: Environment;
  readonly #call: PunchCall;
  readonly #queue: Hole[] = [];
  #running = false;

  constructor(fd: number, options: { name: string; environment: Environment; call?: PunchCall }) {
    this.#fd = fd;
    this.#name = options.name;
    this.#environment = options.environment;
    this.#call = options.call ?? punchHoleLater;
  }

  /** Frees a range in bytes; it reads as zeros once `done(true)` was called. */
  punch(offset: number, length: number, done: Punched): void {
    const last = this.#queue.at(-1);
    if (last !== undefined && last.offset + last.length === offset) {
      last.length += length;
      last.done.push(done);
    } else this.#queue.push({ offset, length, done: [done] });
    this.#next();
  }

  #next(): void {
    if (this.#running) return;
    const hole = this.#queue.shift();
    if (hole === undefined) return;
    if (!this.works) {
      this.#environment.defer(() => this.#finished(hole, false));
      this.#running = true;
      return;
    }
    this.#running = true;
    this.#call(this.#fd, hole.offset, hole.length, (error) => {
      if (error !== undefined) this.#failed(error);
      this.#finished(hole, error === undefined);
    });
  }

  #finished(hole: Hole, ok: boolean): void {
    this.#running = false;
    for (const done of hole.done) done(ok);
    this.#next();
  }

  #failed(error: string): void {
    if (!this.works) return;
    this.works = false;
    const hint = "discards free nothing, zeros are written";
    this.#environment.log.log("warn", `${this.#name}: no space can be given back to the host (${error}); ${hint}`);
  }
}
