import * as fs from "node:fs";

/** statfs types of file systems whose files lie on this machine: ext2/3/4, xfs, btrfs, f2fs, zfs, bcachefs, overlay, tmpfs, ramfs. */
const LOCAL: ReadonlySet<number> = new Set([
  0xef53, 0x58465342, 0x9123683e, 0xf2f52010, 0x2fc12fc1, 0xca451a4e, 0x794c7630, 0x01021994, 0x858458f6,
]);

/** Milliseconds a call may take when the data is in the page cache: a part for the call, a part for each byte. */
const CALL_TIME = 0.25;
const BYTE_TIME = 2 / 2 ** 20;
/**
 * The score counts slow calls up and others down: on a busy machine some calls are slow because the CPU went to others, but most calls are only slow
 * when the data is not at hand. At LIMIT calls are no longer waited for.
 */
const LIMIT = 8;
const HIGHEST = 16;
/** Beyond the limit one question of so many is still answered with yes, to find out whether that has changed. */
const PROBE = 64;
/** Where several calls were slow, one of more than LONG milliseconds is followed by a pause of PAUSE times its length. */
const SEVERAL = 3;
const LONG = 10;
const PAUSE = 50;

/** True when a file is local, as far as can be known. */
export function isLocalFile(path: string): boolean {
  try {
    return LOCAL.has(fs.statfsSync(path).type >>> 0);
  } catch {
    return false;
  }
}

/**
 * Decides whether a call for file data is waited for, because what it asks for is most likely in the page cache, or goes to the thread
 * pool. Node cannot ask the system for data only if it is at hand, so this goes by how long the calls before took: a file that has to
 * be fetched from its disk soon costs no more than one call in 64, and long waits at most a fiftieth of the time.
 */
export class PromptIo {
  readonly #now: () => number;
  #startedAt = 0;
  #score = 0;
  #refused = 0;
  #pausedUntil = Number.NEGATIVE_INFINITY;

  /** @param now milliseconds */
  constructor(now: () => number) {
    this.#now = now;
  }

  /** Whether the next call may be waited for. */
  ask(): boolean {
    if (this.#score < LIMIT && this.#pausedUntil === Number.NEGATIVE_INFINITY) return true;
    if (this.#now() < this.#pausedUntil) return false;
    this.#pausedUntil = Number.NEGATIVE_INFINITY;
    if (this.#score < LIMIT) return true;
    this.#refused++;
    return this.#refused % PROBE === 0;
  }

  /** A call begins that is waited for. */
  begin(): void {
    this.#startedAt = this.#now();
  }

  /** It has moved `bytes` bytes. */
  end(bytes: number): void {
    const milliseconds = this.#now() - this.#startedAt;
    const slow = milliseconds > CALL_TIME + bytes * BYTE_TIME;
    this.#score = slow ? Math.min(HIGHEST, this.#score + 1) : Math.max(0, this.#score - 1);
    if (slow && milliseconds > LONG && this.#score >= SEVERAL) this.#pausedUntil = this.#now() + milliseconds * PAUSE;
  }
}
