import { VirtkitError } from "../common/error.ts";
import type { FeatureSet } from "../common/feature-set.ts";
import {
  VIRTIO_BLK_CFG_BLK_SIZE,
  VIRTIO_BLK_CFG_CAPACITY,
  VIRTIO_BLK_CFG_CYLINDERS,
  VIRTIO_BLK_CFG_HEADS,
  VIRTIO_BLK_CFG_MIN_IO_SIZE,
  VIRTIO_BLK_CFG_NUM_QUEUES,
  VIRTIO_BLK_CFG_OPT_IO_SIZE,
  VIRTIO_BLK_CFG_PHYSICAL_BLOCK_EXP,
  VIRTIO_BLK_CFG_SECTORS,
  VIRTIO_BLK_CFG_SEG_MAX,
  VIRTIO_BLK_CFG_SIZE_MAX,
  VIRTIO_BLK_CFG_WRITEBACK,
  VIRTIO_BLK_CFG_ZONED_MODEL,
  VIRTIO_BLK_F_BLK_SIZE,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_GEOMETRY,
  VIRTIO_BLK_F_LIFETIME,
  VIRTIO_BLK_F_MQ,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_F_SEG_MAX,
  VIRTIO_BLK_F_SIZE_MAX,
  VIRTIO_BLK_F_TOPOLOGY,
  VIRTIO_BLK_F_ZONED,
  VIRTIO_BLK_ID_BYTES,
  VIRTIO_BLK_LIFETIME_SIZE,
  VIRTIO_BLK_REQ_HEADER_SIZE,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_S_UNSUPP,
  VIRTIO_BLK_S_ZONE_INVALID_CMD,
  VIRTIO_BLK_SECTOR_SIZE,
  VIRTIO_BLK_T_FLUSH,
  VIRTIO_BLK_T_GET_ID,
  VIRTIO_BLK_T_GET_LIFETIME,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_ZONE_REPORT,
  VIRTIO_BLK_Z_HA,
  VIRTIO_BLK_Z_HM,
  VIRTIO_BLK_ZONE_REPORT_HEADER_SIZE,
} from "../spec/blk.ts";
import { VIRTIO_ID_BLOCK } from "../spec/ids.ts";
import type { BlkBatch } from "./blk/batch.ts";
import { BLK_FEATURES } from "./blk/features.ts";
import { type BlkLifetime, decodeLifetime } from "./blk/lifetime.ts";
import { DISCARD, encodeRanges, type RangeKind, SECURE_ERASE, splitRange, WRITE_ZEROES } from "./blk/ranges.ts";
import { BlkSlots } from "./blk/slots.ts";
import { BlkZones, readZoneLimits } from "./blk/zones.ts";
import type { DriverType } from "./bus.ts";
import { type DriverContext, VirtioDriver } from "./core.ts";
import type { DmaBuffer, DmaSegment } from "./dma.ts";
import type { VirtQueue } from "./virtqueue.ts";

export { BlkBatch } from "./blk/batch.ts";
export type { BlkLifetime } from "./blk/lifetime.ts";
export type { BlkZone, BlkZoneLimits, BlkZones } from "./blk/zones.ts";

/** Bytes of one request of {@link BlkDriver.read} and {@link BlkDriver.write}. */
const CHUNK = 256 * 1024;
/** Segments of a request that the driver makes at most, whatever the device allows. */
const SEGMENTS = 254;
const NO_LIMIT = 2 ** 32 - 1;

/** The disk's units, for who wants to align to them. Bytes; 0 where the device says nothing. */
export interface BlkTopology {
  readonly logicalBlockSize: number;
  readonly physicalBlockSize: number;
  readonly minIoSize: number;
  readonly optIoSize: number;
}

interface Pending {
  readonly type: number;
  readonly sector: number;
  readonly out: readonly DmaSegment[];
  readonly in: readonly DmaSegment[];
  readonly resolve: (status: number) => void;
  readonly reject: (error: Error) => void;
}

