import { VirtkitError } from "../common/error.ts";
import type { GuestMemory } from "../memory/guest-memory.ts";
import type { MemoryRegion } from "../memory/memory-region.ts";
import * as ring from "../spec/ring.ts";
import type { ChainBatch } from "./chain-batch.ts";
import { BATCH_SEGMENTS, ChainWalker } from "./chain-walker.ts";
import { chainLengthFault, duplicateFault, indexFault, indexJumpFault, indirectFault } from "./fault.ts";
import { RingAreas, sizeFault } from "./geometry.ts";
import type { DeviceQueue, QueueConfig, QueueFault, QueueFeatures, QueueState } from "./types.ts";

// Aliases of the module's own: an imported binding is looked up again at each use.
const NEXT = ring.VIRTQ_DESC_F_NEXT;
const WRITE = ring.VIRTQ_DESC_F_WRITE;
const INDIRECT = ring.VIRTQ_DESC_F_INDIRECT;
const CHAIN_MAX = ring.VIRTQ_CHAIN_MAX_BYTES;
const TWO_32 = 2 ** 32;
/** Not in flight. */
const IDLE = -1;

/** The device's side of a split virtqueue (VIRTIO 1.4 §2.7). */
export class SplitDeviceQueue implements DeviceQueue {
  readonly size: number;
  readonly #mask: number;
  readonly #memory: GuestMemory;
  readonly #areas: RingAreas;
  readonly #features: QueueFeatures;
  readonly #inOrder: boolean;
  readonly #walker: ChainWalker;
  /** By head: device-writable bytes of the chain while it is in flight, else {@link IDLE}. */
  readonly #room: Float64Array;
  /** By position in the available ring: the head that was found there. */
  readonly #order: Uint16Array;
  /** IN_ORDER only, by head: bytes written by a chain that waits for those before it, else {@link IDLE}. */
  readonly #done: Float64Array;
  /** IN_ORDER only: position of the oldest chain that has no used element yet. */
  #oldest: number;
  /** The next entry of the available ring to look at; free-running, 16 bits, as all indices here. */
  #availIndex: number;
  /** The next used element to write. */
  #usedIndex: number;
  /** What the driver was last shown as used.idx. */
  #published: number;
  #inFlight = 0;
  #kicksOff = false;
  #notifyNext: boolean;
  #fault: QueueFault | undefined;

  constructor(memory: GuestMemory, config: QueueConfig, features: QueueFeatures, state?: QueueState) {
    const bad = sizeFault(config.size, false);
    const size = bad === undefined ? config.size : 0;
    this.size = config.size;
    this.#mask = size - 1;
    this.#memory = memory;
    this.#features = features;
    this.#inOrder = features.inOrder;
    this.#walker = new ChainWalker(memory);
    this.#areas = new RingAreas(memory, config, features, "device");
    this.#room = new Float64Array(size).fill(IDLE);
    this.#done = new Float64Array(features.inOrder ? size : 0).fill(IDLE);
    this.#order = new Uint16Array(size);
    this.#availIndex = (state?.availIndex ?? 0) & 0xffff;
    this.#usedIndex = (state?.usedIndex ?? 0) & 0xffff;
    this.#published = this.#usedIndex;
    this.#oldest = this.#availIndex;
    // Whoever ran the queue before may have stopped between a used element and its notification.
    this.#notifyNext = state !== undefined && this.#availIndex + this.#usedIndex !== 0;
    this.#fault = bad ?? this.#areas.attach();
  }

