import type { GuestMemory } from "../memory/guest-memory.ts";
import * as ring from "../spec/ring.ts";
import { BATCH_SEGMENTS, type ChainBatch } from "./chain-batch.ts";
import { ChainWalker } from "./chain-walker.ts";
import { notInFlight, writtenTooMuch } from "./device-common.ts";
import { chainLengthFault, duplicateFault, indexFault, indexJumpFault, indirectFault } from "./fault.ts";
import { RingAreas, sizeFault } from "./geometry.ts";
import { TableWalker } from "./table-walker.ts";
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
  readonly #tables: TableWalker;
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
    this.#tables = new TableWalker(memory, true);
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
    let count = 0;
    // Where the first chain is not plain the others rarely are: Linux makes almost all of them indirect.
    let plain = true;
    while (count < limit && !batch.full) {
      if (plain) {
        const taken = this.#takePlain(batch, limit - count);
        count += taken;
        plain = taken > 0;
        if (count >= limit || batch.full) break;
      }
      if (!this.#takeAny(batch)) break;
      count++;
    }
    return count;
  }

  /**
   * The hot loop: takes up to `limit` chains, each of direct descriptors whose buffers lie in one region each. Ends early
   * in front of a chain that is anything else, good or bad, and forgets what it read of it. It calls nothing: a call
   * would make the compiler load every array's bounds again for each chain.
   */
  #takePlain(batch: ChainBatch, limit: number): number {
    const size = this.size;
    const mask = this.#mask;
    const room = this.#room;
    const order = this.#order;
    const { base: bases, end: ends, writable: writables } = this.#memory.columns;
    const { desc, driver } = this.#areas;
    const table = desc.region.u32;
    const tableBase = desc.offset >>> 2;
    const avail = driver.region.u16;
    const entries = (driver.offset >>> 1) + 2;
    const position = this.#availIndex;
    const start = batch.count;
    const { id, first, readable, writable, readableBytes, writableBytes, region, offset, length } = batch;
    const segmentLimit = Math.min(length.length, BATCH_SEGMENTS);
    let segments = batch.segments;
    let regionIndex = 0;
    let base = 0.5;
    let end = 0.5;
    let canWrite = 0;
    let count = 0;
    chains: while (count < limit) {
      const head = avail[entries + ((position + count) & mask)] as number;
      if (head >= size || (room[head] as number) >= 0) break;
      let segment = segments;
      let index = head;
      let descriptors = 1;
      let firstWritable = -1;
      let bytes = 0;
      let bytesBeforeWritable = 0;
      for (;;) {
        const at = tableBase + (index << 2);
        const tail = table[at + 3] as number;
        const size32 = table[at + 2] as number;
        const address = (table[at + 1] as number) * TWO_32 + (table[at] as number);
        if ((tail & INDIRECT) !== 0 || size32 === 0 || segment >= segmentLimit) break chains;
        if (!(address >= base && address + size32 <= end)) {
          regionIndex = 0;
          while (regionIndex < bases.length && !(address < (ends[regionIndex] as number))) regionIndex++;
          if (regionIndex === bases.length) break chains;
          base = bases[regionIndex] as number;
          end = ends[regionIndex] as number;
          canWrite = writables[regionIndex] as number;
          if (!(address >= base && address + size32 <= end)) break chains;
        }
        if ((tail & WRITE) !== 0) {
          if (canWrite === 0) break chains;
          if (firstWritable < 0) {
            firstWritable = segment;
            bytesBeforeWritable = bytes;
          }
        } else if (firstWritable >= 0) break chains;
        bytes += size32;
        region[segment] = regionIndex;
        offset[segment] = address - base;
        length[segment] = size32;
        segment++;
        if ((tail & NEXT) === 0) break;
        index = tail >>> 16;
        if (index >= size || descriptors++ === size) break chains;
      }
      if (bytes > CHAIN_MAX) break;
      if (firstWritable < 0) {
        firstWritable = segment;
        bytesBeforeWritable = bytes;
      }
      const chain = start + count;
      id[chain] = head;
      first[chain] = segments;
      readable[chain] = firstWritable - segments;
      writable[chain] = segment - firstWritable;
      readableBytes[chain] = bytesBeforeWritable;
      writableBytes[chain] = bytes - bytesBeforeWritable;
      room[head] = bytes - bytesBeforeWritable;
      order[(position + count) & mask] = head;
      segments = segment;
      count++;
    }
    this.#taken(batch, count, segments);
    return count;
  }

  /** Takes the next chain, of whatever kind. False, with the fault set, when it is malformed. */
  #takeAny(batch: ChainBatch): boolean {
    const { driver } = this.#areas;
    const slot = this.#availIndex & this.#mask;
    const head = driver.region.u16[(driver.offset >>> 1) + 2 + slot] as number;
    const chain = batch.count;
    if (head >= this.size) this.#fault = indexFault("available head", head, this.size);
    else if ((this.#room[head] as number) >= 0) this.#fault = duplicateFault("made available twice: head", head);
    if (this.#fault !== undefined) return false;
    let segments = this.#quickTable(batch, head);
    if (segments < 0) segments = this.#walk(batch, head);
    if (segments < 0) return false;
    batch.id[chain] = head;
    this.#room[head] = batch.writableBytes[chain] as number;
    this.#order[slot] = head;
    this.#taken(batch, 1, segments);
    return true;
  }

  /** The quick way through a chain that is one indirect table. Returns as {@link TableWalker.walk}. */
  #quickTable(batch: ChainBatch, head: number): number {
    const { desc } = this.#areas;
    const words = desc.region.u32;
    const at = (desc.offset >>> 2) + (head << 2);
    if (((words[at + 3] as number) & (INDIRECT | NEXT)) !== INDIRECT || !this.#features.indirect) return -1;
    const address = (words[at + 1] as number) * TWO_32 + (words[at] as number);
    return this.#tables.walk(batch, address, words[at + 2] as number);
  }

  /** The thorough way, from the head on again. Returns the index behind the last segment; -1, with the fault set, for none. */
  #walk(batch: ChainBatch, head: number): number {
    const { desc } = this.#areas;
    const walker = this.#walker;
    walker.begin(batch);
    if (this.#follow(desc.region.u32, desc.offset >>> 2, head)) return walker.end();
    this.#fault = walker.fault;
    return -1;
  }

  #taken(batch: ChainBatch, count: number, segments: number): void {
    batch.count += count;
    batch.segments = segments;
    this.#availIndex = (this.#availIndex + count) & 0xffff;
    this.#inFlight += count;
  }

  /** Walks the chain of any kind that begins at `head`. */
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
    if (!(written <= room)) throw writtenTooMuch(id, written, room);
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
