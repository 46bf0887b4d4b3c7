import { VirtkitError } from "../common/error.ts";
import type { FeatureSet } from "../common/feature-set.ts";
import {
  VIRTIO_BALLOON_PAGE_SIZE as PAGE,
  VIRTIO_BALLOON_CFG_ACTUAL,
  VIRTIO_BALLOON_CFG_FREE_PAGE_HINT_CMD_ID,
  VIRTIO_BALLOON_CFG_NUM_PAGES,
  VIRTIO_BALLOON_CFG_POISON_VAL,
  VIRTIO_BALLOON_CMD_ID_DONE,
  VIRTIO_BALLOON_CMD_ID_MIN,
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
  VIRTIO_BALLOON_REPORTING_VQ,
  VIRTIO_BALLOON_S_MEMFREE,
  VIRTIO_BALLOON_STAT_SIZE,
  VIRTIO_BALLOON_STATSQ,
} from "../spec/balloon.ts";
import { VIRTIO_ID_BALLOON } from "../spec/ids.ts";
import type { DriverType } from "./bus.ts";
import { type DriverContext, VirtioDriver } from "./core.ts";
import type { DmaBuffer } from "./dma.ts";
import type { VirtQueue } from "./virtqueue.ts";

/** Pages of one request. */
const PAGES = 256;
const MAX_STATS = 16;
/** Pages of one report. */
const MAX_REPORTED = 32;
/** Bytes of memory that are left alone while pages are given away. */
const RESERVE = 4 * PAGE;
/** Largest piece of free memory that is hinted as one. */
const HINT_BYTES = 64 * PAGE;
const STATS_TOKEN = 0;

/** A statistic: VIRTIO_BALLOON_S_* and its value. */
export type Statistic = readonly [tag: number, value: number];

/** Driver of the memory balloon (VIRTIO 1.4 §5.5). What it gives up is memory of its DMA allocator, and only while that has some. */
export class BalloonDriver extends VirtioDriver {
  static readonly type: DriverType<BalloonDriver> = {
    name: "virtio_balloon",
    idTable: [VIRTIO_ID_BALLOON],
    create: (context) => new BalloonDriver(context),
  };

  /** A driver that fills pages that are free, or free again, with this 32-bit value. */
  static withPoison(poison: number): DriverType<BalloonDriver> {
    return { ...BalloonDriver.type, create: (context) => new BalloonDriver(context, poison) };
  }

  /** What the device is told when it asks. At most 16, always the same tags: those of the first call since the driver is up count. */
  statistics: () => readonly Statistic[] = () => [[VIRTIO_BALLOON_S_MEMFREE, this.dma.free]];
  readonly #poison: number | undefined;
  #pages: DmaBuffer[] = [];
  #stats: DmaBuffer | undefined;
  #tags: number[] | undefined;
  /** Free memory that the device was told of and may still use, and the command id under which it was. */
  #hinted: DmaBuffer[] = [];
  #hintId = VIRTIO_BALLOON_CMD_ID_STOP;
  #hinting = false;
  /** Hinted memory was taken back, so this round brings no more. */
  #hintsTakenBack = false;
  #adjusting = false;
  #again = false;
  #settled: (() => void)[] = [];

  constructor(context: DriverContext, poison?: number) {
    super(context, {
      name: "virtio_balloon",
      deviceIds: [VIRTIO_ID_BALLOON],
      features: [
        { bit: VIRTIO_BALLOON_F_MUST_TELL_HOST },
        { bit: VIRTIO_BALLOON_F_STATS_VQ },
        { bit: VIRTIO_BALLOON_F_DEFLATE_ON_OOM },
        { bit: VIRTIO_BALLOON_F_FREE_PAGE_HINT },
        { bit: VIRTIO_BALLOON_F_PAGE_POISON },
        { bit: VIRTIO_BALLOON_F_PAGE_REPORTING },
      ],
    });
    this.#poison = poison;
  }

  /** Bytes in the balloon. */
  get actual(): number {
    return this.#pages.length * PAGE;
  }

