import type { BalloonHost } from "../backend/balloon/types.ts";
import type { Environment } from "../common/environment.ts";
import { VirtkitError } from "../common/error.ts";
import { FeatureSet } from "../common/feature-set.ts";
import {
  VIRTIO_BALLOON_PAGE_SIZE as PAGE,
  VIRTIO_BALLOON_CFG_ACTUAL,
  VIRTIO_BALLOON_CFG_FREE_PAGE_HINT_CMD_ID,
  VIRTIO_BALLOON_CFG_NUM_PAGES,
  VIRTIO_BALLOON_CFG_POISON_VAL,
  VIRTIO_BALLOON_CFG_SIZE,
  VIRTIO_BALLOON_CMD_ID_DONE,
  VIRTIO_BALLOON_CMD_ID_SIZE,
  VIRTIO_BALLOON_CMD_ID_STOP,
  VIRTIO_BALLOON_DEFLATEQ,
  VIRTIO_BALLOON_F_DEFLATE_ON_OOM,
  VIRTIO_BALLOON_F_FREE_PAGE_HINT,
  VIRTIO_BALLOON_F_MUST_TELL_HOST,
  VIRTIO_BALLOON_F_PAGE_POISON,
  VIRTIO_BALLOON_F_PAGE_REPORTING,
  VIRTIO_BALLOON_F_STATS_VQ,
  VIRTIO_BALLOON_FREE_PAGE_VQ,
  VIRTIO_BALLOON_INFLATEQ,
  VIRTIO_BALLOON_STATSQ,
} from "../spec/balloon.ts";
import { VIRTIO_ID_BALLOON } from "../spec/ids.ts";
import { type ChainBatch, ChainReader } from "../virtqueue/index.ts";
import { Hints } from "./balloon/hints.ts";
import { type BalloonStats, readStats } from "./balloon/stats.ts";
import { DeviceCore } from "./core.ts";
import type { RunningQueue } from "./running-queue.ts";

export type { BalloonStatName, BalloonStats } from "./balloon/stats.ts";

/** Page numbers of a request that are looked at; Linux sends 256. */
const MAX_PAGES = 65536;
const QUEUE_SIZE = 128;
const REPORTING_QUEUE_SIZE = 32;

export interface BalloonDeviceOptions {
  readonly environment: Environment;
  /** Gives the memory back; without one the guest only does without it. */
  readonly host?: BalloonHost;
  /** For messages; default "virtio-balloon". */
  readonly name?: string;
  readonly ringFeatures?: FeatureSet;
  /** The guest may take pages back when it is out of memory. Default false. */
  readonly deflateOnOom?: boolean;
  /** The guest reports pages that are free. Default false. */
  readonly freePageReporting?: boolean;
  /** The guest can be asked for pages that are free, for a migration or a snapshot. Default false. */
  readonly freePageHinting?: boolean;
  /** The guest says with what it fills free pages. Default true. */
  readonly pagePoison?: boolean;
  /** The guest has to wait for an answer before it uses pages of the balloon again. Default false. */
  readonly mustTellHost?: boolean;
}

/** Bytes that went each way since the device was made. */
export interface BalloonCounters {
  inflated: number;
  deflated: number;
  reported: number;
  hinted: number;
}

interface StatsWaiter {
  readonly resolve: (stats: BalloonStats) => void;
  readonly reject: (error: Error) => void;
}

/**
 * Memory balloon (VIRTIO 1.4 §5.5).
 *
 * Free pages are reported on queue 4 as the specification has it, and without free page hinting also on queue 3: Linux before 6.11
 * counts only the queues that are there.
 */
export class BalloonDevice extends DeviceCore {
  readonly counters: BalloonCounters = { inflated: 0, deflated: 0, reported: 0, hinted: 0 };
  /** Called when the guest says that the balloon has another size, in bytes. */
  onActual: ((bytes: number) => void) | undefined;
  /** What the guest told last, and when by {@link Environment.now}. */
  lastStats: { readonly stats: BalloonStats; readonly at: number } | undefined;
  readonly #host: BalloonHost | undefined;
  /** Chain of the statistics queue that waits for the next question, or -1. */
  #held = -1;
  /** The buffer that waits was never asked for: it answers nobody (legacy drivers leave it uninitialised). */
  #asked = false;
  #waiters: StatsWaiter[] = [];
  readonly #hints = new Hints();
  #interval = 0;
  #cancelPoll: (() => void) | undefined;

