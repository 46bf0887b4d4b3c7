import type { GuestMemory } from "../memory/guest-memory.ts";
import * as ring from "../spec/ring.ts";
import { BATCH_SEGMENTS, type ChainBatch } from "./chain-batch.ts";
import { ChainWalker } from "./chain-walker.ts";
import { notInFlight, writtenTooMuch } from "./device-common.ts";
import { chainLengthFault, duplicateFault, faultOf, flagsFault, indexJumpFault, indirectFault } from "./fault.ts";
import { RingAreas, sizeFault } from "./geometry.ts";
import { eventCrossed, loadFence, markSlots } from "./packed-common.ts";
import { TableWalker } from "./table-walker.ts";
import type { DeviceQueue, QueueConfig, QueueFault, QueueFeatures, QueueState } from "./types.ts";

// Aliases of the module's own: an imported binding is looked up again at each use. Flags sit in the upper half of a
// descriptor's last word, the buffer id in the lower.
const NEXT = ring.VIRTQ_DESC_F_NEXT << 16;
const WRITE = ring.VIRTQ_DESC_F_WRITE << 16;
const INDIRECT = ring.VIRTQ_DESC_F_INDIRECT << 16;
const AVAIL = ring.VIRTQ_PACKED_DESC_F_AVAIL << 16;
const USED = ring.VIRTQ_PACKED_DESC_F_USED << 16;
const BOTH = AVAIL | USED;
const CHAIN_MAX = ring.VIRTQ_CHAIN_MAX_BYTES;
const DESC_SIZE = ring.VIRTQ_PACKED_DESC_SIZE;
const TWO_32 = 2 ** 32;
/** Buffer ids are 16 bits wide; those past the queue's size are unusual but allowed. */
const IDS = 65536;
const IDLE = -1;

/** The device's side of a packed virtqueue (VIRTIO 1.4 §2.8). */
export class PackedDeviceQueue implements DeviceQueue {
  readonly size: number;
  readonly #memory: GuestMemory;
  readonly #areas: RingAreas;
  readonly #features: QueueFeatures;
  readonly #walker: ChainWalker;
  readonly #tables: TableWalker;
  /** By buffer id: device-writable bytes of the chain while it is in flight, else {@link IDLE}. */
  #room: Float64Array;
  /** By buffer id: descriptors the chain takes in the ring. */
  #taken: Uint16Array;
  /** IN_ORDER only, by buffer id: bytes written by a chain that waits for those before it, else {@link IDLE}. */
  #done: Float64Array;
  /** Buffer ids in the order they were popped: a ring of `size` entries. */
  readonly #order: Uint16Array;
  #orderNext = 0;
  /** Buffer id of the chain that #follow walked last. */
  #lastId = 0;
  /** IN_ORDER only: entry of #order of the oldest chain that was not used. */
  #oldest = 0;
  /** Chains popped and not staged. */
  #waiting = 0;
  #availIndex: number;
  /** The wrap counter as the flags of an available descriptor show it. */
  #availBits: number;
  #usedIndex: number;
  #usedWrap: boolean;
  #publishedIndex: number;
  #publishedWrap: boolean;
  /** Slots that the staged used descriptors take. */
  #staged = 0;
  /** The last word of the first staged descriptor; written last of all, for it lets the driver go on. */
  #heldWord = 0;
  #inFlight = 0;
  /** Slots that the driver cannot have written to again: of chains in flight and of those staged. */
  #descriptors = 0;
  #kicksOff = false;
  #notifyNext: boolean;
  #fault: QueueFault | undefined;

  constructor(memory: GuestMemory, config: QueueConfig, features: QueueFeatures, state?: QueueState) {
    const bad = sizeFault(config.size, true);
    const size = bad === undefined ? config.size : 0;
    this.size = config.size;
    this.#memory = memory;
    this.#features = features;
    this.#walker = new ChainWalker(memory);
    this.#tables = new TableWalker(memory, false);
    this.#areas = new RingAreas(memory, config, features, "device");
    this.#room = new Float64Array(size).fill(IDLE);
    this.#taken = new Uint16Array(size);
    this.#done = new Float64Array(features.inOrder ? size : 0).fill(IDLE);
    this.#order = new Uint16Array(size);
    this.#availIndex = state?.availIndex ?? 0;
    this.#availBits = (state?.availWrap ?? true) ? AVAIL : USED;
    this.#usedIndex = this.#publishedIndex = state?.usedIndex ?? 0;
    this.#usedWrap = this.#publishedWrap = state?.usedWrap ?? true;
    // Whoever ran the queue before may have stopped between a used descriptor and its notification.
    this.#notifyNext = state !== undefined && (this.#usedIndex !== 0 || !this.#usedWrap);
    const outside = state !== undefined && !(state.availIndex < size && state.usedIndex < size);
    this.#fault = bad ?? (outside ? faultOf("index-jump", "the state lies past the ring") : this.#areas.attach());
  }

