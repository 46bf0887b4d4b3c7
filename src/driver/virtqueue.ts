import type { Environment } from "../common/environment.ts";
import { VirtkitError } from "../common/error.ts";
import type { Tracer } from "../trace/types.ts";
import {
  createDriverQueue,
  type DriverQueue,
  indirectTablesBytes,
  legacySplitLayout,
  packedLayout,
  type QueueConfig,
  type QueueFault,
  type QueueFeatures,
  type ScatterList,
  splitLayout,
} from "../virtqueue/index.ts";
import type { DmaAllocator, DmaBuffer, DmaSegment } from "./dma.ts";
import { TracedQueue } from "./traced-queue.ts";

/** Used chains that are taken in one go. */
const BATCH = 64;
/** Batches that one interrupt may work through before other work gets its turn. */
const BATCHES_PER_TURN = 64;
/** Tokens from here on belong to {@link VirtQueue.transfer}; those below are the driver's. */
const TRANSFER_TOKENS = 2 ** 31;

/** How large a queue is made. */
export interface VirtQueueOptions {
  /** Entries at most; the device's own maximum unless said. */
  readonly size?: number;
  /**
   * Longest chain that goes through an indirect table where INDIRECT_DESC was negotiated: 2..32768, or 0 for no tables;
   * {@link DEFAULT_INDIRECT_ENTRIES} unless said. Longer chains lie in the ring itself. Each entry of the queue has a table, so
   * this costs size * indirectEntries * 16 bytes.
   */
  readonly indirectEntries?: number;
}

export const DEFAULT_INDIRECT_ENTRIES = 16;

/** What the driver core does for a queue. */
export interface VirtQueueHost {
  readonly environment: Environment;
  readonly dma: DmaAllocator;
  /** The device is suspended: nothing may be made available to it. */
  isSuspended(): boolean;
  readonly tracer: Tracer | undefined;
  /** Sends an available buffer notification; holds it back until DRIVER_OK. */
  notify(index: number, data: number): void;
  /** The device broke the queue. */
  queueFault(queue: VirtQueue, fault: QueueFault): void;
  used(queue: VirtQueue, token: number, written: number): void;
  unused(queue: VirtQueue, token: number): void;
}

interface Transfer {
  readonly out: readonly DmaSegment[];
  readonly in: readonly DmaSegment[];
  readonly resolve: (written: number) => void;
  readonly reject: (error: Error) => void;
}

/**
 * A virtqueue as a driver uses it: add scatter lists, kick, get used buffers. The rings lie in memory of the DMA
 * allocator. Two ways of use, also mixed on one queue: {@link add} with tokens of the driver's own, which come back
 * through the driver's `onUsed`; and {@link transfer}, a Promise for each chain, for what is not hot.
 */
export class VirtQueue {
  readonly index: number;
  readonly #host: VirtQueueHost;
  #ring: DriverQueue | undefined;
  #memory: DmaBuffer | undefined;
  #indirect: DmaBuffer | undefined;
  #size = 0;
  #servicing = false;
  readonly #tokens = new Uint32Array(BATCH);
  readonly #lengths = new Uint32Array(BATCH);
  readonly #transfers: (Transfer | undefined)[] = [];
  readonly #freeSlots: number[] = [];
  readonly #waiting: Transfer[] = [];

  constructor(index: number, host: VirtQueueHost) {
    this.index = index;
    this.#host = host;
  }

  /** Entries. */
  get size(): number {
    return this.#size;
  }
  /** False before it is set up, and from a reset on. */
  get live(): boolean {
    return this.#ring !== undefined;
  }
  /** Free descriptors. */
  get free(): number {
    return this.#ring?.free ?? 0;
  }
  /** Chains that the device has. */
  get inFlight(): number {
    return this.#ring?.inFlight ?? 0;
  }
  get fault(): QueueFault | undefined {
    return this.#ring?.fault;
  }

  /**
   * Adds a chain: `out` device-readable entries of `sg` from `first` on, then `in_` device-writable ones. `token` (0..2^31-1)
   * comes back through `onUsed` or `onUnused`. The device sees it after {@link kick}. False when there is no room.
   */
  add(sg: ScatterList, first: number, out: number, in_: number, token: number): boolean {
    if (token >= TRANSFER_TOKENS) throw new VirtkitError("ERR_VIRTKIT_TOKEN", `the token ${token} is not below 2^31`);
    return this.#ring?.add(sg, first, out, in_, token) ?? false;
  }

