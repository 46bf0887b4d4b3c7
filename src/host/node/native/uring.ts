import { VirtkitError } from "../../../common/error.ts";
import { checked, describeErrno, EACCES, EINVAL, ENOSYS, EPERM, loadNative } from "./load.ts";
import { DescriptorWatch } from "./poll.ts";
import type { RequestTable } from "./table.ts";

/** Called with what is done: the first `count` of {@link Uring.tags} and {@link Uring.results}, valid during the call. */
export type OnCompletions = (count: number) => void;

/**
 * One io_uring. A batch costs one system call; what ends within it is reported by {@link Uring.reap} right after it, the rest in later
 * turns. The event descriptor is silent while completions are fetched anyway.
 */
export class Uring {
  readonly #id: number;
  readonly #watch: DescriptorWatch;
  readonly #onCompletions: OnCompletions;
  #drained: (() => void)[] = [];
  #reaping = false;
  #reapQueued = false;
  readonly #reapLater = (): void => {
    if (this.#reapQueued) this.reap();
  };
  #closing = false;
  #closed = false;

  /** Of the requests that are done, in the callback. */
  readonly tags: Uint32Array;
  /** Bytes moved, or -errno, in the order of {@link tags}. */
  readonly results: Int32Array;

  private constructor(id: number, onCompletions: OnCompletions) {
    const native = loadNative();
    this.#id = id;
    this.#onCompletions = onCompletions;
    const buffer = native.uringBuffer(id);
    const entries = buffer.byteLength / 8;
    this.tags = new Uint32Array(buffer, 0, entries);
    this.results = new Int32Array(buffer, entries * 4, entries);
    // Only what is outstanding keeps the program alive.
    const options = { drain: true, keepAlive: false };
    this.#watch = new DescriptorWatch(native.uringEventfd(id), options, () => this.reap());
  }

  /**
   * @param entries requests that can be outstanding: 1 to 4096, rounded up to a power of two
   * @returns the ring, or why this host has none (an old kernel, a container that forbids it): then `RequestTable.run` does
   */
  static open(entries: number, onCompletions: OnCompletions): { ring: Uring } | { refused: string } {
    const id = loadNative().uringCreate(entries);
    if ([-ENOSYS, -EPERM, -EACCES, -EINVAL].includes(id)) return { refused: describeErrno(id) };
    return { ring: new Uring(checked(id, "setting up io_uring"), onCompletions) };
  }

  /** Requests that were taken and not reported yet. */
  get outstanding(): number {
    return this.#closed ? 0 : loadNative().uringOutstanding(this.#id);
  }

  /**
   * Submits requests of a table, whose rows may be used again right after it; the memory that they name must stay mapped.
   * Nothing is reported within the call: {@link reap} does that, at the latest at the end of the turn by itself.
   * @returns how many were taken, in order: fewer than `count` when the ring is full
   * @throws ERR_VIRTKIT_URING_CLOSED after {@link close}
   */
  submit(table: RequestTable, first: number, count: number): number {
    if (this.#closing) throw new VirtkitError("ERR_VIRTKIT_URING_CLOSED", "the ring is closed; open another one");
    if (!this.#reaping && !this.#reapQueued) {
      this.#reapQueued = true;
      queueMicrotask(this.#reapLater);
    }
    return loadNative().uringSubmit(this.#id, table.id, first, count);
  }

  /**
   * Reports what is done, which after a {@link submit} is what needed no waiting. Then the event descriptor tells of the rest, and a
   * last look finds what came in between. A call from the callback does nothing: what it submitted is looked at after it.
   */
  reap(): void {
    if (this.#reaping || this.#closed) return;
    const native = loadNative();
    this.#reaping = true;
    this.#reapQueued = false;
    try {
      do {
        for (let count = native.uringReap(this.#id); count > 0; count = native.uringReap(this.#id))
          this.#onCompletions(count);
      } while (native.uringArm(this.#id) === 1);
    } finally {
      this.#reaping = false;
    }
    const idle = native.uringOutstanding(this.#id) === 0;
    this.#watch.keepAlive(!idle);
    if (idle && this.#drained.length > 0) for (const resolve of this.#drained.splice(0)) resolve();
  }

  /** Resolves when nothing is outstanding. */
  drain(): Promise<void> {
    if (this.outstanding === 0) return Promise.resolve();
    return new Promise((resolve) => this.#drained.push(resolve));
  }

  /** Takes no more requests, waits for those outstanding, and gives all back. */
  async close(): Promise<void> {
    if (this.#closing) return;
    this.#closing = true;
    await this.drain();
    this.#watch.stop();
    this.#closed = true;
    checked(loadNative().uringClose(this.#id), "closing io_uring");
  }
}