  /** Bytes that the device wants in it. */
  get target(): number {
    return this.readConfig(VIRTIO_BALLOON_CFG_NUM_PAGES, 4) * PAGE;
  }

  /** Resolves when the balloon has the size that was asked for, or memory ran out. */
  adjusted(): Promise<void> {
    if (!this.#adjusting) return Promise.resolve();
    return new Promise((resolve) => this.#settled.push(resolve));
  }

  /**
   * Takes up to `bytes` out of the balloon because memory ran out; resolves with how many it were.
   * @throws ERR_VIRTKIT_FEATURES when the device does not allow that (driver: Memory Balloon Device / Device Operation #1)
   */
  async deflateOnOom(bytes: number): Promise<number> {
    if (!this.features.has(VIRTIO_BALLOON_F_DEFLATE_ON_OOM))
      throw new VirtkitError("ERR_VIRTKIT_FEATURES", `${this.name}: DEFLATE_ON_OOM was not negotiated`);
    await this.adjusted();
    return (await this.#deflate(Math.ceil(bytes / PAGE))) * PAGE;
  }

  /**
   * Tells the device that these whole pages are free; they may be used again once it resolved, and hold anything then.
   * @throws ERR_VIRTKIT_FEATURES when the device does not want to know
   */
  async reportFree(buffers: readonly DmaBuffer[]): Promise<void> {
    const queue = this.queues[VIRTIO_BALLOON_REPORTING_VQ];
    if (queue === undefined)
      throw new VirtkitError("ERR_VIRTKIT_FEATURES", `${this.name}: PAGE_REPORTING was not negotiated`);
    for (const buffer of buffers) this.#fill(buffer);
    if (buffers.length === 0) return;
    await queue.transfer([], buffers);
  }

  /** Tells the device of up to `pages` pages that nobody uses; they are out of use until it answered. Throws as {@link reportFree} does. */
  async reportFreePages(pages: number): Promise<void> {
    const free: DmaBuffer[] = [];
    try {
      while (free.length < Math.min(pages, MAX_REPORTED) && this.dma.free > RESERVE) {
        const page = this.#allocPages(PAGE);
        if (page === undefined) break;
        free.push(page);
      }
      await this.reportFree(free);
    } finally {
      for (const page of free) this.dma.release(page);
    }
  }

  /** Bytes that the device was told of as free, and that are out of use until it is done with them. */
  get hinted(): number {
    return this.#hinted.reduce((sum, { length }) => sum + length, 0);
  }

  /** Takes all hinted memory back at once, because memory ran out; returns how many bytes that were. */
  releaseHinted(): number {
    const bytes = this.hinted;
    this.#hintsTakenBack = true;
    for (const buffer of this.#hinted.splice(0)) {
      // What the device makes of it is open until somebody writes to it (driver: ... / Free Page Hinting #6).
      buffer.write(new Uint8Array(buffer.length));
      this.#fill(buffer);
      this.dma.release(buffer);
    }
    return bytes;
  }

  // The value has to be there before DRIVER_OK; who fills with none must not say so. Whose free pages hold a value must not lose it
  // by a report (driver: Memory Balloon Device / Feature bits #1).
  protected override onValidate(features: FeatureSet): FeatureSet {
    if (this.#poison === undefined) return features.without(VIRTIO_BALLOON_F_PAGE_POISON);
    const knows = features.has(VIRTIO_BALLOON_F_PAGE_POISON);
    return knows ? features : features.without(VIRTIO_BALLOON_F_PAGE_REPORTING);
  }

  protected override onSetUp(): void {
    this.setUpQueue(VIRTIO_BALLOON_INFLATEQ);
    this.setUpQueue(VIRTIO_BALLOON_DEFLATEQ);
    if (this.features.has(VIRTIO_BALLOON_F_FREE_PAGE_HINT)) this.setUpQueue(VIRTIO_BALLOON_FREE_PAGE_VQ);
    if (this.features.has(VIRTIO_BALLOON_F_PAGE_REPORTING)) this.setUpQueue(VIRTIO_BALLOON_REPORTING_VQ);
    if (this.features.has(VIRTIO_BALLOON_F_PAGE_POISON))
      this.writeConfig(VIRTIO_BALLOON_CFG_POISON_VAL, 4, this.#poison ?? 0);
    if (this.features.has(VIRTIO_BALLOON_F_STATS_VQ)) {
      this.#stats = this.dma.alloc(MAX_STATS * VIRTIO_BALLOON_STAT_SIZE);
      this.#sendStats(this.setUpQueue(VIRTIO_BALLOON_STATSQ));
    }
  }

  protected override onReady(): void {
    this.onConfigChanged();
  }

  protected override onConfigChanged(): void {
    this.#adjust();
    if (this.features.has(VIRTIO_BALLOON_F_FREE_PAGE_HINT)) this.#followHints();
  }

  protected override onUsed(queue: VirtQueue): void {
    if (queue.index === VIRTIO_BALLOON_STATSQ) this.#sendStats(queue);
  }

  protected override onTearDown(): void {
    for (const page of this.#pages.splice(0)) this.dma.release(page);
    if (this.#stats !== undefined) this.dma.release(this.#stats);
    this.#stats = undefined;
    this.#tags = undefined;
    this.releaseHinted();
    this.#hintId = VIRTIO_BALLOON_CMD_ID_STOP;
  }

  /** One buffer, filled anew, with the same tags (driver: ... / Memory Statistics #1 to #4, #6). */
  #sendStats(queue: VirtQueue): void {
    const buffer = this.#stats as DmaBuffer;
    const told = this.statistics().slice(0, MAX_STATS);
    this.#tags ??= told.map(([tag]) => tag);
    const values = new Map(told);
    const statistics = this.#tags.map((tag) => [tag, values.get(tag) ?? 0] as const);
    const view = new DataView(new ArrayBuffer(statistics.length * VIRTIO_BALLOON_STAT_SIZE));
    for (const [i, [tag, value]] of statistics.entries()) {
      const at = i * VIRTIO_BALLOON_STAT_SIZE;
      view.setUint16(at, tag, true);
      view.setUint32(at + 2, value % 2 ** 32, true);
      view.setUint32(at + 6, Math.floor(value / 2 ** 32), true);
    }
    buffer.write(new Uint8Array(view.buffer));
    const length = Uint32Array.of(view.byteLength);
    if (queue.add({ address: Float64Array.of(buffer.address), length }, 0, 1, 0, STATS_TOKEN)) queue.kick();
  }

  /** Brings the balloon to its target, one request after the other; a change meanwhile is looked at too. */
  #adjust(): void {
    this.#again = true;
    if (this.#adjusting) return;
    this.#adjusting = true;
    this.#adjustAll()
      .catch((error: unknown) => {
        if (this.state === "ready") this.environment.log.log("warn", `${this.name}: ${String(error)}`);
      })
      .finally(() => {
        this.#adjusting = false;
        for (const resolve of this.#settled.splice(0)) resolve();
      });
  }

  async #adjustAll(): Promise<void> {
    while (this.#again) {
      this.#again = false;
      for (let moved = 1; moved > 0 && this.state === "ready"; ) {
        const missing = (this.target - this.actual) / PAGE;
        moved = missing === 0 ? 0 : await (missing > 0 ? this.#inflate(missing) : this.#deflate(-missing));
      }
    }
  }

  async #inflate(pages: number): Promise<number> {
    const taken: DmaBuffer[] = [];
    while (taken.length < Math.min(pages, PAGES) && this.dma.free > RESERVE) {
      const page = this.#allocPages(PAGE);
      if (page === undefined) break;
      taken.push(page);
    }
    if (taken.length === 0) return 0;
    try {
      await this.#tell(VIRTIO_BALLOON_INFLATEQ, taken);
    } catch (error) {
      for (const page of taken) this.dma.release(page);
      throw error;
    }
    this.#pages.push(...taken);
    this.#writeActual();
    return taken.length;
  }

  #allocPages(bytes: number): DmaBuffer | undefined {
    try {
      return this.dma.alloc(bytes, PAGE);
    } catch {
      return undefined;
    }
  }

  get #wantedHints(): number {
    return this.readConfig(VIRTIO_BALLOON_CFG_FREE_PAGE_HINT_CMD_ID, 4);
  }

  #followHints(): void {
    const id = this.#wantedHints;
    if (id === VIRTIO_BALLOON_CMD_ID_DONE) this.releaseHinted();
    if (id < VIRTIO_BALLOON_CMD_ID_MIN || id === this.#hintId || this.#hinting) return;
    this.#hinting = true;
    this.#hintAll()
      .catch((error: unknown) => {
        if (this.state === "ready") this.environment.log.log("warn", `${this.name}: ${String(error)}`);
      })
      .finally(() => {
        this.#hinting = false;
        if (this.state === "ready") this.#followHints();
      });
  }

  /** A round: the command id once, free memory as long as there is some and it is wanted, and the end (§5.5.6.5). */
  async #hintAll(): Promise<void> {
    const id = this.#wantedHints;
    this.#hintId = id;
    this.#hintsTakenBack = false;
    await this.#sendCommand(id);
    for (let bytes = HINT_BYTES; bytes >= PAGE && !this.#hintsTakenBack && this.#wantedHints === id; ) {
      const buffer = this.dma.free > bytes + RESERVE ? this.#allocPages(bytes) : undefined;
      if (buffer === undefined) bytes /= 2;
      else {
        this.#hinted.push(buffer);
        await this.#freePageQueue().transfer([], [buffer]);
      }
    }
    await this.#sendCommand(VIRTIO_BALLOON_CMD_ID_STOP);
  }

  async #sendCommand(id: number): Promise<void> {
    const buffer = this.dma.alloc(VIRTIO_BALLOON_CMD_ID_SIZE);
    try {
      buffer.write(Uint8Array.of(id, id >>> 8, id >>> 16, id >>> 24));
      await this.#freePageQueue().transfer([buffer], []);
    } finally {
      this.dma.release(buffer);
    }
  }

  #freePageQueue(): VirtQueue {
    const queue = this.queues[VIRTIO_BALLOON_FREE_PAGE_VQ];
    if (queue === undefined) throw new VirtkitError("ERR_VIRTKIT_RESET", `${this.name}: the device is not up`);
    return queue;
  }

  /** The pages are used again only after the device answered, whether it must be told or not. */
  async #deflate(pages: number): Promise<number> {
    const given = this.#pages.slice(-Math.min(pages, PAGES));
    if (pages === 0 || given.length === 0) return 0;
    await this.#tell(VIRTIO_BALLOON_DEFLATEQ, given);
    this.#pages.splice(this.#pages.length - given.length);
    for (const page of given) {
      this.#fill(page);
      this.dma.release(page);
    }
    this.#writeActual();
    return given.length;
  }

  async #tell(index: number, pages: readonly DmaBuffer[]): Promise<void> {
    const queue = this.queues[index];
    if (queue === undefined) throw new VirtkitError("ERR_VIRTKIT_RESET", `${this.name}: the device is not up`);
    const list = this.dma.alloc(pages.length * 4);
    try {
      list.write(new Uint8Array(Uint32Array.from(pages, (page) => page.address / PAGE).buffer));
      await queue.transfer([list], []);
    } finally {
      this.dma.release(list);
    }
  }

  #fill(page: DmaBuffer): void {
    if (!this.features.has(VIRTIO_BALLOON_F_PAGE_POISON)) return;
    page.write(new Uint8Array(new Uint32Array(page.length / 4).fill(this.#poison ?? 0).buffer));
  }

  #writeActual(): void {
    this.writeConfig(VIRTIO_BALLOON_CFG_ACTUAL, 4, this.#pages.length);
  }
}
