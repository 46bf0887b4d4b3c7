import type { GuestMemory } from "../memory/guest-memory.ts";
import * as ring from "../spec/ring.ts";
import { chainError, type IndirectTables, IndirectWriter } from "./driver-common.ts";
import { duplicateFault, indexFault, indexJumpFault, usedLengthFault } from "./fault.ts";
import { RingAreas, sizeFault } from "./geometry.ts";
import type { DriverQueue, QueueConfig, QueueFault, QueueFeatures, ScatterList } from "./types.ts";

// Aliases of the module's own: an imported binding is looked up again at each use.
const NEXT = ring.VIRTQ_DESC_F_NEXT;
const WRITE = ring.VIRTQ_DESC_F_WRITE;
const INDIRECT = ring.VIRTQ_DESC_F_INDIRECT;
const CHAIN_MAX = ring.VIRTQ_CHAIN_MAX_BYTES;
const MAX_U32 = 2 ** 32 - 1;
const TO_HIGH = 2 ** -32;
/** Not in flight. */
const IDLE = -1;

/** The driver's side of a split virtqueue (VIRTIO 1.4 §2.7). */
export class SplitDriverQueue implements DriverQueue {
  readonly size: number;
  readonly #mask: number;
  readonly #memory: GuestMemory;
  readonly #areas: RingAreas;
  readonly #features: QueueFeatures;
  readonly #inOrder: boolean;
  readonly #indirect: IndirectWriter | undefined;
  // Our own state, kept apart from the rings, which the device's side can write to.
  /** By descriptor: the one behind it, in a chain or in the list of free ones. */
  readonly #next: Uint16Array;
  /** By head: the chain's last descriptor. */
  readonly #last: Uint16Array;
  /** By head: descriptors in the chain. */
  readonly #taken: Uint16Array;
  /** By head: device-writable bytes while the device has the chain; -2 minus them before that; else {@link IDLE}. */
  readonly #room: Float64Array;
  readonly #token: Uint32Array;
  /** IN_ORDER, by head: its position in the available ring. */
  readonly #position: Uint16Array;
  /** By position: the head made available there. */
  readonly #order: Uint16Array;
  #freeHead = 0;
  #free: number;
  #availIndex = 0;
  #published = 0;
  #usedIndex = 0;
  #inFlight = 0;
  /** IN_ORDER: chains that the used element last read answers and that {@link get} has not returned yet. */
  #answered = 0;
  #answeredLength = 0;
  #callbacksOff = false;
  #detached = 0;
  #fault: QueueFault | undefined;

  constructor(memory: GuestMemory, config: QueueConfig, features: QueueFeatures, tables?: IndirectTables) {
    const bad = sizeFault(config.size, false);
    const size = bad === undefined ? config.size : 0;
    this.size = config.size;
    this.#mask = size - 1;
    this.#memory = memory;
    this.#features = features;
    this.#inOrder = features.inOrder;
    this.#areas = new RingAreas(memory, config, features, "driver");
    this.#next = Uint16Array.from({ length: size }, (_, i) => (i + 1) & (size - 1));
    this.#last = new Uint16Array(size);
    this.#taken = new Uint16Array(size);
    this.#room = new Float64Array(size).fill(IDLE);
    this.#token = new Uint32Array(size);
    this.#position = new Uint16Array(features.inOrder ? size : 0);
    this.#order = new Uint16Array(size);
    this.#free = size;
    this.#fault = bad ?? this.#areas.attach();
    this.#indirect =
      features.indirect && tables !== undefined ? new IndirectWriter(memory, tables, size, true) : undefined;
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
    const table = this.#areas.desc.region.u32;
    const tableBase = this.#areas.desc.offset >>> 2;
    if (table.length === 0 && !this.#ready()) return false;
    const { address: addresses, length: lengths } = sg;
    const links = this.#next;
    const head = this.#freeHead;
    let index = head;
    let last = head;
    let readableBytes = 0;
    let writableBytes = 0;
    for (let i = 0; i < total; i++) {
      const address = addresses[first + i] as number;
      const length = lengths[first + i] as number;
      const next = links[index] as number;
      let tail = next << 16;
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
      table[at + 3] = tail;
      last = index;
      index = next;
    }
    if (readableBytes + writableBytes > CHAIN_MAX) throw chainError(total, this.size);
    this.#freeHead = index;
    this.#last[head] = last;
    this.#offer(head, total, writableBytes, token);
    return true;
  }

  /** One descriptor of the ring for the whole chain; the table of that descriptor holds the rest. */
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
    const head = this.#freeHead;
    const writableBytes = indirect.write(head, sg, first, out, in_);
    if (writableBytes < 0) throw chainError(out + in_, this.size);
    const address = indirect.address(head);
    const desc = this.#areas.desc;
    const at = (desc.offset >>> 2) + (head << 2);
    const next = this.#next[head] as number;
    desc.region.u32[at] = address;
    desc.region.u32[at + 1] = address * TO_HIGH;
    desc.region.u32[at + 2] = (out + in_) * ring.VIRTQ_DESC_SIZE;
    desc.region.u32[at + 3] = INDIRECT | (next << 16);
    this.#freeHead = next;
    this.#last[head] = head;
    this.#offer(head, 1, writableBytes, token);
    return true;
  }