/** Driver of the block device (VIRTIO 1.4 §5.2). Offsets and lengths are in bytes, multiples of 512. */
export class BlkDriver extends VirtioDriver {
  static readonly type: DriverType<BlkDriver> = {
    name: "virtio_blk",
    idTable: [VIRTIO_ID_BLOCK],
    create: (context) => new BlkDriver(context),
  };

  /** Called when the device's size has changed. */
  onCapacityChanged: ((capacity: number) => void) | undefined;
  #capacity = 0;
  #sizeMax = NO_LIMIT;
  #segMax = SEGMENTS;
  #zones: BlkZones | undefined;
  #slots: BlkSlots[] = [];
  #pending: Pending[] = [];
  #nextQueue = 0;
  readonly #sg = { address: new Float64Array(SEGMENTS + 2), length: new Uint32Array(SEGMENTS + 2) };

  constructor(context: DriverContext) {
    super(context, {
      name: "virtio_blk",
      deviceIds: [VIRTIO_ID_BLOCK],
      features: BLK_FEATURES,
    });
  }

  /** Bytes. */
  get capacity(): number {
    return this.#capacity;
  }

  get readOnly(): boolean {
    return this.features.has(VIRTIO_BLK_F_RO);
  }

  /** Bytes of the unit that reads and writes are made of. */
  get blockSize(): number {
    return this.features.has(VIRTIO_BLK_F_BLK_SIZE) ? this.readConfig(VIRTIO_BLK_CFG_BLK_SIZE, 4) : 512;
  }

  get topology(): BlkTopology {
    const block = this.blockSize;
    const known = this.features.has(VIRTIO_BLK_F_TOPOLOGY);
    return {
      logicalBlockSize: block,
      physicalBlockSize: known ? block * 2 ** this.readConfig(VIRTIO_BLK_CFG_PHYSICAL_BLOCK_EXP, 1) : block,
      minIoSize: known ? block * this.readConfig(VIRTIO_BLK_CFG_MIN_IO_SIZE, 2) : 0,
      optIoSize: known ? block * this.readConfig(VIRTIO_BLK_CFG_OPT_IO_SIZE, 4) : 0,
    };
  }

  /** Cylinders, heads and sectors for software of old, or undefined. */
  get geometry(): { cylinders: number; heads: number; sectors: number } | undefined {
    if (!this.features.has(VIRTIO_BLK_F_GEOMETRY)) return undefined;
    return {
      cylinders: this.readConfig(VIRTIO_BLK_CFG_CYLINDERS, 2),
      heads: this.readConfig(VIRTIO_BLK_CFG_HEADS, 1),
      sectors: this.readConfig(VIRTIO_BLK_CFG_SECTORS, 1),
    };
  }

  /** The zones of a host-managed disk; undefined for any other. */
  get zones(): BlkZones | undefined {
    return this.#zones;
  }

  /** Most segments of a request, and most bytes of a segment. */
  get limits(): { segMax: number; sizeMax: number } {
    return { segMax: this.#segMax, sizeMax: this.#sizeMax };
  }

  /** True while a completed write may be lost unless {@link flush} is called. */
  get writeback(): boolean {
    if (this.features.has(VIRTIO_BLK_F_CONFIG_WCE)) return this.readConfig(VIRTIO_BLK_CFG_WRITEBACK, 1) !== 0;
    return this.features.has(VIRTIO_BLK_F_FLUSH);
  }

  /** @throws ERR_VIRTKIT_BLK_UNSUPPORTED when the device does not let its cache be switched */
  setWriteback(on: boolean): void {
    if (!this.features.has(VIRTIO_BLK_F_CONFIG_WCE))
      throw new VirtkitError(
        "ERR_VIRTKIT_BLK_UNSUPPORTED",
        `${this.name}: the device has no switch for its write cache`,
      );
    this.writeConfig(VIRTIO_BLK_CFG_WRITEBACK, 1, on ? 1 : 0);
  }

  /**
   * Reads `length` bytes at `offset`.
   * @throws ERR_VIRTKIT_BLK_RANGE for a range that is not on the disk or not made of blocks, ERR_VIRTKIT_BLK_IO when the
   * device fails, ERR_VIRTKIT_RESET when it was reset meanwhile
   */
  async read(offset: number, length: number): Promise<Uint8Array> {
    this.#checkRange(offset, length);
    const bytes = new Uint8Array(length);
    for (const [at, n] of this.#parts(offset, length))
      await this.#withBuffer(n, async (buffer) => {
        const sector = at / VIRTIO_BLK_SECTOR_SIZE;
        this.#checkStatus(await this.request(VIRTIO_BLK_T_IN, sector, [], this.#split(buffer)), `read at ${at}`);
        bytes.set(buffer.bytes, at - offset);
      });
    return bytes;
  }

