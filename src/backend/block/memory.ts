import { VirtkitError } from "../../common/error.ts";
import {
  BLOCK_DISCARD,
  BLOCK_FLUSH,
  BLOCK_IO_ERROR,
  BLOCK_OK,
  BLOCK_READ,
  BLOCK_SECURE_ERASE,
  BLOCK_UNSUPPORTED,
  BLOCK_WRITE,
  BLOCK_WRITE_ZEROES,
  type BlockBackend,
  type BlockRequests,
  type BlockSink,
} from "./types.ts";

/** A whole chunk is allocated at its first write. */
const CHUNK = 64 * 1024;
const MAX_CAPACITY = 2 ** 50;

export interface MemoryBlockOptions {
  /** Bytes: a multiple of the block size, at most 2^50. */
  readonly capacity: number;
  /** Smallest unit of a request: a power of two, 512..65536. Default 512. */
  readonly blockSize?: number;
  readonly readOnly?: boolean;
  /** For messages. */
  readonly name?: string;
  /** Bytes of memory that the contents may take; a write beyond gets an I/O error. Default no limit. */
  readonly limit?: number;
  /** First bytes of the disk; copied. The rest is zero. */
  readonly contents?: Uint8Array;
}

/** A disk in memory: data at hand, chunks that were never written cost nothing and read as zeros. */
export class MemoryBlockBackend implements BlockBackend {
  readonly name: string;
  readonly readOnly: boolean;
  readonly blockSize: number;
  readonly physicalBlockSize: number;
  readonly inline = true;
  readonly discard = true;
  readonly discardUnit = CHUNK;
  readonly writeZeroes = true;
  readonly secureErase = true;
  readonly #chunks = new Map<number, Uint8Array>();
  readonly #limit: number;
  #capacity: number;
  #requests: BlockRequests | undefined;
  #sink: BlockSink | undefined;

  /** @throws ERR_VIRTKIT_BLOCK_SIZE when capacity or block size are out of range */
  constructor(options: MemoryBlockOptions) {
    this.name = options.name ?? "memory";
    this.#limit = options.limit ?? Number.POSITIVE_INFINITY;
    this.readOnly = options.readOnly ?? false;
    this.blockSize = options.blockSize ?? 512;
    this.physicalBlockSize = this.blockSize;
    if (this.blockSize < 512 || this.blockSize > 65536 || !Number.isInteger(Math.log2(this.blockSize)))
      throw new VirtkitError(
        "ERR_VIRTKIT_BLOCK_SIZE",
        `blockSize ${this.blockSize}: give a power of two from 512 to 65536`,
      );
    this.#capacity = this.#checked(options.capacity);
    if (options.contents !== undefined) this.#fillIn(options.contents);
  }

  get capacity(): number {
    return this.#capacity;
  }

  /** Bytes of memory that the contents take now. */
  get allocated(): number {
    return this.#chunks.size * CHUNK;
  }

