import { VirtkitError } from "../../common/error.ts";
import { SparseBits } from "./sparse-bits.ts";
import { SubRequests } from "./sub-requests.ts";
import {
  BLOCK_DISCARD,
  BLOCK_FLUSH,
  BLOCK_IO_ERROR,
  BLOCK_MAY_UNMAP,
  BLOCK_OK,
  BLOCK_READ,
  BLOCK_UNSUPPORTED,
  BLOCK_WRITE,
  BLOCK_WRITE_ZEROES,
  type BlockBackend,
  type BlockRequests,
  type BlockSink,
} from "./types.ts";

/**
 * Copy on write: what is written goes to a scratch disk, everything else is read from the base, which never changes.
 *
 * The scratch disk begins empty, takes write zeroes, and has the base's capacity and a block size that is no larger; a block lies at the same place on both, so
 * a sparse file or a {@link MemoryBlockBackend} costs what was written. Which of the two has a block is kept a bit a block, and not for larger clusters: so
 * a small write copies nothing up, and requests to neighbouring blocks cannot get into each other's way.
 *
 *     owned    the scratch disk has the block: from the moment that its write (or discard) is done
 *     touched  a write to the block was begun: the scratch disk may hold something there
 */
export class OverlayBlockBackend implements BlockBackend {
  readonly name: string;
  readonly readOnly = false;
  readonly blockSize: number;
  readonly physicalBlockSize: number;
  readonly inline: boolean;
  readonly discard = true;
  readonly writeZeroes = true;
  /** Of disks that both have it. */
  readonly detach?: () => void;
  readonly #base: BlockBackend;
  readonly #scratch: BlockBackend;
  readonly #owned = new SparseBits();
  readonly #touched = new SparseBits();
  #capacity: number;
  /** Bytes from here on are the scratch disk's: the base ends, or ended once. */
  #baseEnd: number;
  #requests: BlockRequests | undefined;
  #sink: BlockSink | undefined;
  #onBase: SubRequests | undefined;
  #onScratch: SubRequests | undefined;
  /** By slot: bytes begun, parts on their way, and the worst result so far. */
  #begun = new Float64Array(0);
  #parts = new Int32Array(0);
  #result = new Uint8Array(0);
  /** Requests that wait for room, in order. */
  #waiting: number[] = [];
  #inFlight = 0;
  #running = false;
  #closing: Promise<void> | undefined;
  #idle: (() => void) | undefined;

  /**
   * Both disks are the overlay's from here on: it attaches to them and closes them.
   * @throws ERR_VIRTKIT_BLOCK_SIZE when the scratch disk does not fit
   */
  constructor(base: BlockBackend, scratch: BlockBackend) {
    if (scratch.capacity !== base.capacity || scratch.blockSize > base.blockSize || scratch.writeZeroes !== true)
      throw new VirtkitError(
        "ERR_VIRTKIT_BLOCK_SIZE",
        `${scratch.name}: an overlay of ${base.name} needs a writable disk of ${base.capacity} bytes in blocks of at most ${base.blockSize}`,
      );
    this.name = base.name;
    this.blockSize = base.blockSize;
    this.physicalBlockSize = base.physicalBlockSize;
    this.inline = base.inline && scratch.inline;
    this.#base = base;
    this.#scratch = scratch;
    this.#capacity = base.capacity;
    this.#baseEnd = base.capacity;
    if (base.detach !== undefined && scratch.detach !== undefined)
      this.detach = () => {
        base.detach?.();
        scratch.detach?.();
        this.#requests = undefined;
        this.#sink = undefined;
      };
  }

  get capacity(): number {
    return this.#capacity;
  }

  /** Bytes that differ from the base, or may. */
  get ownedBytes(): number {
    return this.#owned.count * this.blockSize;
  }

