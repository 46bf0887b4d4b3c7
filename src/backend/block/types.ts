/**
 * Block back ends: bytes at offsets, nothing of virtio. Requests live in slots of parallel arrays that the front side owns, so that a request costs
 * no object and no Promise.
 */

export const BLOCK_READ = 0;
export const BLOCK_WRITE = 1;
/** Everything that was completed before reaches the medium. */
export const BLOCK_FLUSH = 2;
/** The range is no longer needed: its space may be given back, what it reads as is open. A hint. */
export const BLOCK_DISCARD = 3;
/** The range reads as zeros afterwards; see {@link BLOCK_MAY_UNMAP}. */
export const BLOCK_WRITE_ZEROES = 4;
/** Like BLOCK_WRITE_ZEROES, and nothing of the old data is left on the medium. */
export const BLOCK_SECURE_ERASE = 5;

/** Flag of BLOCK_WRITE_ZEROES: the space of the range may be given back. */
export const BLOCK_MAY_UNMAP = 1;

/** Results of a request. */
export const BLOCK_OK = 0;
/** The medium failed (or is full); what the range holds now is unknown. */
export const BLOCK_IO_ERROR = 1;
/** The back end cannot do this operation at all. */
export const BLOCK_UNSUPPORTED = 2;

/** Most pieces of a vector: the operating system's limit on one vectored call (IOV_MAX). */
export const BLOCK_MAX_PIECES = 1024;

const NOTHING = new Uint8Array(0);

/** Where a request's bytes come from or go to: pieces of buffers, in order. Grows as needed, is never shrunk. */
export class IoVector {
  count = 0;
  readonly buffer: Uint8Array[] = [];
  readonly offset: number[] = [];
  readonly length: number[] = [];

  /** Empties it and lets go of the buffers: a slot may wait long for its next use. */
  clear(): void {
    for (let i = 0; i < this.count; i++) this.buffer[i] = NOTHING;
    this.count = 0;
  }

  add(buffer: Uint8Array, offset: number, length: number): void {
    const i = this.count++;
    this.buffer[i] = buffer;
    this.offset[i] = offset;
    this.length[i] = length;
  }
}

/**
 * Requests in parallel arrays, indexed by slot. The front side fills a slot and submits it; until it is completed, the
 * slot and its vector belong to the back end.
 */
export class BlockRequests {
  readonly slots: number;
  /** BLOCK_READ, ... */
  readonly op: Uint8Array;
  /** First byte on the disk. */
  readonly offset: Float64Array;
  /** Bytes; for reads and writes the sum of the vector. */
  readonly length: Float64Array;
  /** BLOCK_MAY_UNMAP or 0, for BLOCK_WRITE_ZEROES. */
  readonly flags: Uint8Array;
  /** 1 for a read or write whose buffers are good inside `submit` only; see {@link BlockBackend.finishesNow}. */
  readonly now: Uint8Array;
  /** Counts the slot's uses: an answer to an older use is dropped. */
  readonly generation: Uint32Array;
  readonly vector: IoVector[];

  constructor(slots: number) {
    this.slots = slots;
    this.op = new Uint8Array(slots);
    this.offset = new Float64Array(slots);
    this.length = new Float64Array(slots);
    this.flags = new Uint8Array(slots);
    this.now = new Uint8Array(slots);
    this.generation = new Uint32Array(slots);
    this.vector = Array.from({ length: slots }, () => new IoVector());
  }
}

/** The front side, as a back end sees it. */
export interface BlockSink {
  /**
   * A request is done, with BLOCK_OK or another result. May be called inside `submit` (the data was at hand) or later;
   * exactly once for each slot and generation.
   */
  complete(slot: number, generation: number, result: number): void;
  /** After one or more completions that came outside `submit`: they may be published now. */
  completed(): void;
  /** The disk has another size now. */
  resized(capacity: number): void;
}

/** How worn a medium is (VIRTIO 1.4 §5.2.6, after JESD84-B50). */
export interface BlockLifetime {
  /** Reserved blocks in use: 0 unknown, 1 below 80 %, 2 from 80 %, 3 from 90 %. */
  readonly preEol: number;
  /** Wear of SLC cells in steps of 10 %: 0 unknown, 1..10, 11 beyond the estimate. */
  readonly typeA: number;
  /** Wear of MLC cells, likewise. */
  readonly typeB: number;
}

export interface BlockBackend {
  /** For messages: the file's name, or what it is. */
  readonly name: string;
  /** Bytes, a multiple of {@link blockSize}. */
  readonly capacity: number;
  readonly readOnly: boolean;
  /** Smallest unit of a request in bytes: a power of two, 512 or more. */
  readonly blockSize: number;
  /** The medium's own unit, for hints to the guest; at least {@link blockSize}. */
  readonly physicalBlockSize: number;
  /** True when every request completes inside `submit`; then its buffers may be memory that moves later. */
  readonly inline: boolean;
  /** Takes BLOCK_DISCARD. What is left out here is answered with BLOCK_UNSUPPORTED, or never asked for. */
  readonly discard?: boolean;
  /** Bytes under which a discard frees nothing: a power of two. Default {@link blockSize}. */
  readonly discardUnit?: number;
  /** Takes BLOCK_WRITE_ZEROES. */
  readonly writeZeroes?: boolean;
  /** Takes BLOCK_SECURE_ERASE. */
  readonly secureErase?: boolean;
  /** Of media that know; read again for each question. */
  readonly lifetime?: BlockLifetime;
  /**
   * Of a back end that is not {@link inline}: true when it will complete the reads and writes of the next `submit` inside it, because the
   * data is at hand. The front side may then lend it memory that moves later, and marks those requests in {@link BlockRequests.now}:
   * they must not be answered later, whatever happens. Asked once for each `submit`.
   */
  finishesNow?(): boolean;
  /** Connects the front side; one at a time. */
  attach(requests: BlockRequests, sink: BlockSink): void;
  /**
   * Lets go of the front side, which has no request on its way; then another may be attached. A back end without it serves one front side
   * in its life.
   */
  detach?(): void;
  /**
   * Begins the requests in `slots[0..count)`, without blocking the thread. Ranges are within the capacity and aligned,
   * vectors have at most {@link BLOCK_MAX_PIECES} pieces. `slots` is the caller's again after the call. What changes the disk
   * fails on a read-only back end; a flush there is BLOCK_OK. What cannot be done is a result, never an exception.
   */
  submit(slots: ArrayLike<number>, count: number): void;
  /**
   * Gives the disk another size in bytes, where that can be done, and tells {@link BlockSink.resized}. What a smaller size cuts off is
   * lost.
   */
  resize?(capacity: number): void | Promise<void>;
  /** Waits for what is in flight, flushes if writable, lets go of the file. Idempotent. */
  close(): Promise<void>;
}
