import type { GuestMemory } from "../memory/guest-memory.ts";
import * as ring from "../spec/ring.ts";
import { chainError, type IndirectTables, IndirectWriter } from "./driver-common.ts";
import { duplicateFault, indexFault, usedLengthFault } from "./fault.ts";
import { RingAreas, sizeFault } from "./geometry.ts";
import { eventCrossed, loadFence, markSlots } from "./packed-common.ts";
import type { DriverQueue, QueueConfig, QueueFault, QueueFeatures, ScatterList } from "./types.ts";

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
const MAX_U32 = 2 ** 32 - 1;
const TO_HIGH = 2 ** -32;
/** Not in flight. */
const IDLE = -1;

/** The driver's side of a packed virtqueue (VIRTIO 1.4 §2.8). */
export class PackedDriverQueue implements DriverQueue {
  readonly size: number;
  readonly #memory: GuestMemory;
  readonly #areas: RingAreas;
  readonly #features: QueueFeatures;
  readonly #inOrder: boolean;
  readonly #indirect: IndirectWriter | undefined;
  // Our own state, kept apart from the ring, which the device's side can write to.
  /** By free buffer id: the next free one. */
  readonly #next: Uint16Array;
  /** By buffer id: slots of the ring the chain takes. */
  readonly #taken: Uint16Array;
  /** By id: device-writable bytes while the device has the chain; -2 minus them before and while {@link get} looks; else {@link IDLE}. */
  readonly #room: Float64Array;
  readonly #token: Uint32Array;
  /** Buffer ids of the chains added since the last {@link publish}. */
  readonly #fresh: Uint16Array;
  #freshCount = 0;
  /** IN_ORDER, by buffer id: when it was added; a 16-bit count of chains. */
  readonly #when: Uint16Array;
  /** Flags and buffer ids of the used descriptors that {@link get} is looking at. */
  readonly #found: Uint32Array;
  /** IN_ORDER: buffer ids in the order they were added, a ring of `size` entries. */
  readonly #order: Uint16Array;
  #orderNext = 0;
  #oldest = 0;
  #freeId = 0;
  #free: number;
  #inFlight = 0;
  #added = 0;
  #publishedAdded = 0;
  #availIndex = 0;
  /** The wrap counter as the flags of an available descriptor show it. */
  #availBits = AVAIL;
  #publishedIndex = 0;
  #publishedWrap = true;
  /** Slots added since the last {@link publish}. */
  #staged = 0;
  /** The last word of the first of them; written last of all, for it lets the device go on. */
  #heldWord = 0;
  #usedIndex = 0;
  /** The wrap counter as the flags of a used descriptor show it. */
  #usedBits = BOTH;
  /** IN_ORDER: the count of chains got back, and chains that the descriptor last read answers and that are to come. */
  #gotten = 0;
  #answered = 0;
  #answeredLength = 0;
  #callbacksOff = false;
  #detached = 0;
  #fault: QueueFault | undefined;