  /**
   * Shows the device what was added, and notifies it if it asked for that. Kicks before DRIVER_OK are sent then; while the
   * device is suspended nothing is shown, and the driver core does it afterwards.
   */
  kick(): void {
    const ring = this.#ring;
    if (this.#host.isSuspended()) return;
    if (ring?.publish()) this.#host.notify(this.index, ring.kickData());
  }

  /** Takes up to `max` used chains; see `DriverQueue.get`. For a driver that overrides `onInterrupt`. */
  get(tokens: Uint32Array, lengths: Uint32Array, max: number): number {
    return this.#ring?.get(tokens, lengths, max) ?? 0;
  }

  disableCallbacks(): void {
    this.#ring?.disableCallbacks();
  }

  /** True when used chains wait already: the caller has to look again. */
  enableCallbacks(): boolean {
    return this.#ring?.enableCallbacks() ?? false;
  }

  /**
   * Sends one chain and resolves with the bytes that the device wrote. When the queue is full it waits for room. Rejects
   * with ERR_VIRTKIT_RESET when the queue is reset before the device used the chain.
   */
  transfer(out: readonly DmaSegment[], in_: readonly DmaSegment[]): Promise<number> {
    return new Promise((resolve, reject) => {
      const transfer: Transfer = { out, in: in_, resolve, reject };
      if (this.#ring === undefined) reject(this.#resetError());
      else if (this.#waiting.length > 0 || !this.#send(transfer)) this.#waiting.push(transfer);
      else this.kick();
    });
  }

  /**
   * Hands every used chain on, with callbacks off meanwhile; then asks for callbacks and looks again, because a chain that was
   * used between the last look and that moment raised no interrupt. Bounded: the rest waits for a later turn.
   */
  service(): void {
    // A device that finishes inside a kick interrupts from inside our own loop, which will see the chain anyway.
    if (this.#servicing) return;
    this.#servicing = true;
    let turns = BATCHES_PER_TURN;
    try {
      do {
        this.#ring?.disableCallbacks();
        while (this.#takeBatch()) {
          if (--turns > 0) continue;
          const ring = this.#ring;
          this.#host.environment.defer(() => {
            if (ring === this.#ring) this.service();
          });
          return;
        }
      } while (this.#ring?.enableCallbacks() === true);
    } finally {
      this.#servicing = false;
    }
    if (this.#ring?.fault !== undefined) this.#host.queueFault(this, this.#ring.fault);
  }

  /** For the driver core: allocates and zeroes the rings. Returns what the device is to be told. */
  open(size: number, features: QueueFeatures, indirectEntries = DEFAULT_INDIRECT_ENTRIES): QueueConfig {
    const { dma, tracer } = this.#host;
    const layoutOf = features.packed ? packedLayout : features.legacy ? legacySplitLayout : splitLayout;
    this.#memory = dma.alloc(layoutOf(0, size).bytes, 4096);
    const config = layoutOf(this.#memory.address, size);
    if (features.indirect && indirectEntries > 0)
      this.#indirect = dma.alloc(indirectTablesBytes(size, indirectEntries), 16);
    const tables = this.#indirect && { address: this.#indirect.address, entriesPerTable: indirectEntries };
    const ring = createDriverQueue(dma.memory, config, features, tables);
    this.#ring = tracer === undefined ? ring : new TracedQueue(ring, this.index, tracer);
    this.#size = size;
    return config;
  }

  /**
   * For the driver core, once the device has let go of the queue: used chains are handed on, the others come back
   * unused, the rings' memory is free again.
   */
  close(): void {
    const ring = this.#ring;
    if (ring === undefined) return;
    while (this.#takeBatch());
    this.#ring = undefined;
    for (let token = ring.detach(); token >= 0; token = ring.detach()) {
      if (token >= TRANSFER_TOKENS) this.#finish(token)?.reject(this.#resetError());
      else this.#host.unused(this, token);
    }
    for (const waiting of this.#waiting.splice(0)) waiting.reject(this.#resetError());
    for (const memory of [this.#memory, this.#indirect]) if (memory !== undefined) this.#host.dma.release(memory);
    this.#memory = undefined;
    this.#indirect = undefined;
  }

  /** Hands on one batch of used chains; false when there is none. */
  #takeBatch(): boolean {
    const ring = this.#ring;
    const count = ring?.get(this.#tokens, this.#lengths, BATCH) ?? 0;
    // A handler may come back in here, so what it was called for is read before it is called.
    const tokens = count > 1 ? this.#tokens.slice(0, count) : this.#tokens;
    const lengths = count > 1 ? this.#lengths.slice(0, count) : this.#lengths;
    for (let i = 0; i < count; i++) {
      const token = tokens[i] as number;
      const written = lengths[i] as number;
      if (token >= TRANSFER_TOKENS) this.#finish(token)?.resolve(written);
      else this.#host.used(this, token, written);
    }
    if (count > 0) this.#sendWaiting();
    return count > 0;
  }

  #sendWaiting(): void {
    let sent = false;
    for (let next = this.#waiting[0]; next !== undefined && this.#ring !== undefined; next = this.#waiting[0]) {
      if (!this.#send(next)) break;
      this.#waiting.shift();
      sent = true;
    }
    if (sent) this.kick();
  }

  #send(transfer: Transfer): boolean {
    const entries = [...transfer.out, ...transfer.in];
    const sg: ScatterList = {
      address: Float64Array.from(entries, (entry) => entry.address),
      length: Uint32Array.from(entries, (entry) => entry.length),
    };
    const slot = this.#freeSlots.pop() ?? this.#transfers.length;
    try {
      const added = this.#ring?.add(sg, 0, transfer.out.length, transfer.in.length, TRANSFER_TOKENS + slot) ?? false;
      this.#transfers[slot] = added ? transfer : undefined;
      if (!added) this.#freeSlots.push(slot);
      return added;
    } catch (error) {
      // It can never fit. It is dealt with then, so that nobody behind it waits for it.
      this.#transfers[slot] = undefined;
      this.#freeSlots.push(slot);
      transfer.reject(error instanceof Error ? error : new Error(String(error)));
      return true;
    }
  }

  #finish(token: number): Transfer | undefined {
    const slot = token - TRANSFER_TOKENS;
    const transfer = this.#transfers[slot];
    this.#transfers[slot] = undefined;
    if (transfer !== undefined) this.#freeSlots.push(slot);
    return transfer;
  }

  #resetError(): VirtkitError {
    return new VirtkitError("ERR_VIRTKIT_RESET", `queue ${this.index} was reset; the device did not use the buffers`);
  }
}