  attach(requests: BlockRequests, sink: BlockSink): void {
    if (this.#sink !== undefined)
      throw new VirtkitError("ERR_VIRTKIT_ATTACHED", `${this.name} serves a device already; make an overlay for each`);
    this.#requests = requests;
    this.#sink = sink;
    const { slots } = requests;
    this.#begun = new Float64Array(slots);
    this.#parts = new Int32Array(slots);
    this.#result = new Uint8Array(slots);
    const host = {
      done: (slot: number, offset: number, length: number, result: number) =>
        this.#partDone(slot, offset, length, result),
      completed: () => this.#completed(),
    };
    this.#onBase = new SubRequests(this.#base, requests, host);
    this.#onScratch = new SubRequests(this.#scratch, requests, host);
  }

  submit(slots: ArrayLike<number>, count: number): void {
    for (let i = 0; i < count; i++) this.#begin(slots[i] as number);
    this.#run();
  }

  /** Gives the disk another size; the base keeps its own. What lies past a smaller one is lost, what is new is zero. */
  async resize(capacity: number): Promise<void> {
    if (this.#scratch.resize === undefined || capacity % this.blockSize !== 0)
      throw new VirtkitError(
        "ERR_VIRTKIT_BLOCK_SIZE",
        `${this.name} cannot be made ${capacity} bytes large; give a multiple of ${this.blockSize}`,
      );
    await this.#scratch.resize(capacity);
    this.#baseEnd = Math.min(this.#baseEnd, capacity);
    this.#owned.truncate(capacity / this.blockSize);
    this.#touched.truncate(capacity / this.blockSize);
    this.#capacity = capacity;
    this.#sink?.resized(capacity);
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    if (this.#inFlight > 0) await new Promise<void>((resolve) => (this.#idle = resolve));
    try {
      await this.#base.close();
    } finally {
      await this.#scratch.close();
    }
  }

  #begin(slot: number): void {
    this.#inFlight++;
    this.#begun[slot] = 0;
    this.#parts[slot] = 0;
    this.#result[slot] = BLOCK_OK;
    const op = this.#requests?.op[slot];
    if (this.#closing !== undefined) this.#answer(slot, BLOCK_IO_ERROR);
    else if (op === BLOCK_READ || op === BLOCK_WRITE || op === BLOCK_FLUSH) this.#waiting.push(slot);
    else if (op === BLOCK_DISCARD || op === BLOCK_WRITE_ZEROES) this.#waiting.push(slot);
    else this.#answer(slot, BLOCK_UNSUPPORTED);
  }

  /** Begins what waits as far as there is room, and hands it on. Parts that finish inside make room for more. */
  #run(): void {
    if (this.#running) return;
    this.#running = true;
    do {
      while (this.#waiting.length > 0 && this.#goOn(this.#waiting[0] as number)) this.#waiting.shift();
    } while (this.#onBase?.submit() === true || this.#onScratch?.submit() === true);
    this.#running = false;
  }

  /** Begins the parts of a request. False when it has to wait for room. */
  #goOn(slot: number): boolean {
    const requests = this.#requests as BlockRequests;
    const op = requests.op[slot] as number;
    if (op === BLOCK_FLUSH) return this.#part(slot, this.#onScratch as SubRequests, BLOCK_FLUSH, 0);
    const offset = requests.offset[slot] as number;
    const length = requests.length[slot] as number;
    for (let at = this.#begun[slot] as number; at < length; at = this.#begun[slot] as number) {
      const begun = this.#beginPart(slot, op, offset + at, length - at);
      if (!begun) return false;
    }
    if (this.#parts[slot] === 0) this.#answer(slot, this.#result[slot] as number);
    return true;
  }

  /** Begins the part at byte `position`, as far as one disk has it all. */
  #beginPart(slot: number, op: number, position: number, left: number): boolean {
    const unit = this.blockSize;
    const first = position / unit;
    const end = first + left / unit;
    const scratch = this.#onScratch as SubRequests;
    if (op === BLOCK_READ) {
      if (position >= this.#baseEnd) return this.#part(slot, scratch, op, left);
      const most = Math.min(end, this.#baseEnd / unit);
      const length = (this.#owned.runEnd(first, most) - first) * unit;
      return this.#part(slot, this.#owned.has(first) ? scratch : (this.#onBase as SubRequests), op, length);
    }
    if (op === BLOCK_WRITE) {
      if (!this.#part(slot, scratch, op, left)) return false;
      this.#touched.add(first, end);
      return true;
    }
    // Zeros: where nothing was ever written, the scratch disk has them already.
    const runEnd = this.#touched.runEnd(first, end);
    const length = (runEnd - first) * unit;
    if (this.#touched.has(first)) return this.#part(slot, scratch, BLOCK_WRITE_ZEROES, length);
    this.#owned.add(first, runEnd);
    this.#begun[slot] = (this.#begun[slot] as number) + length;
    return true;
  }

  #part(slot: number, disk: SubRequests, op: number, length: number): boolean {
    const begun = this.#begun[slot] as number;
    if (!disk.add(slot, op, begun, length, BLOCK_MAY_UNMAP)) return false;
    this.#begun[slot] = begun + length;
    this.#parts[slot] = (this.#parts[slot] as number) + 1;
    return true;
  }

  #partDone(slot: number, offset: number, length: number, result: number): void {
    const requests = this.#requests as BlockRequests;
    const op = requests.op[slot] as number;
    this.#parts[slot] = (this.#parts[slot] as number) - 1;
    if (result !== BLOCK_OK) this.#result[slot] = BLOCK_IO_ERROR;
    else if (op !== BLOCK_READ && op !== BLOCK_FLUSH)
      this.#owned.add(offset / this.blockSize, (offset + length) / this.blockSize);
    const all = op === BLOCK_FLUSH || (this.#begun[slot] as number) >= (requests.length[slot] as number);
    if (all && this.#parts[slot] === 0 && !this.#waiting.includes(slot))
      this.#answer(slot, this.#result[slot] as number);
  }

  #completed(): void {
    this.#run();
    this.#sink?.completed();
    if (this.#inFlight === 0) this.#idle?.();
  }

  #answer(slot: number, result: number): void {
    this.#inFlight--;
    this.#sink?.complete(slot, this.#requests?.generation[slot] as number, result);
  }
}
