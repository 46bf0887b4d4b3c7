import type { Environment } from "../common/environment.ts";
import { VirtkitError } from "../common/error.ts";

/** Longest line of init's that is kept; what is longer is not one of its lines. */
const LINE_MAX = 1024;
/** Text kept for a message when the guest never answers. */
const TAIL_MAX = 2048;
const PREFIX = "virtkit: ";

type Word = "ready" | "up";

interface Expectation {
  readonly word: Word;
  readonly fulfil: () => void;
}

/** What init says on the serial line (docs/guest-agent.md). */
export interface DialogueListener {
  /** Init waits for its orders: no device of ours is needed so far. Not called for what {@link GuestDialogue.expect} waits for. */
  ready(): void;
  /** Shell and agent are there. From here on the line is the guest's own. */
  up(): void;
  /** "warning: ..." and "error: ..." of init. */
  said(line: string): void;
}

/**
 * Listens on the first serial line for init of a prepared guest, from power-on until it says `up`. What passes meanwhile is
 * the kernel's and init's talk and not meant for whoever is connected to the line.
 */
export class GuestDialogue {
  readonly #listener: DialogueListener;
  #line = "";
  #tail = "";
  #open = false;
  #expected: Expectation | undefined;

  constructor(listener: DialogueListener) {
    this.#listener = listener;
  }

  /** The last text of the boot, for messages. */
  get tail(): string {
    return this.#tail;
  }

  /**
   * Waits until init says `word`.
   * @param limit milliseconds
   * @param problem what it means when it does not, for the error
   * @throws ERR_VIRTKIT_GUEST_BOOT with the last text of the boot
   */
  expect(word: Word, limit: number, problem: string, environment: Pick<Environment, "after">): Promise<void> {
    return new Promise((resolve, reject) => {
      const cancel = environment.after(limit, () => {
        this.#expected = undefined;
        reject(this.#bootError(problem));
      });
      const fulfil = (): void => {
        cancel();
        resolve();
      };
      this.#expected = { word, fulfil };
    });
  }

  /** The machine was reset: the dialogue begins again. */
  restart(): void {
    this.#open = false;
    this.#line = "";
  }

  /** Takes bytes of the line; returns the part that belongs to the guest's user. */
  filter(bytes: Uint8Array): Uint8Array {
    let i = 0;
    for (; i < bytes.length && !this.#open; i++) {
      const byte = bytes[i] as number;
      if (byte !== 0x0a) this.#line = this.#line.length < LINE_MAX ? this.#line + String.fromCharCode(byte) : "";
      else this.#endLine();
    }
    const last = bytes.subarray(Math.max(0, i - TAIL_MAX), i);
    this.#tail = (this.#tail + String.fromCharCode(...last)).slice(-TAIL_MAX);
    return bytes.subarray(i);
  }

  #endLine(): void {
    const line = this.#line.trimEnd();
    this.#line = "";
    // A kernel message may stand in front of it on the same line.
    const start = line.lastIndexOf(PREFIX);
    if (start < 0) return;
    const said = line.slice(start + PREFIX.length);
    if (said === "ready") {
      if (!this.#fulfil("ready")) this.#listener.ready();
    } else if (said === "up") {
      this.#open = true;
      this.#fulfil("up");
      this.#listener.up();
    } else this.#listener.said(said);
  }

  #fulfil(word: Word): boolean {
    const expected = this.#expected;
    if (expected?.word !== word) return false;
    this.#expected = undefined;
    expected.fulfil();
    return true;
  }

  #bootError(problem: string): VirtkitError {
    const tail = this.#tail.trim();
    const said = tail === "" ? "It said nothing." : `Its last words:\n${tail}`;
    return new VirtkitError("ERR_VIRTKIT_GUEST_BOOT", `the guest did not come up: ${problem}. ${said}`);
  }
}