  constructor(memory: GuestMemory, config: QueueConfig, features: QueueFeatures, tables?: IndirectTables) {
    const bad = sizeFault(config.size, true);
    const size = bad === undefined ? config.size : 0;
    this.size = config.size;
    this.#memory = memory;
    this.#features = features;
    this.#inOrder = features.inOrder;
    this.#areas = new RingAreas(memory, config, features, "driver");
    this.#next = Uint16Array.from({ length: size }, (_, i) => (i + 1) % size);
    this.#taken = new Uint16Array(size);
    this.#room = new Float64Array(size).fill(IDLE);
    this.#token = new Uint32Array(size);
    this.#fresh = new Uint16Array(size);
    this.#when = new Uint16Array(features.inOrder ? size : 0);
    this.#found = new Uint32Array(size);
    this.#order = new Uint16Array(features.inOrder ? size : 0);
    this.#free = size;
    this.#fault = bad ?? this.#areas.attach();
    this.#indirect =
      features.indirect && tables !== undefined ? new IndirectWriter(memory, tables, size, false) : undefined;
    if (this.#fault === undefined) this.#areas.clear();
  }

  get fault(): QueueFault | undefined {
    return this.#fault;
  }

  get free(): number {
    return this.#free;
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  add(sg: ScatterList, first: number, out: number, in_: number, token: number): boolean {
    const total = out + in_;
    const indirect = this.#indirect;
    if (indirect !== undefined && total > 1 && total <= indirect.entries)
      return this.#addIndirect(indirect, sg, first, out, in_, token);
    if (this.#fault !== undefined) return false;
    if (total > this.#free || total < 1) {
      if (total < 1 || total > this.size) throw chainError(total, this.size);
      return false;
    }
    const size = this.size;
    const desc = this.#areas.desc;
    const table = desc.region.u32;
    const tableBase = desc.offset >>> 2;
    if (table.length === 0 && !this.#ready()) return false;
    const { address: addresses, length: lengths } = sg;
    const id = this.#freeId;
    let index = this.#availIndex;
    let bits = this.#availBits;
    let readableBytes = 0;
    let writableBytes = 0;
    let hold = this.#staged === 0;
    for (let i = 0; i < total; i++) {
      const address = addresses[first + i] as number;
      const length = lengths[first + i] as number;
      let tail = bits | id;
      if (i < out) readableBytes += length;
      else {
        writableBytes += length;
        tail |= WRITE;
      }
      if (i + 1 < total) tail |= NEXT;
      const at = tableBase + (index << 2);
      table[at] = address;
      table[at + 1] = address * TO_HIGH;
      table[at + 2] = length;
      if (hold) {
        this.#heldWord = tail;
        hold = false;
      } else table[at + 3] = tail;
      if (++index === size) {
        index = 0;
        bits ^= BOTH;
      }
    }
    if (readableBytes + writableBytes > CHAIN_MAX) throw chainError(total, size);
    this.#availIndex = index;
    this.#availBits = bits;
    this.#offer(id, total, writableBytes, token);
    return true;
  }

  /** One slot of the ring for the whole chain; the table of its buffer id holds the rest. */
  #addIndirect(
    indirect: IndirectWriter,
    sg: ScatterList,
    first: number,
    out: number,
    in_: number,
    token: number,
  ): boolean {
    if (!this.#ready() || this.#free === 0) return false;
    if (out + in_ > this.size) throw chainError(out + in_, this.size);
    const id = this.#freeId;
    const writableBytes = indirect.write(id, sg, first, out, in_);
    if (writableBytes < 0) throw chainError(out + in_, this.size);
    const address = indirect.address(id);
    const { region, offset } = this.#areas.desc;
    const at = (offset >>> 2) + (this.#availIndex << 2);
    const tail = this.#availBits | INDIRECT | id;
    region.u32[at] = address;
    region.u32[at + 1] = address * TO_HIGH;
    region.u32[at + 2] = (out + in_) * DESC_SIZE;
    if (this.#staged === 0) this.#heldWord = tail;
    else region.u32[at + 3] = tail;
    if (++this.#availIndex === this.size) {
      this.#availIndex = 0;
      this.#availBits ^= BOTH;
    }
    this.#offer(id, 1, writableBytes, token);
    return true;
  }

  #offer(id: number, slots: number, writableBytes: number, token: number): void {
    this.#freeId = this.#next[id] as number;
    this.#taken[id] = slots;
    this.#room[id] = -2 - writableBytes;
    this.#token[id] = token;
    this.#fresh[this.#freshCount++] = id;
    if (this.#inOrder) {
      this.#when[id] = this.#added;
      this.#order[this.#orderNext] = id;
      this.#orderNext = (this.#orderNext + 1) % this.size;
    }
    this.#added = (this.#added + 1) & 0xffff;
    this.#staged += slots;
    this.#free -= slots;
    this.#inFlight++;
  }

  publish(): boolean {
    const staged = this.#staged;
    if (staged === 0 || !this.#ready()) return false;
    const { desc, device } = this.#areas;
    const from = this.#publishedIndex;
    const observed = this.#memory.observed;
    const fresh = this.#fresh;
    const rooms = this.#room;
    const freshCount = this.#freshCount;
    for (let i = 0; i < freshCount; i++) {
      const id = fresh[i] as number;
      rooms[id] = -2 - (rooms[id] as number);
    }
    this.#freshCount = 0;
    if (observed) markSlots(this.#memory, desc.address, from, staged, this.size);
    // The sequentially consistent store is also the full fence between publishing and looking whether to notify.
    Atomics.store(desc.region.u32, (desc.offset >>> 2) + (from << 2) + 3, this.#heldWord);
    if (observed) this.#memory.markWritten(desc.address + from * DESC_SIZE + 12, 4);
    this.#staged = 0;
    this.#publishedAdded = this.#added;
    this.#publishedIndex = this.#availIndex;
    this.#publishedWrap = this.#availBits === AVAIL;
    const event = Atomics.load(device.region.u32, device.offset >>> 2);
    return eventCrossed(event, this.#features.eventIdx, this.#publishedIndex, this.#publishedWrap, staged, this.size);
  }

  kickData(): number {
    return this.#publishedIndex | (this.#publishedWrap ? 0x8000 : 0);
  }

  get(tokens: Uint32Array, lengths: Uint32Array, max: number): number {
    if (!this.#ready() || (this.#answered === 0 && !this.#usedWaits())) return 0;
    const limit = Math.min(max, tokens.length, lengths.length, this.size);
    if (this.#inOrder) return this.#takeInOrder(tokens, lengths, limit);
    const count = this.#collect(tokens, limit);
    if (count > 1) loadFence();
    return this.#measure(lengths, count);
  }

  /** Takes the used descriptors from the next one on: ids and flags come in one word, and so before any fence. */
  #collect(tokens: Uint32Array, limit: number): number {
    const size = this.size;
    const words = this.#areas.desc.region.u32;
    const base = (this.#areas.desc.offset >>> 2) + 3;
    const rooms = this.#room;
    const token = this.#token;
    const taken = this.#taken;
    const found = this.#found;
    let index = this.#usedIndex;
    let bits = this.#usedBits;
    let count = 0;
    for (; count < limit; count++) {
      const word = words[base + (index << 2)] as number;
      if ((word & BOTH) !== bits) break;
      const id = word & 0xffff;
      if (id >= size) {
        this.#fault = indexFault("used buffer id", id, size);
        break;
      }
      const room = rooms[id] as number;
      if (room < 0) {
        this.#fault = duplicateFault("used while not in flight: buffer id", id);
        break;
      }
      rooms[id] = -2 - room;
      found[count] = word;
      tokens[count] = token[id] as number;
      index += taken[id] as number;
      if (index >= size) {
        index -= size;
        bits ^= BOTH;
      }
    }
    return count;
  }

  /** Reads the lengths of the `count` used descriptors that #collect found, and frees them. */
  #measure(lengths: Uint32Array, count: number): number {
    const size = this.size;
    const words = this.#areas.desc.region.u32;
    const base = (this.#areas.desc.offset >>> 2) + 2;
    const rooms = this.#room;
    const taken = this.#taken;
    const found = this.#found;
    const next = this.#next;
    let index = this.#usedIndex;
    let bits = this.#usedBits;
    let freeId = this.#freeId;
    let free = this.#free;
    let done = 0;
    for (; done < count; done++) {
      const word = found[done] as number;
      const id = word & 0xffff;
      const room = -2 - (rooms[id] as number);
      let length = words[base + (index << 2)] as number;
      if (length > room) {
        // Without WRITE the length is reserved; QEMU never sets the flag, so a plausible length is believed.
        if ((word & WRITE) !== 0) {
          this.#fault = usedLengthFault(id, length, room);
          break;
        }
        length = 0;
      }
      lengths[done] = length;
      rooms[id] = IDLE;
      next[id] = freeId;
      freeId = id;
      const slots = taken[id] as number;
      free += slots;
      index += slots;
      if (index >= size) {
        index -= size;
        bits ^= BOTH;
      }
    }
    this.#freeId = freeId;
    this.#free = free;
    this.#usedIndex = index;
    this.#usedBits = bits;
    this.#inFlight -= done;
    for (let i = done; i < count; i++) {
      const id = (found[i] as number) & 0xffff;
      rooms[id] = -2 - (rooms[id] as number);
    }
    return done;
  }

  /** A used descriptor may answer all chains up to the one it names; those in front count as wholly written (§2.8.8). */
  #takeInOrder(tokens: Uint32Array, lengths: Uint32Array, limit: number): number {
    let count = 0;
    for (; count < limit; count++) {
      if (this.#answered === 0 && !(this.#usedWaits() && this.#readBatch())) break;
      const id = this.#order[this.#oldest] as number;
      const room = this.#room[id] as number;
      const slots = this.#taken[id] as number;
      this.#answered--;
      tokens[count] = this.#token[id] as number;
      lengths[count] = this.#answered === 0 ? this.#answeredLength : Math.min(room, MAX_U32);
      this.#room[id] = IDLE;
      this.#next[id] = this.#freeId;
      this.#freeId = id;
      this.#free += slots;
      this.#inFlight--;
      this.#gotten = (this.#gotten + 1) & 0xffff;
      this.#oldest = (this.#oldest + 1) % this.size;
      this.#usedIndex += slots;
      if (this.#usedIndex < this.size) continue;
      this.#usedIndex -= this.size;
      this.#usedBits ^= BOTH;
    }
    return count;
  }

  /** Reads the used descriptor at the used index and finds out how many chains it answers. */
  #readBatch(): boolean {
    const { region, offset } = this.#areas.desc;
    const at = (offset >>> 2) + (this.#usedIndex << 2);
    const word = Atomics.load(region.u32, at + 3);
    const length = region.u32[at + 2] as number;
    const id = word & 0xffff;
    if (id >= this.size) {
      this.#fault = indexFault("used buffer id", id, this.size);
      return false;
    }
    const room = this.#room[id] as number;
    const answered = (((this.#when[id] as number) - this.#gotten) & 0xffff) + 1;
    if (room < 0 || answered > ((this.#publishedAdded - this.#gotten) & 0xffff)) {
      this.#fault = duplicateFault("used while not in flight: buffer id", id);
      return false;
    }
    if (length > room && (word & WRITE) !== 0) {
      this.#fault = usedLengthFault(id, length, room);
      return false;
    }
    this.#answered = answered;
    this.#answeredLength = length > room ? 0 : length;
    return true;
  }

  /** True when the descriptor at the used index is marked used. */
  #usedWaits(): boolean {
    if (!this.#ready()) return false;
    const { region, offset } = this.#areas.desc;
    const word = Atomics.load(region.u32, (offset >>> 2) + (this.#usedIndex << 2) + 3);
    return (word & BOTH) === this.#usedBits;
  }

  disableCallbacks(): void {
    if (this.#callbacksOff || !this.#ready()) return;
    this.#callbacksOff = true;
    this.#setEvent(ring.RING_EVENT_FLAGS_DISABLE << 16);
  }

  enableCallbacks(): boolean {
    if (!this.#ready()) return false;
    if (this.#features.eventIdx) {
      const wrap = this.#usedBits === BOTH ? 1 << ring.RING_EVENT_WRAP_SHIFT : 0;
      this.#setEvent((ring.RING_EVENT_FLAGS_DESC << 16) | wrap | this.#usedIndex);
    } else if (this.#callbacksOff) this.#setEvent(ring.RING_EVENT_FLAGS_ENABLE << 16);
    this.#callbacksOff = false;
    return this.#answered > 0 || this.#usedWaits();
  }

  detach(): number {
    for (; this.#detached < this.#room.length; this.#detached++) {
      const id = this.#detached;
      if (this.#room[id] === IDLE) continue;
      this.#room[id] = IDLE;
      this.#free += this.#taken[id] as number;
      this.#inFlight--;
      return this.#token[id] as number;
    }
    return -1;
  }

  /** Stores the driver event suppression structure, flags and position in one go. */
  #setEvent(word: number): void {
    const driver = this.#areas.driver;
    Atomics.store(driver.region.u32, driver.offset >>> 2, word);
    if (this.#memory.observed) this.#memory.markWritten(driver.address, 4);
  }

  #ready(): boolean {
    if (this.#fault !== undefined) return false;
    if (!this.#areas.lost) return true;
    this.#fault = this.#areas.attach();
    return this.#fault === undefined;
  }
}