  get fault(): QueueFault | undefined {
    return this.#fault;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  pop(batch: ChainBatch, max: number): number {
    if (!this.available()) return 0;
    const room = Math.min(max, batch.capacity - batch.count);
    const limit = room > 1 ? this.#look(room) : room;
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
   * How many chains are available, at least 1 (the first was looked at with an atomic load) and at most `limit`. The
   * fence behind the plain loads lets the descriptors of all of them be read.
   */
  #look(limit: number): number {
    const size = this.size;
    const desc = this.#areas.desc;
    const words = desc.region.u32;
    const base = (desc.offset >>> 2) + 3;
    let index = this.#availIndex;
    let bits = this.#availBits;
    let chains = 0;
    for (let seen = 0; seen < size && chains < limit; seen++) {
      const word = words[base + (index << 2)] as number;
      if ((word & BOTH) !== bits) break;
      if ((word & NEXT) === 0) chains++;
      if (++index === size) {
        index = 0;
        bits ^= BOTH;
      }
    }
    if (chains < 2) return 1;
    loadFence();
    return chains;
  }

  /**
   * The hot loop: takes up to `limit` chains, each of direct descriptors whose buffers lie in one region each. Ends early
   * in front of a chain that is anything else, good or bad, and forgets what it read of it. It calls nothing: a call
   * would make the compiler load every array's bounds again for each chain.
   */
  #takePlain(batch: ChainBatch, limit: number): number {
    const size = this.size;
    const room = this.#room;
    const taken = this.#taken;
    const order = this.#order;
    const { base: bases, end: ends, writable: writables } = this.#memory.columns;
    const desc = this.#areas.desc;
    const table = desc.region.u32;
    const tableBase = desc.offset >>> 2;
    const start = batch.count;
    const { id, first, readable, writable, readableBytes, writableBytes, region, offset, length } = batch;
    const segmentLimit = Math.min(length.length, BATCH_SEGMENTS);
    let segments = batch.segments;
    let descriptors = this.#descriptors;
    let orderNext = this.#orderNext;
    let position = this.#availIndex;
    let positionBits = this.#availBits;
    let regionIndex = 0;
    let base = 0.5;
    let end = 0.5;
    let canWrite = 0;
    let count = 0;
    chains: while (count < limit) {
      let segment = segments;
      let index = position;
      let bits = positionBits;
      let firstWritable = -1;
      let bytes = 0;
      let bytesBeforeWritable = 0;
      let tail = 0;
      for (;;) {
        const at = tableBase + (index << 2);
        tail = table[at + 3] as number;
        const size32 = table[at + 2] as number;
        const address = (table[at + 1] as number) * TWO_32 + (table[at] as number);
        if ((tail & (BOTH | INDIRECT)) !== bits || size32 === 0 || segment >= segmentLimit) break chains;
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
        if (++index === size) {
          index = 0;
          bits ^= BOTH;
        }
        if ((tail & NEXT) === 0) break;
        if (descriptors + (segment - segments) >= size) break chains;
      }
      const bufferId = tail & 0xffff;
      const links = segment - segments;
      if (bytes > CHAIN_MAX || descriptors + links > size) break;
      if (bufferId >= room.length || (room[bufferId] as number) >= 0) break;
      if (firstWritable < 0) {
        firstWritable = segment;
        bytesBeforeWritable = bytes;
      }
      const chain = start + count;
      id[chain] = bufferId;
      first[chain] = segments;
      readable[chain] = firstWritable - segments;
      writable[chain] = segment - firstWritable;
      readableBytes[chain] = bytesBeforeWritable;
      writableBytes[chain] = bytes - bytesBeforeWritable;
      room[bufferId] = bytes - bytesBeforeWritable;
      taken[bufferId] = links;
      order[orderNext] = bufferId;
      if (++orderNext === size) orderNext = 0;
      descriptors += links;
      position = index;
      positionBits = bits;
      segments = segment;
      count++;
    }
    batch.count = start + count;
    batch.segments = segments;
    this.#availIndex = position;
    this.#availBits = positionBits;
    this.#descriptors = descriptors;
    this.#orderNext = orderNext;
    this.#inFlight += count;
    this.#waiting += count;
    return count;
  }

  /** Takes the next chain, of whatever kind. False, with the fault set, when it is malformed. */
  #takeAny(batch: ChainBatch): boolean {
    let segments = this.#quickTable(batch);
    let links = 1;
    if (segments < 0) {
      this.#walker.begin(batch);
      links = this.#follow();
      if (links < 0) {
        this.#fault = this.#walker.fault;
        return false;
      }
      segments = this.#walker.end();
    }
    const chain = batch.count;
    const id = this.#lastId;
    if (id >= this.#room.length) this.#allowAllIds();
    if ((this.#room[id] as number) >= 0) {
      this.#fault = duplicateFault("made available twice: buffer id", id);
      return false;
    }
    batch.id[chain] = id;
    batch.segments = segments;
    batch.count = chain + 1;
    this.#room[id] = batch.writableBytes[chain] as number;
    this.#taken[id] = links;
    this.#order[this.#orderNext] = id;
    this.#orderNext = (this.#orderNext + 1) % this.size;
    this.#descriptors += links;
    this.#inFlight++;
    this.#waiting++;
    this.#advance(links);
    return true;
  }

  /** The quick way through a chain that is one indirect table. Returns as {@link TableWalker.walk} and leaves its id. */
  #quickTable(batch: ChainBatch): number {
    const desc = this.#areas.desc;
    const words = desc.region.u32;
    const at = (desc.offset >>> 2) + (this.#availIndex << 2);
    const tail = words[at + 3] as number;
    const plain = (tail & (BOTH | INDIRECT | NEXT)) === (this.#availBits | INDIRECT);
    if (!plain || !this.#features.indirect || this.#descriptors >= this.size) return -1;
    this.#lastId = tail & 0xffff;
    const address = (words[at + 1] as number) * TWO_32 + (words[at] as number);
    return this.#tables.walk(batch, address, words[at + 2] as number);
  }

  /** Walks the chain at the available position. Returns the descriptors it takes and leaves its id, or -1. */
  #follow(): number {
    const size = this.size;
    const walker = this.#walker;
    const desc = this.#areas.desc;
    const words = desc.region.u32;
    const base = desc.offset >>> 2;
    let index = this.#availIndex;
    let bits = this.#availBits;
    for (let links = 1; ; links++) {
      if (links > size) walker.stop(chainLengthFault(size));
      else if (this.#descriptors + links > size)
        walker.stop(indexJumpFault("available", this.#descriptors + links, size));
      if (walker.fault !== undefined) return -1;
      const at = base + index * 4;
      const tail = words[at + 3] as number;
      const length = words[at + 2] as number;
      const address = (words[at + 1] as number) * TWO_32 + (words[at] as number);
      if ((tail & BOTH) !== bits) walker.stop(flagsFault(index, tail));
      else if ((tail & INDIRECT) !== 0) this.#followTable(address, length, links > 1 || (tail & NEXT) !== 0);
      else walker.add(address, length, (tail & WRITE) !== 0);
      if (walker.fault !== undefined) return -1;
      if (++index === size) {
        index = 0;
        bits ^= BOTH;
      }
      if ((tail & NEXT) === 0) {
        this.#lastId = tail & 0xffff;
        return links;
      }
    }
  }

  #followTable(address: number, length: number, linked: boolean): boolean {
    const walker = this.#walker;
    if (!this.#features.indirect) return walker.stop(indirectFault("the feature was not negotiated"));
    if (linked) return walker.stop(indirectFault("in a list linked by NEXT"));
    return walker.addRow(address, length);
  }

  #advance(links: number): void {
    this.#availIndex += links;
    if (this.#availIndex < this.size) return;
    this.#availIndex -= this.size;
    this.#availBits ^= BOTH;
  }

  #allowAllIds(): void {
    const room = new Float64Array(IDS).fill(IDLE);
    const taken = new Uint16Array(IDS);
    room.set(this.#room);
    taken.set(this.#taken);
    this.#room = room;
    this.#taken = taken;
    if (!this.#features.inOrder) return;
    const done = new Float64Array(IDS).fill(IDLE);
    done.set(this.#done);
    this.#done = done;
  }

  unpop(count: number): void {
    if (this.#fault !== undefined) return;
    for (let i = 0; i < count; i++) {
      const slot = (this.#orderNext + this.size - 1) % this.size;
      const id = this.#order[slot] as number;
      if (!(this.#inFlight > 0 && (this.#room[id] as number) >= 0)) throw notInFlight(id);
      this.#room[id] = IDLE;
      this.#orderNext = slot;
      const links = this.#taken[id] as number;
      this.#descriptors -= links;
      this.#inFlight--;
      this.#waiting--;
      this.#availIndex -= links;
      if (this.#availIndex >= 0) continue;
      this.#availIndex += this.size;
      this.#availBits ^= BOTH;
    }
  }

  push(id: number, written: number): void {
    if (this.#fault !== undefined) return;
    const room = this.#room[id] as number;
    if (!(room >= 0)) throw notInFlight(id);
    if (!(written <= room)) throw writtenTooMuch(id, written, room);
    if (this.#features.inOrder) {
      this.#hold(id, written);
      return;
    }
    this.#inFlight--;
    this.#stage(id, written);
  }

  #stage(id: number, written: number): void {
    const desc = this.#areas.desc;
    const words = desc.region.u32;
    if (words.length === 0 && !this.#ready()) return;
    const at = (desc.offset >>> 2) + (this.#usedIndex << 2);
    const links = this.#taken[id] as number;
    let word = id;
    if (this.#usedWrap) word |= BOTH;
    if (written > 0) word |= WRITE;
    // A length of 2^32 cannot be said; an underestimate is allowed.
    words[at + 2] = written < TWO_32 ? written : TWO_32 - 1;
    if (this.#staged === 0) this.#heldWord = word;
    else words[at + 3] = word;
    this.#room[id] = IDLE;
    this.#waiting--;
    this.#staged += links;
    this.#usedIndex += links;
    if (this.#usedIndex < this.size) return;
    this.#usedIndex -= this.size;
    this.#usedWrap = !this.#usedWrap;
  }

  /** IN_ORDER: stages this chain and those behind it that wait for nothing else (VIRTIO 1.4 §2.8.8). */
  #hold(id: number, written: number): void {
    const done = this.#done;
    if ((done[id] as number) >= 0) throw notInFlight(id);
    done[id] = written;
    this.#inFlight--;
    while (this.#waiting > 0) {
      const oldest = this.#order[this.#oldest] as number;
      const bytes = done[oldest] as number;
      if (bytes < 0) break;
      done[oldest] = IDLE;
      this.#oldest = (this.#oldest + 1) % this.size;
      this.#stage(oldest, bytes);
    }
  }

  flush(): boolean {
    const staged = this.#staged;
    if (staged === 0 || !this.#ready()) return false;
    const desc = this.#areas.desc;
    const at = (desc.offset >>> 2) + (this.#publishedIndex << 2);
    const observed = this.#memory.observed;
    if (observed) markSlots(this.#memory, desc.address, this.#publishedIndex, staged, this.size);
    // The sequentially consistent store is also the full fence between publishing and looking whether to notify.
    Atomics.store(desc.region.u32, at + 3, this.#heldWord);
    if (observed) this.#memory.markWritten(desc.address + this.#publishedIndex * DESC_SIZE + 12, 4);
    this.#staged = 0;
    this.#descriptors -= staged;
    this.#publishedIndex = this.#usedIndex;
    this.#publishedWrap = this.#usedWrap;
    if (this.#notifyNext) {
      this.#notifyNext = false;
      return true;
    }
    const driver = this.#areas.driver;
    const event = Atomics.load(driver.region.u32, driver.offset >>> 2);
    return eventCrossed(event, this.#features.eventIdx, this.#usedIndex, this.#usedWrap, staged, this.size);
  }

  disableKicks(): void {
    if (this.#kicksOff || !this.#ready()) return;
    this.#kicksOff = true;
    this.#setEvent(ring.RING_EVENT_FLAGS_DISABLE << 16);
  }

  enableKicks(): boolean {
    if (!this.#ready()) return false;
    if (this.#features.eventIdx) {
      const wrap = this.#availBits === AVAIL ? 1 << ring.RING_EVENT_WRAP_SHIFT : 0;
      this.#setEvent((ring.RING_EVENT_FLAGS_DESC << 16) | wrap | this.#availIndex);
    } else if (this.#kicksOff) this.#setEvent(ring.RING_EVENT_FLAGS_ENABLE << 16);
    this.#kicksOff = false;
    return this.available();
  }

  available(): boolean {
    if (!this.#ready()) return false;
    const desc = this.#areas.desc;
    const tail = Atomics.load(desc.region.u32, (desc.offset >>> 2) + (this.#availIndex << 2) + 3);
    if ((tail & BOTH) === this.#availBits) return true;
    // This lap's mark of a used descriptor can be nowhere but behind us.
    const used = this.#availBits === AVAIL ? BOTH : 0;
    if ((tail & BOTH) === used) this.#fault = flagsFault(this.#availIndex, tail);
    return false;
  }

  state(): QueueState {
    return {
      availIndex: this.#availIndex,
      availWrap: this.#availBits === AVAIL,
      usedIndex: this.#publishedIndex,
      usedWrap: this.#publishedWrap,
    };
  }

  /** Stores the device event suppression structure, flags and position in one go. */
  #setEvent(word: number): void {
    const device = this.#areas.device;
    Atomics.store(device.region.u32, device.offset >>> 2, word);
    if (this.#memory.observed) this.#memory.markWritten(device.address, 4);
  }

  /** False while the queue is broken; looks for the rings again when a region under them was replaced. */
  #ready(): boolean {
    if (this.#fault !== undefined) return false;
    if (!this.#areas.lost) return true;
    this.#fault = this.#areas.attach();
    return this.#fault === undefined;
  }
}
