import {
  BLOCK_DISCARD,
  BLOCK_READ,
  BLOCK_SECURE_ERASE,
  BLOCK_WRITE,
  type BlockBackend,
} from "../backend/block/types.ts";
import type { Environment } from "../common/environment.ts";
import { VirtkitError } from "../common/error.ts";
import { FeatureSet } from "../common/feature-set.ts";
import {
  VIRTIO_BLK_CFG_SIZE,
  VIRTIO_BLK_CFG_WRITEBACK,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_LIFETIME,
  VIRTIO_BLK_F_ZONED,
  VIRTIO_BLK_ID_BYTES,
  VIRTIO_BLK_RANGE_SIZE,
  VIRTIO_BLK_S_IOERR,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_S_UNSUPP,
  VIRTIO_BLK_SECTOR_SIZE,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_GET_ID,
  VIRTIO_BLK_T_GET_LIFETIME,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_ZONE_APPEND,
  VIRTIO_BLK_ZONED_CFG_SIZE,
} from "../spec/blk.ts";
import { VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { VIRTIO_ID_BLOCK } from "../spec/ids.ts";
import type { ChainBatch } from "../virtqueue/index.ts";
import {
  type BlkProperties,
  type BlkSettings,
  blkFeatures,
  checkProperties,
  writeCapacity,
  writeConfig,
} from "./blk/config.ts";
import { RequestFrame } from "./blk/frame.ts";
import { BlkIo, type BlkIoHost, type BlkStats, writeStatus } from "./blk/io.ts";
import { lifetimeBytes, MAX_RANGES, parseRanges, RANGE_TYPES, type RangeLimits, RangeList } from "./blk/ranges.ts";
import { NONE } from "./blk/request-table.ts";
import { requestBegin, requestEnd } from "./blk/trace.ts";
import { APPENDED, type ZonedHost, ZonedRequests } from "./blk/zoned-requests.ts";
import { DeviceCore } from "./core.ts";
import type { RunningQueue } from "./running-queue.ts";
import { SegmentList } from "./segment-list.ts";

export type { BlkProperties } from "./blk/config.ts";
export type { BlkStats } from "./blk/io.ts";
export type { ZonedProperties } from "./blk/zoned-config.ts";

/** Requests in flight, over all queues; more wait in their rings. */
const MAX_REQUESTS = 512;
/** Descriptors of a request that are always allowed; a longer queue allows as many as it has entries. */
const MAX_DESCRIPTORS = 1024;

export interface BlkDeviceOptions extends BlkProperties {
  readonly backend: BlockBackend;
  readonly environment: Environment;
  /** For messages; default "virtio-blk". */
  readonly name?: string;
  readonly ringFeatures?: FeatureSet;
  /** Requests in flight at most, over all queues: 1..65536. Default 512. */
  readonly maxInFlight?: number;
}

/** Block device (VIRTIO 1.4 §5.2) over a {@link BlockBackend}. */
export class BlkDevice extends DeviceCore {
  readonly stats: BlkStats = {
    reads: 0,
    writes: 0,
    flushes: 0,
    readBytes: 0,
    writtenBytes: 0,
    discards: 0,
    zeroes: 0,
    errors: 0,
    unsupported: 0,
    merged: 0,
  };
  /** Called when the medium failed a request; the guest is told by its status. */
  onError: ((operation: "read" | "write") => void) | undefined;
  readonly #backend: BlockBackend;
  readonly #settings: BlkSettings;
  readonly #id: Uint8Array;
  /** For small payloads, which are copied at once. */
  readonly #small = new SegmentList();
  readonly #rangeBytes = new Uint8Array(MAX_RANGES * VIRTIO_BLK_RANGE_SIZE);
  readonly #frame = new RequestFrame();
  readonly #io: BlkIo;
  /** Sectors of a logical block: what sector and length of a request must be multiples of. */
  readonly #blockSectors: number;
  readonly #zoned: ZonedRequests | undefined;
  #capacity: number;
  /** Set while this device is on the stack: completions are then worked off by whoever set it. */
  #depth = 0;
  /** Queues with something to publish, by index. */
  readonly #dirty: Uint8Array;
  /** Queues whose chains wait for room. */
  #parked: RunningQueue[] = [];
  #resumeDeferred = false;
  /** It was logged that the back end threw. */
  #backendThrew = false;
  #drains: { index: number | undefined; resolve: () => void }[] = [];

  /** @throws ERR_VIRTKIT_BLK_OPTION for a property out of range */
  constructor(options: BlkDeviceOptions) {
    const { backend } = options;
    const settings = checkProperties(options, backend);
    super({
      name: options.name ?? "virtio-blk",
      deviceId: VIRTIO_ID_BLOCK,
      queueSizes: new Array<number>(settings.numQueues).fill(settings.queueSize),
      features: blkFeatures(settings),
      // It cannot be negotiated there (device: Block Device / Device Initialization #4).
      modernOnly: FeatureSet.of(VIRTIO_BLK_F_ZONED),
      ...(options.ringFeatures === undefined ? {} : { ringFeatures: options.ringFeatures }),
      configSize: settings.zoned === undefined ? VIRTIO_BLK_CFG_SIZE : VIRTIO_BLK_ZONED_CFG_SIZE,
      environment: options.environment,
    });
    const slots = options.maxInFlight ?? Math.min(MAX_REQUESTS, settings.numQueues * settings.queueSize);
    if (!Number.isInteger(slots) || slots < 1 || slots > 65536)
      throw new VirtkitError(
        "ERR_VIRTKIT_BLK_OPTION",
        `block device: maxInFlight ${slots} is out of range; give 1..65536`,
      );
    this.#backend = backend;
    this.#settings = settings;
    this.#capacity = backend.capacity;
    this.#blockSectors = settings.logicalBlockSize / VIRTIO_BLK_SECTOR_SIZE;
    this.#id = Uint8Array.from({ length: VIRTIO_BLK_ID_BYTES }, (_, i) => settings.serial.charCodeAt(i) || 0);
    this.#dirty = new Uint8Array(settings.numQueues);
    writeConfig(this.config.view, settings, this.#capacity);
    this.config.allowWrite(VIRTIO_BLK_CFG_WRITEBACK, 1);
    this.#initWriteback(true);
    this.#io = new BlkIo(this.#ioHost(), backend, slots, settings.numQueues);
    this.#zoned = settings.zoned && new ZonedRequests(settings.zoned, this.#zonedHost(settings.readOnly));
  }

  get backend(): BlockBackend {
    return this.#backend;
  }

  /** True while a write may complete before it is durable. */
  get writeback(): boolean {
    return this.config.view.getUint8(VIRTIO_BLK_CFG_WRITEBACK) !== 0;
  }

  /** Requests that the back end has now. */
  get inFlight(): number {
    return this.#io.inFlight();
  }

  /**
   * Makes zone `zone` (0 is the first) of a zoned disk fail as hardware does: it can only be read, or is lost altogether. It stays
   * so, also after a reset.
   * @throws ERR_VIRTKIT_BLK_ZONE when there is no such zone
   */
  failZone(zone: number, to: "read-only" | "offline"): void {
    const zones = this.#zoned?.zones;
    if (zones === undefined || !Number.isInteger(zone) || zone < 0 || zone >= zones.count)
      throw new VirtkitError("ERR_VIRTKIT_BLK_ZONE", `${this.name}: no zone ${zone}; there are ${zones?.count ?? 0}`);
    zones.degrade(zone, to);
  }

  // A driver that ignores the zones could only destroy data (device: Block Device / Device Initialization #5).
  protected override acceptsFeatures(features: FeatureSet): boolean {
    if (this.#zoned === undefined) return true;
    return features.has(VIRTIO_BLK_F_ZONED) && features.has(VIRTIO_F_VERSION_1);
  }

  // A driver that cannot flush gets writes that are durable when they complete, whether it can switch the cache or not
  // (device: Block Device / Device Initialization #2, Device Operation #6).
  protected override onFeatures(features: FeatureSet): void {
    this.#initWriteback(features.has(VIRTIO_BLK_F_FLUSH));
  }

  protected override onReset(): void {
    this.#initWriteback(true);
    this.#parked = [];
  }

  protected override onConfigWritten(): void {
    if (!this.features.has(VIRTIO_BLK_F_CONFIG_WCE)) this.#initWriteback(this.features.has(VIRTIO_BLK_F_FLUSH));
    else this.config.view.setUint8(VIRTIO_BLK_CFG_WRITEBACK, this.writeback ? 1 : 0);
  }

  /** Waits for the back end to let go of every request of queue `index`, or of all. */
  protected override onDrain(index?: number): Promise<void> {
    if (this.#drained(index)) return Promise.resolve();
    return new Promise((resolve) => this.#drains.push({ index, resolve }));
  }

  /** Only where the back end has guest memory itself: own buffers are disowned instead. */
  protected override isBusy(index?: number): boolean {
    return this.memory.fixed && !this.#backend.inline && !this.#drained(index);
  }

  // A write that is still on its way must not overtake the writes of whoever uses the disk next: those wait for it.
  protected override onQueueStop(stopped: RunningQueue): void {
    this.#io.stopped(stopped);
    this.#parked = this.#parked.filter((running) => running !== stopped);
    this.#dirty[stopped.index] = 0;
  }

  protected override onChains(running: RunningQueue, batch: ChainBatch): boolean {
    let taken = 0;
    this.#depth++;
    if (this.#io.disownedWrites === 0) {
      while (taken < batch.count && this.#hasRoom() && this.#take(running, batch, taken)) taken++;
    }
    this.#io.submit();
    this.#depth--;
    this.#publishOthers(running);
    if (this.#parked.length > 0 && this.inFlight === 0) this.#deferResume();
    if (!running.live) return false;
    if (taken === batch.count) return true;
    running.queue.unpop(batch.count - taken);
    this.#park(running);
    return false;
  }

  #ioHost(): BlkIoHost {
    const device = this;
    return {
      get memory() {
        return device.memory;
      },
      get tracer() {
        return device.tracer;
      },
      get writeback() {
        return device.writeback;
      },
      stats: this.stats,
      pushed: (running) => {
        this.#dirty[running.index] = 1;
      },
      completed: () => this.#completed(),
      failed: (op) => this.onError?.(op === BLOCK_READ ? "read" : "write"),
      resized: (capacity) => {
        if (this.#zoned !== undefined) {
          this.environment.log.log("warn", `${this.name}: a zoned disk keeps its size`);
          return;
        }
        this.#capacity = capacity;
        this.config.update((view) => writeCapacity(view, capacity));
      },
      threw: (error) => {
        if (!this.#backendThrew)
          this.environment.log.log("error", `${this.name}: ${this.#backend.name}: ${String(error)}`);
        this.#backendThrew = true;
      },
      deferred: () => this.#deferResume(),
    };
  }

  #zonedHost(readOnly: boolean): ZonedHost {
    const device = this;
    return {
      readOnly,
      frame: this.#frame,
      io: this.#io,
      get memory() {
        return device.memory;
      },
      get negotiated() {
        return device.features.has(VIRTIO_BLK_F_ZONED);
      },
      begun: (running, batch, c) => {
        this.tracer?.emit(requestBegin(running.index, batch.id[c] as number, this.#frame));
      },
      answer: (running, batch, c, filled) => this.#answer(running, batch, c, VIRTIO_BLK_S_OK, filled),
      answerBytes: (running, batch, c, bytes) => this.#answerBytes(running, batch, c, bytes),
      refuse: (running, batch, c, status) => this.#refuse(running, batch, c, status),
    };
  }

  #initWriteback(canFlush: boolean): void {
    const on = canFlush && this.#settings.writeCache === "on";
    this.config.view.setUint8(VIRTIO_BLK_CFG_WRITEBACK, on ? 1 : 0);
  }

  #hasRoom(): boolean {
    if (this.broken !== undefined || this.#io.turnIsOver) return false;
    if (this.#io.full) this.#io.submit();
    return !this.#io.full;
  }

  /** Begins the request of chain `c`; false when it has to wait or is none. */
  #take(running: RunningQueue, batch: ChainBatch, c: number): boolean {
    const frame = this.#frame;
    const reason = frame.read(this.memory, batch, c);
    if (reason !== undefined) {
      this.fail(`queue ${running.index}: ${reason}`);
      return false;
    }
    switch (frame.type) {
      case VIRTIO_BLK_T_IN:
        return this.#takeTransfer(running, batch, c, BLOCK_READ, frame.writableBytes);
      case VIRTIO_BLK_T_OUT:
        return this.#takeTransfer(running, batch, c, BLOCK_WRITE, frame.readableBytes);
      case VIRTIO_BLK_T_FLUSH:
        this.tracer?.emit(requestBegin(running.index, batch.id[c] as number, frame));
        this.#io.flush(running, batch.id[c] as number, frame);
        return true;
      case VIRTIO_BLK_T_GET_ID:
        this.#answerBytes(running, batch, c, this.#id);
        return true;
      case VIRTIO_BLK_T_GET_LIFETIME:
        this.#answerLifetime(running, batch, c);
        return true;
      case VIRTIO_BLK_T_ZONE_APPEND:
        return this.#takeAppend(running, batch, c);
      default:
        if (this.#zoned?.manage(running, batch, c) !== true) this.#takeRanges(running, batch, c);
        return true;
    }
  }

  #takeAppend(running: RunningQueue, batch: ChainBatch, c: number): boolean {
    const status = this.#zoned?.beginAppend(batch, c) ?? VIRTIO_BLK_S_UNSUPP;
    if (status === VIRTIO_BLK_S_OK)
      return this.#takeTransfer(running, batch, c, BLOCK_WRITE, this.#frame.readableBytes, APPENDED);
    this.#refuse(running, batch, c, status);
    return true;
  }

  /** Discard, write zeroes, secure erase; what is none of them is unknown. */
  #takeRanges(running: RunningQueue, batch: ChainBatch, c: number): void {
    const type = RANGE_TYPES.get(this.#frame.type);
    if (type === undefined || !this.features.has(type.feature)) {
      this.#refuse(running, batch, c, VIRTIO_BLK_S_UNSUPP);
      return;
    }
    const ranges = new RangeList(type.op);
    const status = this.#readRanges(batch, c, ranges) || (this.#zoned?.erase(ranges) ?? VIRTIO_BLK_S_OK);
    if (status !== VIRTIO_BLK_S_OK) this.#refuse(running, batch, c, status);
    else if (ranges.count === 0) this.#answer(running, batch, c, VIRTIO_BLK_S_OK, 0);
    else {
      this.tracer?.emit(requestBegin(running.index, batch.id[c] as number, this.#frame));
      this.#io.beginRanges(running, batch.id[c] as number, this.#frame, ranges);
    }
  }

  #readRanges(batch: ChainBatch, c: number, into: RangeList): number {
    const { readableBytes } = this.#frame;
    if (this.#settings.readOnly || readableBytes > this.#rangeBytes.length) return VIRTIO_BLK_S_IOERR;
    this.#small.clear();
    this.#frame.readableData(this.memory, batch, c, this.#small);
    if (!this.#small.copyTo(this.#rangeBytes, readableBytes)) return VIRTIO_BLK_S_IOERR;
    return parseRanges(this.#rangeBytes.subarray(0, readableBytes), into, this.#rangeLimits(into.op));
  }

  #rangeLimits(op: number): RangeLimits {
    const { maxSegments, maxDiscardSectors, maxWriteZeroesSectors, maxSecureEraseSectors } = this.#settings;
    const others = op === BLOCK_SECURE_ERASE ? maxSecureEraseSectors : maxWriteZeroesSectors;
    return {
      maxSegments,
      maxSectors: op === BLOCK_DISCARD ? maxDiscardSectors : others,
      blockSectors: this.#blockSectors,
      capacity: this.#capacity / VIRTIO_BLK_SECTOR_SIZE,
    };
  }

  #answerLifetime(running: RunningQueue, batch: ChainBatch, c: number): void {
    const { lifetime } = this.#backend;
    if (lifetime === undefined || !this.features.has(VIRTIO_BLK_F_LIFETIME))
      this.#refuse(running, batch, c, VIRTIO_BLK_S_UNSUPP);
    else this.#answerBytes(running, batch, c, lifetimeBytes(lifetime));
  }

  #refuse(running: RunningQueue, batch: ChainBatch, c: number, status: number): void {
    if (status === VIRTIO_BLK_S_UNSUPP) this.stats.unsupported++;
    else this.stats.errors++;
    this.#answer(running, batch, c, status, 0);
  }

  /** @param appended bytes in front of the status byte that are written already */
  #takeTransfer(running: RunningQueue, batch: ChainBatch, c: number, op: number, bytes: number, appended = 0): boolean {
    const { sector } = this.#frame;
    const descriptors = (op === BLOCK_READ ? batch.writable[c] : batch.readable[c]) as number;
    if (!this.#isValid(op, sector, bytes, descriptors)) {
      this.#refuse(running, batch, c, VIRTIO_BLK_S_IOERR);
      return true;
    }
    if (op === BLOCK_READ && this.#zoned !== undefined) return this.#zoned.read(running, batch, c);
    if (bytes === 0) {
      const status = (op === BLOCK_WRITE && this.#zoned?.zones.write(sector, 0)) || VIRTIO_BLK_S_OK;
      if (status === VIRTIO_BLK_S_OK) this.#answer(running, batch, c, status, appended);
      else this.#refuse(running, batch, c, status);
      return true;
    }
    const slot = this.#io.transfer(running, batch.id[c] as number, this.#frame, bytes, descriptors);
    if (slot === NONE) return false;
    // Only now that nothing can put the request off: this moves the write pointer.
    const status = (op === BLOCK_WRITE && this.#zoned?.zones.write(sector, bytes / VIRTIO_BLK_SECTOR_SIZE)) || 0;
    if (status !== VIRTIO_BLK_S_OK) {
      this.#io.cancel(slot);
      this.#refuse(running, batch, c, status);
      return true;
    }
    this.#io.filled(slot, appended);
    this.tracer?.emit(requestBegin(running.index, batch.id[c] as number, this.#frame));
    const segments = this.#io.segments(slot);
    if (op === BLOCK_READ) this.#frame.writableData(this.memory, batch, c, bytes, segments);
    else this.#frame.readableData(this.memory, batch, c, segments);
    this.#io.begin(slot, op, sector * VIRTIO_BLK_SECTOR_SIZE);
    return true;
  }

  /** Whether the disk has these sectors, in whole blocks, and takes the request at all. */
  #isValid(op: number, sector: number, bytes: number, descriptors: number): boolean {
    if (op === BLOCK_WRITE && this.#settings.readOnly) return false;
    const sectors = bytes / VIRTIO_BLK_SECTOR_SIZE;
    if (sectors % this.#blockSectors !== 0 || sector % this.#blockSectors !== 0) return false;
    if (sector + sectors > this.#capacity / VIRTIO_BLK_SECTOR_SIZE) return false;
    return descriptors <= Math.max(MAX_DESCRIPTORS, this.#settings.queueSize);
  }

  /** Answers with as much of `bytes` as the driver has room for. */
  #answerBytes(running: RunningQueue, batch: ChainBatch, c: number, bytes: Uint8Array): void {
    const length = Math.min(this.#frame.writableBytes, bytes.length);
    this.#small.clear();
    this.#frame.writableData(this.memory, batch, c, length, this.#small);
    this.#small.copyFrom(bytes, length, this.memory);
    this.#answer(running, batch, c, VIRTIO_BLK_S_OK, length);
  }

  /** A request that needs no back end: `filled` of its writable data bytes were written from the first on. */
  #answer(running: RunningQueue, batch: ChainBatch, c: number, status: number, filled: number): void {
    const { statusRegion, statusOffset, writableBytes } = this.#frame;
    this.tracer?.emit(requestBegin(running.index, batch.id[c] as number, this.#frame));
    writeStatus(this.memory, statusRegion, statusOffset, status);
    this.tracer?.emit(requestEnd(running.index, batch.id[c] as number, status));
    running.queue.push(batch.id[c] as number, filled === writableBytes ? filled + 1 : filled);
  }

  #completed(): void {
    if (this.#depth > 0) return;
    this.#resume();
  }

  /** Publishes every queue that has something to publish, but for the one that its caller publishes. */
  #publishOthers(but: RunningQueue | undefined): void {
    for (let index = 0; index < this.#dirty.length; index++) {
      if (this.#dirty[index] === 0) continue;
      this.#dirty[index] = 0;
      const running = this.queue(index);
      if (running !== but) running?.publish();
    }
    this.#settleDrains();
  }

  #park(running: RunningQueue): void {
    if (this.broken !== undefined) return;
    if (!this.#parked.includes(running)) this.#parked.push(running);
    if (this.#io.turnIsOver || this.inFlight === 0) this.#deferResume();
  }

  #deferResume(): void {
    if (this.#resumeDeferred) return;
    this.#resumeDeferred = true;
    this.environment.defer(() => {
      this.#resumeDeferred = false;
      this.#io.nextTurn();
      this.#resume();
    });
  }

  #resume(): void {
    this.#depth++;
    this.#io.goOn();
    this.#io.submit();
    this.#depth--;
    this.#publishOthers(undefined);
    if (this.#parked.length === 0) return;
    const parked = this.#parked;
    this.#parked = [];
    for (const running of parked) if (running.live && this.broken === undefined) this.service(running);
  }

  #drained(index: number | undefined): boolean {
    return this.#io.inFlight(index) === 0;
  }

  #settleDrains(): void {
    if (this.#drains.length === 0) return;
    const settled = this.#drains.filter((drain) => this.#drained(drain.index));
    this.#drains = this.#drains.filter((drain) => !settled.includes(drain));
    for (const drain of settled) drain.resolve();
  }
}