  get fault(): QueueFault | undefined {
    return this.#fault;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  pop(batch: ChainBatch, max: number): number {
    if (!this.#ready()) return 0;
    const driver = this.#areas.driver;
    const avail = driver.region.u16;
    const availBase = driver.offset >>> 1;
    const from = this.#availIndex;
    const ahead = (Atomics.load(avail, availBase + 1) - from) & 0xffff;
    if (ahead === 0) return 0;
    if (ahead > this.size) {
      this.#fault = indexJumpFault("available", ahead, this.size);
      return 0;
    }
    const limit = Math.min(ahead, max, batch.capacity - batch.count);
    return this.#take(batch, avail, availBase + 2, limit);
  }

  /**
   * The hot loop. Chains of plain direct descriptors are walked here; whatever else turns up is walked from its head by
   * {@link #walk}, which uses nothing that was read here.
   */
  #take(batch: ChainBatch, avail: Uint16Array, entries: number, limit: number): number {
    const size = this.size;
    const mask = this.#mask;
    const room = this.#room;
    const order = this.#order;
    const memory = this.#memory;
    const regions = memory.regions;
    const table = this.#areas.desc.region.u32;
    const tableBase = this.#areas.desc.offset >>> 2;
    const position = this.#availIndex;
    const firstChain = batch.count;
    let { region: segRegion, offset: segOffset, length: segLength } = batch;
    let segments = batch.segments;
    let regionIndex = 0;
    let base = 0;
    let end = 0;
    let writableRegion = false;
    let count = 0;
    while (count < limit && segments < BATCH_SEGMENTS) {
      const head = avail[entries + ((position + count) & mask)] as number;
      if (head >= size) {
        this.#fault = indexFault("available head", head, size);
        break;
      }
      if ((room[head] as number) >= 0) {
        this.#fault = duplicateFault("made available twice: head", head);
        break;
      }
      const chain = firstChain + count;
      const firstSegment = segments;
      let index = head;
      let descriptors = 1;
      let readable = 0;
      let readableBytes = 0;
      let writable = 0;
      let writableBytes = 0;
      let plain = true;
      for (;;) {
        const at = tableBase + (index << 2);
        const tail = table[at + 3] as number;
        const length = table[at + 2] as number;
        const address = (table[at + 1] as number) * TWO_32 + (table[at] as number);
        if ((tail & INDIRECT) !== 0 || length === 0 || segments >= segLength.length) {
          plain = false;
          break;
        }
        if (!(address >= base && address + length <= end)) {
          regionIndex = memory.locate(address, length, false);
          if (regionIndex < 0) {
            base = end = 0;
            plain = false;
            break;
          }
          const region = regions[regionIndex] as MemoryRegion;
          base = region.base;
          end = region.end;
          writableRegion = !region.readOnly;
        }
        if ((tail & WRITE) !== 0) {
          if (!writableRegion) {
            plain = false;
            break;
          }
          writable++;
          writableBytes += length;
        } else {
          if (writable !== 0) {
            plain = false;
            break;
          }
          readable++;
          readableBytes += length;
        }
        segRegion[segments] = regionIndex;
        segOffset[segments] = address - base;
        segLength[segments] = length;
        segments++;
        if ((tail & NEXT) === 0) break;
        index = tail >>> 16;
        if (index >= size || descriptors++ === size) {
          plain = false;
          break;
        }
      }
      if (plain && readableBytes + writableBytes <= CHAIN_MAX) {
        batch.readable[chain] = readable;
        batch.writable[chain] = writable;
        batch.readableBytes[chain] = readableBytes;
        batch.writableBytes[chain] = writableBytes;
        room[head] = writableBytes;
      } else {
        segments = this.#walk(batch, table, tableBase, head, chain, firstSegment);
        if (segments < 0) {
          segments = firstSegment;
          break;
        }
        ({ region: segRegion, offset: segOffset, length: segLength } = batch);
        room[head] = batch.writableBytes[chain] as number;
      }
      batch.id[chain] = head;
      batch.first[chain] = firstSegment;
      order[(position + count) & mask] = head;
      count++;
    }
    batch.count = firstChain + count;
    batch.segments = segments;
    this.#availIndex = (position + count) & 0xffff;
    this.#inFlight += count;
    return count;
  }