  constructor(options: BalloonDeviceOptions) {
    const { deflateOnOom = false, freePageReporting = false, pagePoison = true, mustTellHost = false } = options;
    const { freePageHinting = false } = options;
    const bits = [VIRTIO_BALLOON_F_STATS_VQ];
    if (deflateOnOom) bits.push(VIRTIO_BALLOON_F_DEFLATE_ON_OOM);
    if (freePageReporting) bits.push(VIRTIO_BALLOON_F_PAGE_REPORTING);
    if (freePageHinting) bits.push(VIRTIO_BALLOON_F_FREE_PAGE_HINT);
    if (pagePoison) bits.push(VIRTIO_BALLOON_F_PAGE_POISON);
    if (mustTellHost) bits.push(VIRTIO_BALLOON_F_MUST_TELL_HOST);
    const hinting = freePageHinting || freePageReporting ? [QUEUE_SIZE] : [];
    const reporting = freePageReporting ? [REPORTING_QUEUE_SIZE] : [];
    super({
      name: options.name ?? "virtio-balloon",
      deviceId: VIRTIO_ID_BALLOON,
      queueSizes: [QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE, ...hinting, ...reporting],
      features: FeatureSet.of(...bits),
      ...(options.ringFeatures === undefined ? {} : { ringFeatures: options.ringFeatures }),
      configSize: VIRTIO_BALLOON_CFG_SIZE,
      environment: options.environment,
    });
    this.#host = options.host;
    this.config.allowWrite(VIRTIO_BALLOON_CFG_ACTUAL, 4);
    if (pagePoison) this.config.allowWrite(VIRTIO_BALLOON_CFG_POISON_VAL, 4);
  }

  /** Bytes that the balloon is to have. */
  get target(): number {
    return this.config.view.getUint32(VIRTIO_BALLOON_CFG_NUM_PAGES, true) * PAGE;
  }

  /** Bytes that the balloon has, as the guest says. */
  get actual(): number {
    return this.config.view.getUint32(VIRTIO_BALLOON_CFG_ACTUAL, true) * PAGE;
  }

  /**
   * Asks the guest to give up `bytes` of its memory in all, rounded down to pages of 4096; 0 gives everything back. The guest follows when
   * it can, see {@link actual}.
   * @throws ERR_VIRTKIT_BALLOON_TARGET for a number outside 0..2^44-4096
   */
  setTarget(bytes: number): void {
    const pages = Math.floor(bytes / PAGE);
    if (!(bytes >= 0 && pages < 2 ** 32))
      throw new VirtkitError(
        "ERR_VIRTKIT_BALLOON_TARGET",
        `${this.name}: no balloon of ${bytes} bytes; give 0..2^44-4096`,
      );
    if (pages * PAGE === this.target) return;
    this.config.update((view) => view.setUint32(VIRTIO_BALLOON_CFG_NUM_PAGES, pages, true));
  }

  /**
   * Asks the guest for its statistics; waits for a guest that is not up yet.
   * @throws ERR_VIRTKIT_RESET when the device is reset before the guest answered
   */
  requestStats(): Promise<BalloonStats> {
    return new Promise((resolve, reject) => {
      this.#waiters.push({ resolve, reject });
      this.#ask();
    });
  }

  /**
   * Asks the guest for its free pages: `take` is called for each range of them, in bytes, until the guest has no more or
   * {@link stopHinting} is called; then the Promise resolves. The guest leaves them alone until {@link finishHinting}, or writes to
   * them first.
   * @throws ERR_VIRTKIT_FEATURES when the guest does not do that, ERR_VIRTKIT_RESET when the device is reset meanwhile
   */
  startHinting(take: (address: number, length: number) => void): Promise<void> {
    if (!this.features.has(VIRTIO_BALLOON_F_FREE_PAGE_HINT))
      return Promise.reject(
        new VirtkitError("ERR_VIRTKIT_FEATURES", `${this.name}: the driver did not accept FREE_PAGE_HINT`),
      );
    const { id, ended } = this.#hints.start(take);
    this.#writeHintId(id);
    return ended;
  }

