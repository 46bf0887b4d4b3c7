import type { Environment, Logger } from "../common/environment.ts";
import { SILENT } from "../common/environment.ts";
import { FeatureSet } from "../common/feature-set.ts";
import { DeviceCore, RING_FEATURES } from "../device/core.ts";
import type { RunningQueue } from "../device/running-queue.ts";
import type { SharedMemoryRegion } from "../device/shared-memory.ts";
import { type DriverContext, VirtioDriver } from "../driver/core.ts";
import type { VirtQueue } from "../driver/virtqueue.ts";
import type { ChainBatch } from "../virtqueue/index.ts";

/** No type that the spec knows. */
export const LOOP_DEVICE_ID = 63;
export const LOOP_F_PLAIN = 0;
/** Requires {@link LOOP_F_PLAIN}. */
export const LOOP_F_DEPENDENT = 1;
/** Offered above 64 bits, to see that feature sets go that far. */
export const LOOP_F_HIGH = 70;
export const LOOP_COPYQ = 0;
export const LOOP_HOLDQ = 1;
/** le64. */
export const LOOP_CFG_VALUE = 0;
/** le32, writable. */
export const LOOP_CFG_WRITABLE = 8;
export const LOOP_CFG_SIZE = 16;

export const nodeEnvironment = (log: Logger = SILENT): Environment => ({
  defer: (task) => void setImmediate(task),
  after: (milliseconds, task) => {
    const timer = setTimeout(task, milliseconds).unref();
    return () => clearTimeout(timer);
  },
  now: () => performance.now(),
  log,
});

/** Copies what is readable to what is writable: on queue 0 at once, on queue 1 when {@link finish} is called. */
export class LoopDevice extends DeviceCore {
  readonly held: { queue: RunningQueue; id: number; bytes: Uint8Array }[] = [];
  readonly configWrites: [offset: number, length: number][] = [];
  resets = 0;
  ready = false;
  /** While true, a reset finds I/O in guest memory and has to wait for {@link release}. */
  borrowing = false;
  #released: (() => void)[] = [];

  constructor(
    options: {
      environment?: Environment;
      features?: FeatureSet;
      queueSizes?: number[];
      sharedMemory?: readonly SharedMemoryRegion[];
      /** Bytes; {@link LOOP_CFG_SIZE} or more. */
      configSize?: number;
    } = {},
  ) {
    super({
      name: "loop0",
      deviceId: LOOP_DEVICE_ID,
      queueSizes: options.queueSizes ?? [64, 16],
      features: options.features ?? FeatureSet.of(LOOP_F_PLAIN, LOOP_F_DEPENDENT, LOOP_F_HIGH),
      ringFeatures: RING_FEATURES,
      configSize: options.configSize ?? LOOP_CFG_SIZE,
      sharedMemory: options.sharedMemory ?? [],
      environment: options.environment ?? nodeEnvironment(),
    });
    this.config.allowWrite(LOOP_CFG_WRITABLE, 4);
    this.config.view.setUint32(LOOP_CFG_VALUE, 0x89abcdef, true);
    this.config.view.setUint32(LOOP_CFG_VALUE + 4, 0x000fedcb, true);
  }

  /** Completes what queue 1 holds, for queues that still run; returns how many were too late. */
  finish(): number {
    let late = 0;
    for (const { queue, id, bytes } of this.held.splice(0)) {
      if (queue.live) {
        queue.queue.push(id, bytes.length);
        queue.publish();
      } else late++;
    }
    return late;
  }

  breakDown(): void {
    this.fail("broken on purpose");
  }