  attach(requests: BlockRequests, sink: BlockSink): void {
    if (this.#sink !== undefined)
      throw new VirtkitError(
        "ERR_VIRTKIT_ATTACHED",
        `${this.name} serves a device already; give each its own back end`,
      );
    this.#requests = requests;
    this.#sink = sink;
  }

  detach(): void {
    this.#requests = undefined;
    this.#sink = undefined;
  }

  submit(slots: ArrayLike<number>, count: number): void {
    const requests = this.#requests;
    const sink = this.#sink;
    if (requests === undefined || sink === undefined) return;
    for (let i = 0; i < count; i++) {
      const slot = slots[i] as number;
      sink.complete(slot, requests.generation[slot] as number, this.#run(requests, slot));
    }
  }

  /** Gives the disk another size; what lies past a smaller one is lost. */
  resize(capacity: number): void {
    this.#capacity = this.#checked(capacity);
    for (const index of this.#chunks.keys()) if (index * CHUNK >= capacity) this.#chunks.delete(index);
    const rest = capacity % CHUNK;
    if (rest !== 0) this.#chunks.get((capacity - rest) / CHUNK)?.fill(0, rest);
    this.#sink?.resized(capacity);
  }

  /** Copies bytes out of the disk, e.g. to look at what a guest wrote. The range must lie within the capacity. */
  peek(offset: number, length: number): Uint8Array {
    if (!(offset >= 0 && length >= 0 && offset + length <= this.#capacity))
      throw new VirtkitError("ERR_VIRTKIT_BLOCK_RANGE", `bytes ${offset}+${length} are not on this disk`);
    const bytes = new Uint8Array(length);
    this.#read(offset, bytes, 0, length);
    return bytes;
  }

  async close(): Promise<void> {}

  #checked(capacity: number): number {
    if (!Number.isInteger(capacity) || capacity < 0 || capacity > MAX_CAPACITY || capacity % this.blockSize !== 0)
      throw new VirtkitError(
        "ERR_VIRTKIT_BLOCK_SIZE",
        `capacity ${capacity}: give a multiple of ${this.blockSize} bytes, at most 2^50`,
      );
    return capacity;
  }

  #fillIn(contents: Uint8Array): void {
    if (contents.length > this.#capacity)
      throw new VirtkitError(
        "ERR_VIRTKIT_BLOCK_SIZE",
        `contents of ${contents.length} bytes do not fit a capacity of ${this.#capacity}; raise capacity`,
      );
    this.#write(0, contents, 0, contents.length);
  }

  #run(requests: BlockRequests, slot: number): number {
    const op = requests.op[slot] as number;
    if (op === BLOCK_FLUSH) return BLOCK_OK;
    if (op !== BLOCK_READ && this.readOnly) return BLOCK_IO_ERROR;
    if (op === BLOCK_READ || op === BLOCK_WRITE) return this.#transfer(requests, slot, op === BLOCK_WRITE);
    const erase = op === BLOCK_SECURE_ERASE;
    if (op !== BLOCK_DISCARD && op !== BLOCK_WRITE_ZEROES && !erase) return BLOCK_UNSUPPORTED;
    this.#zero(requests.offset[slot] as number, requests.length[slot] as number, erase);
    return BLOCK_OK;
  }

  #transfer(requests: BlockRequests, slot: number, write: boolean): number {
    const vector = requests.vector[slot];
    if (vector === undefined) return BLOCK_IO_ERROR;
    let at = requests.offset[slot] as number;
    try {
      for (let i = 0; i < vector.count; i++) {
        const length = vector.length[i] as number;
        const buffer = vector.buffer[i] as Uint8Array;
        if (write) this.#write(at, buffer, vector.offset[i] as number, length);
        else this.#read(at, buffer, vector.offset[i] as number, length);
        at += length;
      }
    } catch {
      // The limit is reached, or the host has no memory for another chunk: to the guest a medium that is full.
      return BLOCK_IO_ERROR;
    }
    return BLOCK_OK;
  }

  #read(at: number, into: Uint8Array, offset: number, length: number): void {
    while (length > 0) {
      const start = at % CHUNK;
      const n = Math.min(length, CHUNK - start);
      const chunk = this.#chunks.get((at - start) / CHUNK);
      if (chunk === undefined) into.fill(0, offset, offset + n);
      else into.set(n === CHUNK ? chunk : chunk.subarray(start, start + n), offset);
      at += n;
      offset += n;
      length -= n;
    }
  }

  #write(at: number, from: Uint8Array, offset: number, length: number): void {
    while (length > 0) {
      const start = at % CHUNK;
      const n = Math.min(length, CHUNK - start);
      const index = (at - start) / CHUNK;
      let chunk = this.#chunks.get(index);
      if (chunk === undefined) {
        if (this.allocated + CHUNK > this.#limit) throw new RangeError("the limit is reached");
        chunk = new Uint8Array(CHUNK);
        this.#chunks.set(index, chunk);
      }
      chunk.set(from.subarray(offset, offset + n), start);
      at += n;
      offset += n;
      length -= n;
    }
  }

  /** `erase` also clears the memory of the chunks that are let go. */
  #zero(at: number, length: number, erase: boolean): void {
    while (length > 0) {
      const start = at % CHUNK;
      const n = Math.min(length, CHUNK - start);
      const index = (at - start) / CHUNK;
      if (n < CHUNK || erase) this.#chunks.get(index)?.fill(0, start, start + n);
      if (n === CHUNK) this.#chunks.delete(index);
      at += n;
      length -= n;
    }
  }
}