  #offer(head: number, descriptors: number, writableBytes: number, token: number): void {
    const driver = this.#areas.driver;
    const position = this.#availIndex;
    const slot = position & this.#mask;
    driver.region.u16[(driver.offset >>> 1) + 2 + slot] = head;
    this.#order[slot] = head;
    if (this.#inOrder) this.#position[head] = position;
    this.#taken[head] = descriptors;
    this.#room[head] = -2 - writableBytes;
    this.#token[head] = token;
    this.#free -= descriptors;
    this.#inFlight++;
    this.#availIndex = (position + 1) & 0xffff;
    if (this.#memory.observed) this.#markChain(head, descriptors, slot);
  }

  publish(): boolean {
    const old = this.#published;
    const now = this.#availIndex;
    if (now === old || !this.#ready()) return false;
    const driver = this.#areas.driver;
    const device = this.#areas.device;
    const order = this.#order;
    const rooms = this.#room;
    const mask = this.#mask;
    for (let position = old; position !== now; position = (position + 1) & 0xffff) {
      const head = order[position & mask] as number;
      rooms[head] = -2 - (rooms[head] as number);
    }
    // The sequentially consistent store is also the full fence between publishing and looking whether to notify.
    Atomics.store(driver.region.u16, (driver.offset >>> 1) + 1, now);
    if (this.#memory.observed) this.#memory.markWritten(driver.address + ring.VIRTQ_AVAIL_IDX, 2);
    this.#published = now;
    const used = device.region.u16;
    const base = device.offset >>> 1;
    if (!this.#features.eventIdx) return (Atomics.load(used, base) & ring.VIRTQ_USED_F_NO_NOTIFY) === 0;
    const event = Atomics.load(used, base + 2 + 4 * this.size);
    return ((now - event - 1) & 0xffff) < ((now - old) & 0xffff);
  }

  kickData(): number {
    return this.#published;
  }

  get(tokens: Uint32Array, lengths: Uint32Array, max: number): number {
    if (!this.#ready()) return 0;
    const device = this.#areas.device;
    const from = this.#usedIndex;
    const ahead = (Atomics.load(device.region.u16, (device.offset >>> 1) + 1) - from) & 0xffff;
    if (ahead === 0) return 0;
    const shown = this.#inFlight - ((this.#availIndex - this.#published) & 0xffff);
    if (ahead > shown) {
      this.#fault = indexJumpFault("used", ahead, shown);
      return 0;
    }
    const limit = Math.min(ahead, max, tokens.length, lengths.length);
    return this.#inOrder ? this.#takeInOrder(tokens, lengths, limit, ahead) : this.#take(tokens, lengths, limit);
  }

  #take(tokens: Uint32Array, lengths: Uint32Array, limit: number): number {
    const size = this.size;
    const mask = this.#mask;
    const used = this.#areas.device.region.u32;
    const base = (this.#areas.device.offset >>> 2) + 1;
    const from = this.#usedIndex;
    const legacy = this.#features.legacy;
    const rooms = this.#room;
    const token = this.#token;
    const taken = this.#taken;
    const last = this.#last;
    const next = this.#next;
    let freeHead = this.#freeHead;
    let free = this.#free;
    let count = 0;
    for (; count < limit; count++) {
      const at = base + (((from + count) & mask) << 1);
      const id = used[at] as number;
      let length = used[at + 1] as number;
      if (id >= size) {
        this.#fault = indexFault("used id", id, size);
        break;
      }
      const room = rooms[id] as number;
      if (room < 0) {
        this.#fault = duplicateFault("used while not in flight: head", id);
        break;
      }
      if (length > room) {
        // Legacy devices are known to set the length wrongly (VIRTIO 1.4 §2.7.8.1).
        if (!legacy) {
          this.#fault = usedLengthFault(id, length, room);
          break;
        }
        length = room;
      }
      tokens[count] = token[id] as number;
      lengths[count] = length;
      rooms[id] = IDLE;
      free += taken[id] as number;
      next[last[id] as number] = freeHead;
      freeHead = id;
    }
    this.#freeHead = freeHead;
    this.#free = free;
    this.#inFlight -= count;
    this.#usedIndex = (from + count) & 0xffff;
    return count;
  }

  /** A used element may answer all chains up to the one it names; those in front count as wholly written (§2.7.9). */
  #takeInOrder(tokens: Uint32Array, lengths: Uint32Array, limit: number, ahead: number): number {
    let count = 0;
    for (; count < limit; count++) {
      if (this.#answered === 0 && !this.#readBatch(ahead - count)) break;
      const head = this.#order[this.#usedIndex & this.#mask] as number;
      const room = this.#room[head] as number;
      this.#answered--;
      tokens[count] = this.#token[head] as number;
      lengths[count] = this.#answered === 0 ? this.#answeredLength : Math.min(room, MAX_U32);
      this.#room[head] = IDLE;
      // Descriptors are used in ring order, so the freed ones lie in front of the next free one already.
      this.#free += this.#taken[head] as number;
      this.#inFlight--;
      this.#usedIndex = (this.#usedIndex + 1) & 0xffff;
    }
    return count;
  }

  /** Reads the element at the used index and finds out how many chains it answers, at most `ahead`. */
  #readBatch(ahead: number): boolean {
    const device = this.#areas.device;
    const at = (device.offset >>> 2) + 1 + ((this.#usedIndex & this.#mask) << 1);
    const id = device.region.u32[at] as number;
    const length = device.region.u32[at + 1] as number;
    if (id >= this.size) {
      this.#fault = indexFault("used id", id, this.size);
      return false;
    }
    const room = this.#room[id] as number;
    const answered = (((this.#position[id] as number) - this.#usedIndex) & 0xffff) + 1;
    if (room < 0 || answered > ahead) {
      this.#fault = duplicateFault("used while not in flight, or out of order: head", id);
      return false;
    }
    if (length > room && !this.#features.legacy) {
      this.#fault = usedLengthFault(id, length, room);
      return false;
    }
    this.#answered = answered;
    this.#answeredLength = Math.min(length, room);
    return true;
  }

  disableCallbacks(): void {
    // With EVENT_IDX the event index stays where it is: behind us, so it is not crossed again for 65536 entries.
    if (this.#features.eventIdx || this.#callbacksOff || !this.#ready()) return;
    this.#callbacksOff = true;
    this.#setWord(0, ring.VIRTQ_AVAIL_F_NO_INTERRUPT);
  }

  enableCallbacks(): boolean {
    if (!this.#ready()) return false;
    if (this.#features.eventIdx) this.#setWord(2 + this.size, this.#usedIndex);
    else if (this.#callbacksOff) this.#setWord(0, 0);
    this.#callbacksOff = false;
    const device = this.#areas.device;
    return Atomics.load(device.region.u16, (device.offset >>> 1) + 1) !== this.#usedIndex;
  }

  detach(): number {
    for (; this.#detached < this.#room.length; this.#detached++) {
      const head = this.#detached;
      if (this.#room[head] === IDLE) continue;
      this.#room[head] = IDLE;
      this.#free += this.#taken[head] as number;
      this.#inFlight--;
      return this.#token[head] as number;
    }
    return -1;
  }

  #setWord(word: number, value: number): void {
    const driver = this.#areas.driver;
    Atomics.store(driver.region.u16, (driver.offset >>> 1) + word, value);
    if (this.#memory.observed) this.#memory.markWritten(driver.address + 2 * word, 2);
  }

  #markChain(head: number, descriptors: number, slot: number): void {
    let index = head;
    for (let i = 0; i < descriptors; i++) {
      this.#memory.markWritten(this.#areas.desc.address + index * ring.VIRTQ_DESC_SIZE, ring.VIRTQ_DESC_SIZE);
      index = this.#next[index] as number;
    }
    this.#memory.markWritten(this.#areas.driver.address + ring.VIRTQ_AVAIL_RING + 2 * slot, 2);
  }

  #ready(): boolean {
    if (this.#fault !== undefined) return false;
    if (!this.#areas.lost) return true;
    this.#fault = this.#areas.attach();
    return this.#fault === undefined;
  }
}
