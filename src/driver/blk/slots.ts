import {
  VIRTIO_BLK_REQ_HEADER_SIZE,
  VIRTIO_BLK_REQ_SECTOR,
  VIRTIO_BLK_REQ_TYPE,
  VIRTIO_BLK_S_IOERR,
} from "../../spec/blk.ts";
import type { DmaAllocator, DmaBuffer } from "../dma.ts";
import type { BlkBatch } from "./batch.ts";

/** Bytes of DMA memory a request: its header, its status byte, and up to a cache line nothing. */
const SLOT = 64;
const STATUS = VIRTIO_BLK_REQ_HEADER_SIZE;
/** No status of the specification: the device has not written one. */
const UNWRITTEN = 0xff;

/** Who waits for a request. */
export interface Waiter {
  resolve(status: number): void;
  reject(error: Error): void;
}

/** Header and status byte of every request that a queue can hold, and who waits for it. */
export class BlkSlots {
  readonly headers: DmaBuffer;
  readonly #dma: DmaAllocator;
  readonly #free: Int32Array;
  #freeCount: number;
  /** Bytes that the device has to write in front of the status. */
  readonly #expected: Float64Array;
  readonly #batch: (BlkBatch | undefined)[];
  readonly #index: Int32Array;
  readonly #waiter: (Waiter | undefined)[];

  constructor(dma: DmaAllocator, count: number) {
    this.#dma = dma;
    this.headers = dma.alloc(count * SLOT, SLOT);
    this.#free = Int32Array.from({ length: count }, (_, i) => count - 1 - i);
    this.#freeCount = count;
    this.#expected = new Float64Array(count);
    this.#batch = new Array(count).fill(undefined);
    this.#index = new Int32Array(count);
    this.#waiter = new Array(count).fill(undefined);
  }

  get free(): number {
    return this.#freeCount;
  }

  /** Fills in a free slot's header; there must be one. `expected` is the bytes that the device is to write as data. */
  take(type: number, sector: number, expected: number): number {
    const slot = this.#free[--this.#freeCount] as number;
    const { bytes } = this.headers;
    const view = new DataView(bytes.buffer, bytes.byteOffset + slot * SLOT, SLOT);
    view.setUint32(VIRTIO_BLK_REQ_TYPE, type, true);
    view.setUint32(VIRTIO_BLK_REQ_TYPE + 4, 0, true);
    view.setUint32(VIRTIO_BLK_REQ_SECTOR, sector % 2 ** 32, true);
    view.setUint32(VIRTIO_BLK_REQ_SECTOR + 4, Math.floor(sector / 2 ** 32), true);
    view.setUint8(STATUS, UNWRITTEN);
    this.#dma.memory.markWritten(this.headerAddress(slot), STATUS + 1);
    this.#expected[slot] = expected;
    return slot;
  }

  headerAddress(slot: number): number {
    return this.headers.address + slot * SLOT;
  }

  statusAddress(slot: number): number {
    return this.headerAddress(slot) + STATUS;
  }

  setWaiter(slot: number, waiter: Waiter): void {
    this.#waiter[slot] = waiter;
  }

  setBatch(slot: number, batch: BlkBatch, index: number): void {
    this.#batch[slot] = batch;
    this.#index[slot] = index;
  }

  /** The device used the slot's chain and wrote `written` bytes. */
  finish(slot: number, written: number): void {
    let status = this.headers.bytes[slot * SLOT + STATUS] as number;
    // Data that the device does not say it wrote is not to be relied on (driver: The Virtqueue Used Ring #1).
    if (status === UNWRITTEN || (status === 0 && written < (this.#expected[slot] as number)))
      status = VIRTIO_BLK_S_IOERR;
    const waiter = this.#waiter[slot];
    const batch = this.#batch[slot];
    const index = this.#index[slot] as number;
    this.giveBack(slot);
    waiter?.resolve(status);
    if (batch !== undefined) complete(batch, index, status);
  }

  /** The device gave the slot's chain back without having used it. */
  abandon(slot: number, error: Error): void {
    const waiter = this.#waiter[slot];
    const batch = this.#batch[slot];
    const index = this.#index[slot] as number;
    this.giveBack(slot);
    waiter?.reject(error);
    if (batch !== undefined) complete(batch, index, VIRTIO_BLK_S_IOERR);
  }

  giveBack(slot: number): void {
    this.#waiter[slot] = undefined;
    this.#batch[slot] = undefined;
    this.#free[this.#freeCount++] = slot;
  }

  release(): void {
    this.#dma.release(this.headers);
  }
}

function complete(batch: BlkBatch, index: number, status: number): void {
  batch.status[index] = status;
  batch.completed++;
  batch.onCompleted?.(index, status);
}