  release(): void {
    this.borrowing = false;
    for (const go of this.#released.splice(0)) go();
  }

  override driverReady(ready: boolean): void {
    this.ready = ready;
  }
  protected override acceptsFeatures(features: FeatureSet): boolean {
    return features.has(LOOP_F_PLAIN) || !features.has(LOOP_F_DEPENDENT);
  }
  protected override onReset(): void {
    this.resets++;
  }
  protected override isBusy(): boolean {
    return this.borrowing;
  }
  protected override async onDrain(): Promise<void> {
    if (this.borrowing) await new Promise<void>((resolve) => this.#released.push(resolve));
  }
  protected override onConfigWritten(offset: number, length: number): void {
    this.configWrites.push([offset, length]);
  }

  protected override onChains(running: RunningQueue, batch: ChainBatch): boolean {
    for (let c = 0; c < batch.count; c++) {
      const id = batch.id[c] as number;
      const bytes = this.#gather(batch, c);
      const written = this.#scatter(batch, c, bytes);
      if (running.index === LOOP_COPYQ) running.queue.push(id, written);
      else this.held.push({ queue: running, id, bytes: bytes.subarray(0, written) });
    }
    return true;
  }

  #gather(batch: ChainBatch, c: number): Uint8Array {
    const all = new Uint8Array(batch.readableBytes[c] as number);
    let done = 0;
    const first = batch.first[c] as number;
    for (let s = first; s < first + (batch.readable[c] as number); s++) {
      const piece = this.#segment(batch, s);
      all.set(piece, done);
      done += piece.length;
    }
    return all;
  }

  #scatter(batch: ChainBatch, c: number, bytes: Uint8Array): number {
    let done = 0;
    const first = (batch.first[c] as number) + (batch.readable[c] as number);
    for (let s = first; s < first + (batch.writable[c] as number); s++) {
      const piece = this.#segment(batch, s);
      const part = bytes.subarray(done, done + piece.length);
      piece.set(part);
      done += part.length;
    }
    return done;
  }

  #segment(batch: ChainBatch, s: number): Uint8Array {
    const region = this.memory.regions[batch.region[s] as number];
    const offset = batch.offset[s] as number;
    return region?.u8.subarray(offset, offset + (batch.length[s] as number)) ?? new Uint8Array(0);
  }
}

/** The driver of {@link LoopDevice}; writes down what happens to it. */
export class LoopDriver extends VirtioDriver {
  static readonly type = {
    name: "loop",
    idTable: [LOOP_DEVICE_ID],
    create: (context: DriverContext) => new LoopDriver(context),
  };
  readonly events: string[] = [];
  queueSize: number | undefined;
  /** Whether a broken device is started anew. */
  recover = true;
  readonly #changes: (() => void)[] = [];

  constructor(context: DriverContext) {
    super(context, {
      name: "loop",
      deviceIds: [LOOP_DEVICE_ID],
      features: [{ bit: LOOP_F_PLAIN }, { bit: LOOP_F_DEPENDENT, requires: [LOOP_F_PLAIN] }, { bit: LOOP_F_HIGH }],
    });
  }

  /** Sends bytes through queue 0 and returns what came back. */
  copy(bytes: Uint8Array, pieces = 1): Promise<Uint8Array> {
    return this.#send(LOOP_COPYQ, bytes, pieces);
  }

  /** The same through queue 1. */
  hold(bytes: Uint8Array): Promise<Uint8Array> {
    return this.#send(LOOP_HOLDQ, bytes, 1);
  }

  value(): number {
    return this.readConfig(LOOP_CFG_VALUE, 8);
  }

  write(value: number): void {
    this.writeConfig(LOOP_CFG_WRITABLE, 4, value);
  }

  /** Resolves at the next configuration change. */
  changed(): Promise<void> {
    return new Promise((resolve) => this.#changes.push(resolve));
  }

  resetHoldQueue(size?: number): Promise<void> {
    const queue = this.queues[LOOP_HOLDQ] as VirtQueue;
    return this.resetQueue(queue, size === undefined ? undefined : { size });
  }

  protected override onSetUp(): void {
    const options = this.queueSize === undefined ? {} : { size: this.queueSize };
    this.setUpQueue(LOOP_COPYQ, options);
    this.setUpQueue(LOOP_HOLDQ, options);
    this.events.push("set up");
  }
  protected override onReady(): void {
    this.events.push("ready");
  }
  protected override onConfigChanged(): void {
    this.events.push("config");
    for (const changed of this.#changes.splice(0)) changed();
  }
  protected override onNeedsReset(): boolean {
    this.events.push("needs reset");
    return this.recover;
  }
  protected override onTearDown(): void {
    this.events.push("torn down");
  }

  async #send(index: number, bytes: Uint8Array, pieces: number): Promise<Uint8Array> {
    const out = this.dma.alloc(bytes.length);
    const back = this.dma.alloc(bytes.length);
    out.write(bytes);
    const cut = Math.ceil(bytes.length / pieces);
    const parts = Array.from({ length: Math.ceil(bytes.length / cut) }, (_, i) =>
      out.slice(i * cut, Math.min(cut, bytes.length - i * cut)),
    );
    try {
      const queue = this.queues[index] as VirtQueue;
      const written = await queue.transfer(parts, [back]);
      return back.read(0, written);
    } finally {
      this.dma.release(out);
      this.dma.release(back);
    }
  }
}