  /** Walks one chain of any kind from its head. Returns the index behind its last segment, or -1 with the fault set. */
  #walk(
    batch: ChainBatch,
    words: Uint32Array,
    base: number,
    head: number,
    chain: number,
    firstSegment: number,
  ): number {
    const walker = this.#walker;
    walker.begin(batch, firstSegment);
    if (this.#follow(words, base, head)) return walker.end(chain);
    this.#fault = walker.fault;
    return -1;
  }

  #follow(words: Uint32Array, base: number, head: number): boolean {
    const walker = this.#walker;
    let entries = this.size;
    let most = entries;
    let inTable = false;
    let index = head;
    for (let seen = 0; ; ) {
      if (seen++ === most) return walker.stop(chainLengthFault(most));
      const at = base + index * 4;
      const address = (words[at + 1] as number) * TWO_32 + (words[at] as number);
      const length = words[at + 2] as number;
      const tail = words[at + 3] as number;
      if ((tail & INDIRECT) !== 0) {
        if (!this.#features.indirect) return walker.stop(indirectFault("the feature was not negotiated"));
        if (inTable) return walker.stop(indirectFault("a table inside a table"));
        if ((tail & NEXT) !== 0) return walker.stop(indirectFault("flagged NEXT as well"));
        if (!walker.table(address, length)) return false;
        words = walker.tableWords;
        base = walker.tableBase;
        entries = most = walker.tableEntries;
        inTable = true;
        seen = 0;
        index = 0;
        continue;
      }
      if (!walker.add(address, length, (tail & WRITE) !== 0)) return false;
      if ((tail & NEXT) === 0) return true;
      index = tail >>> 16;
      if (index >= entries) return walker.stop(indexFault("next index", index, entries));
    }
  }

  unpop(count: number): void {
    if (this.#fault !== undefined) return;
    for (let i = 0; i < count; i++) {
      const position = (this.#availIndex - 1) & 0xffff;
      const head = this.#order[position & this.#mask] as number;
      if (!(this.#inFlight > 0 && (this.#room[head] as number) >= 0)) throw notInFlight(head);
      this.#room[head] = IDLE;
      this.#availIndex = position;
      this.#inFlight--;
    }
  }

  push(id: number, written: number): void {
    if (this.#fault !== undefined) return;
    const room = this.#room[id] as number;
    if (!(room >= 0)) throw notInFlight(id);
    if (!(written <= room)) throw tooMuch(id, written, room);
    if (this.#inOrder) {
      this.#hold(id, written);
      return;
    }
    this.#room[id] = IDLE;
    this.#inFlight--;
    this.#stage(id, written);
  }

  #stage(id: number, written: number): void {
    const device = this.#areas.device;
    const used = device.region.u32;
    if (used.length === 0 && !this.#ready()) return;
    const at = (device.offset >>> 2) + 1 + ((this.#usedIndex & this.#mask) << 1);
    used[at] = id;
    // A length of 2^32 cannot be said; an underestimate is allowed (VIRTIO 1.4 §2.7.8.2).
    used[at + 1] = written < TWO_32 ? written : TWO_32 - 1;
    this.#usedIndex = (this.#usedIndex + 1) & 0xffff;
  }

  /** IN_ORDER: stages this chain and those behind it that wait for nothing else (VIRTIO 1.4 §2.7.9). */
  #hold(id: number, written: number): void {
    const done = this.#done;
    if ((done[id] as number) >= 0) throw notInFlight(id);
    done[id] = written;
    this.#inFlight--;
    while (this.#oldest !== this.#availIndex) {
      const head = this.#order[this.#oldest & this.#mask] as number;
      const bytes = done[head] as number;
      if (bytes < 0) break;
      done[head] = IDLE;
      this.#room[head] = IDLE;
      this.#oldest = (this.#oldest + 1) & 0xffff;
      this.#stage(head, bytes);
    }
  }

  flush(): boolean {
    const old = this.#published;
    const now = this.#usedIndex;
    if (now === old || !this.#ready()) return false;
    const device = this.#areas.device;
    const driver = this.#areas.driver;
    const observed = this.#memory.observed;
    if (observed) this.#markElements(old, (now - old) & 0xffff);
    // The sequentially consistent store is also the full fence between publishing and looking whether to notify.
    Atomics.store(device.region.u16, (device.offset >>> 1) + 1, now);
    if (observed) this.#memory.markWritten(device.address + ring.VIRTQ_USED_IDX, 2);
    this.#published = now;
    if (this.#notifyNext) {
      this.#notifyNext = false;
      return true;
    }
    const base = driver.offset >>> 1;
    const avail = driver.region.u16;
    if (this.#features.notifyOnEmpty && this.#inFlight === 0 && Atomics.load(avail, base + 1) === this.#availIndex)
      return true;
    if (!this.#features.eventIdx) return (Atomics.load(avail, base) & ring.VIRTQ_AVAIL_F_NO_INTERRUPT) === 0;
    const event = Atomics.load(avail, base + 2 + this.size);
    return ((now - event - 1) & 0xffff) < ((now - old) & 0xffff);
  }

  disableKicks(): void {
    // With EVENT_IDX the event index stays where it is: behind us, so it is not crossed again for 65536 entries.
    if (this.#features.eventIdx || this.#kicksOff || !this.#ready()) return;
    this.#kicksOff = true;
    this.#setWord(0, ring.VIRTQ_USED_F_NO_NOTIFY);
  }

  enableKicks(): boolean {
    if (!this.#ready()) return false;
    if (this.#features.eventIdx) this.#setWord(2 + 4 * this.size, this.#availIndex);
    else if (this.#kicksOff) this.#setWord(0, 0);
    this.#kicksOff = false;
    return this.available();
  }

  available(): boolean {
    if (!this.#ready()) return false;
    const driver = this.#areas.driver;
    return Atomics.load(driver.region.u16, (driver.offset >>> 1) + 1) !== this.#availIndex;
  }

  state(): QueueState {
    return { availIndex: this.#availIndex, availWrap: true, usedIndex: this.#published, usedWrap: true };
  }

  /** Stores a 16-bit word of the used ring; `word` counts from its start. */
  #setWord(word: number, value: number): void {
    const device = this.#areas.device;
    Atomics.store(device.region.u16, (device.offset >>> 1) + word, value);
    if (this.#memory.observed) this.#memory.markWritten(device.address + 2 * word, 2);
  }

  #markElements(from: number, count: number): void {
    const start = from & this.#mask;
    const head = Math.min(count, this.size - start);
    const ringAddress = this.#areas.device.address + ring.VIRTQ_USED_RING;
    const element = ring.VIRTQ_USED_ELEM_SIZE;
    this.#memory.markWritten(ringAddress + start * element, head * element);
    if (head < count) this.#memory.markWritten(ringAddress, (count - head) * element);
  }

  /** False while the queue is broken; looks for the rings again when a region under them was replaced. */
  #ready(): boolean {
    if (this.#fault !== undefined) return false;
    if (!this.#areas.lost) return true;
    this.#fault = this.#areas.attach();
    return this.#fault === undefined;
  }
}

function notInFlight(id: number): VirtkitError {
  return new VirtkitError(
    "ERR_VIRTKIT_NOT_IN_FLIGHT",
    `chain ${id} is not in flight; push each popped chain exactly once`,
  );
}

function tooMuch(id: number, written: number, room: number): VirtkitError {
  return new VirtkitError(
    "ERR_VIRTKIT_WRITTEN",
    `chain ${id} has room for ${room} bytes, so ${written} cannot have been written`,
  );
}