  /**
   * Writes `bytes` at `offset`. Throws as {@link read} does, ERR_VIRTKIT_BLK_READ_ONLY, and on a host-managed disk ERR_VIRTKIT_BLK_ZONE
   * for what its {@link zones} do not take.
   */
  async write(offset: number, bytes: Uint8Array): Promise<void> {
    this.#checkRange(offset, bytes.length);
    if (this.readOnly) throw new VirtkitError("ERR_VIRTKIT_BLK_READ_ONLY", `${this.name}: the disk is read-only`);
    const write = () => this.#write(offset, bytes);
    await (this.#zones === undefined ? write() : this.#zones.write(offset, bytes.length, write));
  }

  async #write(offset: number, bytes: Uint8Array): Promise<void> {
    for (const [at, n] of this.#parts(offset, bytes.length))
      await this.#withBuffer(n, async (buffer) => {
        buffer.write(bytes.subarray(at - offset, at - offset + n));
        const sector = at / VIRTIO_BLK_SECTOR_SIZE;
        this.#checkStatus(await this.request(VIRTIO_BLK_T_OUT, sector, this.#split(buffer), []), `write at ${at}`);
      });
  }

  /** Resolves when every write that was completed before is durable. Nothing to do where the device has no cache. */
  async flush(): Promise<void> {
    if (!this.features.has(VIRTIO_BLK_F_FLUSH)) return;
    this.#checkStatus(await this.request(VIRTIO_BLK_T_FLUSH, 0, [], []), "flush");
  }

  /** The disk's serial number; up to 20 characters. */
  async getId(): Promise<string> {
    return this.#withBuffer(VIRTIO_BLK_ID_BYTES, async (buffer) => {
      this.#checkStatus(await this.request(VIRTIO_BLK_T_GET_ID, 0, [], [buffer]), "GET_ID");
      const bytes = buffer.bytes;
      const end = bytes.indexOf(0);
      return String.fromCharCode(...bytes.subarray(0, end < 0 ? bytes.length : end));
    });
  }

  /**
   * Tells the device that the range is no longer needed; what it reads as afterwards is open. Throws as {@link write} does, and
   * ERR_VIRTKIT_BLK_UNSUPPORTED where the device does not offer it.
   */
  discard(offset: number, length: number): Promise<void> {
    return this.#changeRange(DISCARD, offset, length, false);
  }

  /** Makes the range read as zeros; with `unmap` the device may give its space back. Throws as {@link discard} does. */
  writeZeroes(offset: number, length: number, options: { readonly unmap?: boolean } = {}): Promise<void> {
    return this.#changeRange(WRITE_ZEROES, offset, length, options.unmap ?? false);
  }

  /** Erases the range for good. Throws as {@link discard} does. */
  secureErase(offset: number, length: number): Promise<void> {
    return this.#changeRange(SECURE_ERASE, offset, length, false);
  }

  /** How worn the medium is. @throws ERR_VIRTKIT_BLK_UNSUPPORTED when the device does not know */
  async getLifetime(): Promise<BlkLifetime> {
    if (!this.features.has(VIRTIO_BLK_F_LIFETIME)) throw this.#unsupported("GET_LIFETIME");
    return this.#withBuffer(VIRTIO_BLK_LIFETIME_SIZE, async (buffer) => {
      this.#checkStatus(await this.request(VIRTIO_BLK_T_GET_LIFETIME, 0, [], [buffer]), "GET_LIFETIME");
      return decodeLifetime(buffer.read());
    });
  }

  /**
   * One request over the caller's own DMA buffers, as it is: the caller keeps to {@link limits}. Resolves with the
   * device's status, VIRTIO_BLK_S_*.
   * @throws ERR_VIRTKIT_RESET when the device was reset before it used the request, ERR_VIRTKIT_BLK_RANGE for too many
   * segments, ERR_VIRTKIT_CHAIN when it does not fit the queue
   */
  request(type: number, sector: number, out: readonly DmaSegment[], in_: readonly DmaSegment[]): Promise<number> {
    return new Promise((resolve, reject) => {
      if (out.length + in_.length > SEGMENTS) {
        reject(new VirtkitError("ERR_VIRTKIT_BLK_RANGE", `${this.name}: a request has at most ${SEGMENTS} segments`));
        return;
      }
      if (this.state !== "ready") {
        reject(this.#resetError());
        return;
      }
      const pending: Pending = { type, sector, out, in: in_, resolve, reject };
      if (this.#pending.length > 0 || !this.#send(pending)) this.#pending.push(pending);
    });
  }

  /**
   * Hands requests `first` .. `first + count - 1` of the batch to the device, with one kick. Returns how many went; the
   * rest goes when some of them are completed. The caller keeps to the disk's capacity and {@link limits}.
   */
  submit(batch: BlkBatch, first: number, count: number, queue = 0): number {
    const ring = this.queues[queue];
    const slots = this.#slots[queue];
    if (ring === undefined || slots === undefined) return 0;
    const { address, length } = this.#sg;
    let sent = 0;
    while (sent < count && slots.free > 0) {
      const i = first + sent;
      const type = batch.type[i] as number;
      const bytes = batch.length[i] as number;
      const reads = type === VIRTIO_BLK_T_IN;
      const slot = slots.take(type, batch.sector[i] as number, reads ? bytes : 0);
      const status = bytes > 0 ? 2 : 1;
      address[0] = slots.headerAddress(slot);
      length[0] = VIRTIO_BLK_REQ_HEADER_SIZE;
      address[1] = batch.address[i] as number;
      length[1] = bytes;
      address[status] = slots.statusAddress(slot);
      length[status] = 1;
      if (!ring.add(this.#sg, 0, reads ? 1 : status, reads ? status : 1, slot)) {
        slots.giveBack(slot);
        break;
      }
      slots.setBatch(slot, batch, i);
      sent++;
    }
    if (sent > 0) ring.kick();
    return sent;
  }

  // A host-managed disk has no use for DISCARD (driver: Block Device / Device Initialization #3). One that may be written
  // anywhere is used like any other.
  protected override onValidate(features: FeatureSet): FeatureSet {
    if (!features.has(VIRTIO_BLK_F_ZONED)) return features;
    const model = this.readConfig(VIRTIO_BLK_CFG_ZONED_MODEL, 1);
    if (model > VIRTIO_BLK_Z_HA)
      throw new VirtkitError("ERR_VIRTKIT_BLK_UNSUPPORTED", `${this.name}: zoned model ${model} is not known`);
    return model === VIRTIO_BLK_Z_HM ? features.without(VIRTIO_BLK_F_DISCARD) : features;
  }

  protected override onSetUp(): void {
    const { features } = this;
    this.#capacity = this.#readCapacity();
    this.#sizeMax = features.has(VIRTIO_BLK_F_SIZE_MAX)
      ? this.readConfig(VIRTIO_BLK_CFG_SIZE_MAX, 4) || NO_LIMIT
      : NO_LIMIT;
    const segMax = features.has(VIRTIO_BLK_F_SEG_MAX) ? this.readConfig(VIRTIO_BLK_CFG_SEG_MAX, 4) : 1;
    this.#segMax = Math.min(Math.max(segMax, 1), SEGMENTS);
    const queues = features.has(VIRTIO_BLK_F_MQ) ? Math.max(1, this.readConfig(VIRTIO_BLK_CFG_NUM_QUEUES, 2)) : 1;
    for (let i = 0; i < queues && this.queueMaxSize(i) > 0; i++) {
      const queue = this.setUpQueue(i);
      this.#segMax = Math.max(1, Math.min(this.#segMax, queue.size - 2));
      this.#slots.push(new BlkSlots(this.dma, queue.size));
    }
    const isZoned = features.has(VIRTIO_BLK_F_ZONED);
    this.#zones =
      isZoned && this.readConfig(VIRTIO_BLK_CFG_ZONED_MODEL, 1) === VIRTIO_BLK_Z_HM ? this.#openZones() : undefined;
  }

  #openZones(): BlkZones {
    const driver = this;
    const host = {
      name: this.name,
      get capacity() {
        return driver.#capacity;
      },
      ask: async (type: number, sector: number, out: readonly DmaSegment[], in_: readonly DmaSegment[]) =>
        this.#checkStatus(await this.request(type, sector, out, in_), `zone request ${type} at sector ${sector}`),
      withBuffer: <T>(length: number, use: (buffer: DmaBuffer) => Promise<T>) => this.#withBuffer(length, use),
      split: (buffer: DmaBuffer) => this.#split(buffer),
    };
    return new BlkZones(
      host,
      readZoneLimits((offset) => this.readConfig(offset, 4)),
    );
  }

  protected override onTearDown(): void {
    for (const slots of this.#slots) slots.release();
    this.#slots = [];
    for (const pending of this.#pending.splice(0)) pending.reject(this.#resetError());
  }

  protected override onUsed(queue: VirtQueue, token: number, written: number): void {
    this.#slots[queue.index]?.finish(token, written);
    if (this.#pending.length > 0) this.#sendPending();
  }

  protected override onUnused(queue: VirtQueue, token: number): void {
    this.#slots[queue.index]?.abandon(token, this.#resetError());
  }

  protected override onConfigChanged(): void {
    const capacity = this.#readCapacity();
    if (capacity === this.#capacity) return;
    this.#capacity = capacity;
    this.onCapacityChanged?.(capacity);
  }

  #readCapacity(): number {
    return this.readConfig(VIRTIO_BLK_CFG_CAPACITY, 8) * VIRTIO_BLK_SECTOR_SIZE;
  }

  #sendPending(): void {
    for (let next = this.#pending[0]; next !== undefined && this.#send(next); next = this.#pending[0])
      this.#pending.shift();
  }

  /** Tries each queue in turn; false when none has room. */
  #send(pending: Pending): boolean {
    for (let tries = 0; tries < this.#slots.length; tries++) {
      const index = this.#nextQueue++ % this.#slots.length;
      if (this.#sendOn(index, pending)) return true;
    }
    return false;
  }

  #sendOn(index: number, { type, sector, out, in: in_, resolve, reject }: Pending): boolean {
    const slots = this.#slots[index];
    const queue = this.queues[index];
    if (slots === undefined || queue === undefined || slots.free === 0) return false;
    const room = in_.reduce((sum, segment) => sum + segment.length, 0);
    // A report has as many zones as there are.
    const expected = type === VIRTIO_BLK_T_ZONE_REPORT ? VIRTIO_BLK_ZONE_REPORT_HEADER_SIZE : room;
    const slot = slots.take(type, sector, expected);
    const { address, length } = this.#sg;
    let n = 0;
    const add = (at: number, bytes: number): void => {
      address[n] = at;
      length[n++] = bytes;
    };
    add(slots.headerAddress(slot), VIRTIO_BLK_REQ_HEADER_SIZE);
    for (const segment of out) add(segment.address, segment.length);
    for (const segment of in_) add(segment.address, segment.length);
    add(slots.statusAddress(slot), 1);
    try {
      if (!queue.add(this.#sg, 0, 1 + out.length, in_.length + 1, slot)) {
        slots.giveBack(slot);
        return false;
      }
    } catch (error) {
      // It can never fit. It is dealt with then, so that nobody behind it waits for it.
      slots.giveBack(slot);
      reject(error instanceof Error ? error : new Error(String(error)));
      return true;
    }
    slots.setWaiter(slot, { resolve, reject });
    queue.kick();
    return true;
  }

  async #changeRange(kind: RangeKind, offset: number, length: number, unmap: boolean): Promise<void> {
    if (!this.features.has(kind.feature)) throw this.#unsupported(kind.name);
    this.#checkRange(offset, length);
    if (this.readOnly) throw new VirtkitError("ERR_VIRTKIT_BLK_READ_ONLY", `${this.name}: the disk is read-only`);
    const maxSectors = Math.max(1, this.readConfig(kind.maxSectors, 4));
    const maxSegments = Math.max(1, this.readConfig(kind.maxSegments, 4));
    for (const request of splitRange(offset, length, { maxSectors, maxSegments, blockSize: this.blockSize })) {
      const bytes = encodeRanges(request, unmap);
      await this.#withBuffer(bytes.length, async (buffer) => {
        buffer.write(bytes);
        this.#checkStatus(await this.request(kind.type, 0, [buffer], []), `${kind.name} at ${offset}`);
      });
    }
  }

  /** Bytes that one request of ours moves: whole blocks, within what the device allows. */
  #chunk(): number {
    const block = Math.max(this.blockSize, this.#zones?.limits.writeGranularity ?? 0);
    const most = Math.min(CHUNK, this.#segMax * this.#sizeMax);
    return Math.max(block, most - (most % block));
  }

  /** The requests that a range is cut into. */
  *#parts(offset: number, length: number): Generator<[offset: number, length: number]> {
    const most = this.#chunk();
    for (const [from, size] of this.#zones?.parts(offset, length) ?? [[offset, length] as const])
      for (let at = from; at < from + size; at += most) yield [at, Math.min(from + size - at, most)];
  }

  #split(buffer: DmaBuffer): DmaSegment[] {
    const segments: DmaSegment[] = [];
    for (let at = 0; at < buffer.length; at += this.#sizeMax)
      segments.push({ address: buffer.address + at, length: Math.min(this.#sizeMax, buffer.length - at) });
    return segments;
  }

  async #withBuffer<T>(length: number, use: (buffer: DmaBuffer) => Promise<T>): Promise<T> {
    const buffer = this.dma.alloc(length, 16);
    try {
      return await use(buffer);
    } finally {
      this.dma.release(buffer);
    }
  }

  #checkRange(offset: number, length: number): void {
    const block = this.state === "ready" ? this.blockSize : 1;
    const aligned = offset % block === 0 && length % block === 0;
    if (!aligned || !(offset >= 0) || !(length >= 0) || offset + length > this.#capacity)
      throw new VirtkitError(
        "ERR_VIRTKIT_BLK_RANGE",
        `${this.name}: no range ${offset}+${length} in blocks of ${block} on a disk of ${this.#capacity} bytes`,
      );
  }

  #checkStatus(status: number, what: string): void {
    if (status === VIRTIO_BLK_S_OK) return;
    if (status === VIRTIO_BLK_S_UNSUPP) throw this.#unsupported(what);
    if (status >= VIRTIO_BLK_S_ZONE_INVALID_CMD && this.#zones !== undefined)
      throw new VirtkitError("ERR_VIRTKIT_BLK_ZONE", `${this.name}: refused, ${what} (status ${status})`);
    throw new VirtkitError("ERR_VIRTKIT_BLK_IO", `${this.name}: I/O error, ${what} (status ${status})`);
  }

  #unsupported(what: string): VirtkitError {
    return new VirtkitError("ERR_VIRTKIT_BLK_UNSUPPORTED", `${this.name}: the device does not support ${what}`);
  }

  #resetError(): VirtkitError {
    return new VirtkitError("ERR_VIRTKIT_RESET", `${this.name}: the device is not up, or was reset; try again later`);
  }
}