  /** Takes no more hints; the guest keeps the pages that it named, and can be asked for more. */
  stopHinting(): void {
    this.#endHints(VIRTIO_BALLOON_CMD_ID_STOP);
  }

  /** The hints were used, or will not be: the guest has its pages back (device: ... / Free Page Hinting #4). */
  finishHinting(): void {
    this.#endHints(VIRTIO_BALLOON_CMD_ID_DONE);
  }

  #endHints(id: number): void {
    this.#hints.end();
    if (this.features.has(VIRTIO_BALLOON_F_FREE_PAGE_HINT)) this.#writeHintId(id);
  }

  #writeHintId(id: number): void {
    this.config.update((view) => view.setUint32(VIRTIO_BALLOON_CFG_FREE_PAGE_HINT_CMD_ID, id, true));
  }

  /** Asks for statistics every so many seconds, for {@link lastStats}; 0, as at the start, stops it. */
  setStatsInterval(seconds: number): void {
    if (!Number.isInteger(seconds) || seconds < 0 || seconds > 2 ** 31 / 1000)
      throw new VirtkitError(
        "ERR_VIRTKIT_BALLOON_INTERVAL",
        `${this.name}: guest-stats-polling-interval=${seconds}: give whole seconds, 0 for none`,
      );
    this.#interval = seconds;
    this.#cancelPoll?.();
    this.#cancelPoll = undefined;
    this.#pollLater();
  }

  override async close(): Promise<void> {
    this.setStatsInterval(0);
    await super.close();
    this.#rejectWaiters("the device was closed");
  }

  protected override onReset(): void {
    this.config.view.setUint32(VIRTIO_BALLOON_CFG_ACTUAL, 0, true);
    this.config.view.setUint32(VIRTIO_BALLOON_CFG_POISON_VAL, 0, true);
    this.config.view.setUint32(VIRTIO_BALLOON_CFG_FREE_PAGE_HINT_CMD_ID, VIRTIO_BALLOON_CMD_ID_STOP, true);
    this.#hints.reset(new VirtkitError("ERR_VIRTKIT_RESET", `${this.name}: no more hints: the device was reset`));
    this.#rejectWaiters("the device was reset");
  }

  protected override onQueueStop(running: RunningQueue): void {
    if (running.index === VIRTIO_BALLOON_STATSQ) this.#held = -1;
  }

  protected override onConfigWritten(offset: number, length: number): void {
    // The last byte makes the value whole (§5.5.6, legacy interface).
    const last = VIRTIO_BALLOON_CFG_ACTUAL + 3;
    if (offset <= last && offset + length > last) this.onActual?.(this.actual);
  }

  protected override onChains(running: RunningQueue, batch: ChainBatch): boolean {
    const { index } = running;
    const reader = new ChainReader(this.memory);
    for (let c = 0; c < batch.count; c++) {
      const id = batch.id[c] as number;
      if (index === VIRTIO_BALLOON_INFLATEQ || index === VIRTIO_BALLOON_DEFLATEQ)
        this.#pages(reader.from(batch, c), index === VIRTIO_BALLOON_INFLATEQ);
      else if (index === VIRTIO_BALLOON_STATSQ && this.features.has(VIRTIO_BALLOON_F_STATS_VQ)) {
        this.#statsBuffer(running, id, reader.from(batch, c));
        continue;
      } else if (index === VIRTIO_BALLOON_FREE_PAGE_VQ && this.features.has(VIRTIO_BALLOON_F_FREE_PAGE_HINT))
        this.#hinted(reader.from(batch, c), batch, c);
      else this.#reported(batch, c);
      running.queue.push(id, 0);
    }
    if (index === VIRTIO_BALLOON_STATSQ) this.#ask(running);
    return true;
  }

  /** Page numbers, each checked; neighbours go to the host together. */
  #pages(reader: ChainReader, inflate: boolean): void {
    if (reader.remaining % 4 !== 0 || reader.remaining === 0)
      this.driverFault(`${reader.remaining} bytes of page numbers`, false);
    let start = 0;
    let end = 0;
    for (let i = 0; i < MAX_PAGES && reader.remaining >= 4; i++) {
      const address = reader.u32() * PAGE;
      if (this.memory.locate(address, PAGE, true) < 0) {
        this.driverFault(`page ${address / PAGE} is not in guest memory`, false);
        continue;
      }
      if (address === end && this.memory.locate(start, end + PAGE - start, true) >= 0) end += PAGE;
      else if (address === start - PAGE && this.memory.locate(address, end - address, true) >= 0) start = address;
      else {
        this.#tell(start, end, inflate);
        start = address;
        end = address + PAGE;
      }
    }
    this.#tell(start, end, inflate);
    if (reader.remaining >= 4) this.driverFault(`more than ${MAX_PAGES} pages in one request`, false);
  }

  #tell(start: number, end: number, inflate: boolean): void {
    const length = end - start;
    if (length === 0) return;
    if (inflate) {
      this.counters.inflated += length;
      this.#host?.release(start, length);
    } else {
      this.counters.deflated += length;
      this.#host?.restore(start, length);
    }
  }

  /**
   * Free pages, as buffers. A guest that fills its free pages with something else than zeros must find that again (device: Memory
   * Balloon Device / Device Operation / Free Page Reporting #1), so theirs are left alone.
   */
  #reported(batch: ChainBatch, c: number): void {
    const poison = this.features.has(VIRTIO_BALLOON_F_PAGE_POISON)
      ? this.config.view.getUint32(VIRTIO_BALLOON_CFG_POISON_VAL, true)
      : 0;
    this.#eachRange(batch, c, (start, length) => {
      this.counters.reported += length;
      if (poison === 0) this.#host?.release(start, length);
    });
  }

  /** A command id, pages that go with the last one, or both. */
  #hinted(reader: ChainReader, batch: ChainBatch, c: number): void {
    if (reader.remaining > 0 && reader.remaining !== VIRTIO_BALLOON_CMD_ID_SIZE)
      this.driverFault(`a command id of ${reader.remaining} bytes`, false);
    else if (reader.remaining > 0) this.#hints.command(reader.u32());
    this.#eachRange(batch, c, (start, length) => {
      if (this.#hints.page(start, length)) this.counters.hinted += length;
    });
  }

  /** The whole pages of a chain's writable buffers, a range for each buffer. */
  #eachRange(batch: ChainBatch, c: number, use: (start: number, length: number) => void): void {
    const first = (batch.first[c] as number) + (batch.readable[c] as number);
    for (let s = first; s < first + (batch.writable[c] as number); s++) {
      const base = this.memory.regions[batch.region[s] as number]?.base ?? 0;
      const from = base + (batch.offset[s] as number);
      const start = Math.ceil(from / PAGE) * PAGE;
      const length = Math.floor((from + (batch.length[s] as number)) / PAGE) * PAGE - start;
      if (length > 0) use(start, length);
    }
  }

  #statsBuffer(running: RunningQueue, id: number, reader: ChainReader): void {
    if (this.#held >= 0) {
      this.driverFault("a second buffer for statistics", false);
      running.queue.push(this.#held, 0);
    }
    this.#held = id;
    if (!this.#asked) return;
    this.#asked = false;
    const stats = readStats(reader);
    this.lastStats = { stats, at: this.environment.now() };
    for (const waiter of this.#waiters.splice(0)) waiter.resolve(stats);
    this.#pollLater();
  }

  /** Gives the buffer back, so that the guest fills a new one. `serviced` is published by its caller. */
  #ask(serviced?: RunningQueue): void {
    const running = this.queue(VIRTIO_BALLOON_STATSQ);
    if (this.#waiters.length === 0 || this.#held < 0 || running === undefined || this.#asked) return;
    running.queue.push(this.#held, 0);
    this.#held = -1;
    this.#asked = true;
    if (running !== serviced) running.publish();
  }

  #pollLater(): void {
    if (this.#interval === 0 || this.#cancelPoll !== undefined) return;
    this.#cancelPoll = this.environment.after(this.#interval * 1000, () => {
      this.#cancelPoll = undefined;
      // A reset ends one question, not the questions.
      this.requestStats().catch(() => this.#pollLater());
    });
  }

  #rejectWaiters(why: string): void {
    this.#asked = false;
    this.#held = -1;
    const error = new VirtkitError("ERR_VIRTKIT_RESET", `${this.name}: no statistics: ${why}; ask again`);
    for (const waiter of this.#waiters.splice(0)) waiter.reject(error);
  }
}
