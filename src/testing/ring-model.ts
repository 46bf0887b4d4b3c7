import {
  RING_EVENT_FLAGS_DESC,
  RING_EVENT_FLAGS_DISABLE,
  RING_EVENT_FLAGS_ENABLE,
  VIRTQ_AVAIL_F_NO_INTERRUPT,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_WRITE,
  VIRTQ_USED_F_NO_NOTIFY,
} from "../spec/ring.ts";
import type { QueueFaultKind, QueueFeatures } from "../virtqueue/types.ts";
import { RawPackedRing, type RawPlace, RawSplitRing, readPackedDescriptor, readSplitDescriptor } from "./raw-ring.ts";
import type { Arena, Piece } from "./ring-arena.ts";

/**
 * What the device's side of a queue has to do, said slowly and plainly: counters that never wrap, lists and maps, a fresh
 * object for everything. Works on the twin of an {@link Arena}.
 */

export interface ModelChain {
  readonly id: number;
  /** Descriptors in the ring. */
  readonly slots: number;
  readonly readable: readonly Piece[];
  readonly writable: readonly Piece[];
  readonly readableBytes: number;
  readonly writableBytes: number;
}

/** Thrown inside the model only. */
class Broken {
  readonly kind: QueueFaultKind;
  constructor(kind: QueueFaultKind) {
    this.kind = kind;
  }
}

const broken = (kind: QueueFaultKind): never => {
  throw new Broken(kind);
};

class ChainCollector {
  readonly readable: Piece[] = [];
  readonly writable: Piece[] = [];
  readableBytes = 0;
  writableBytes = 0;
  #wrote = false;
  readonly #arena: Arena;

  constructor(arena: Arena) {
    this.#arena = arena;
  }

  add(address: bigint, length: number, write: boolean): void {
    if (write) this.#wrote = true;
    else if (this.#wrote) broken("order");
    if (this.readableBytes + this.writableBytes + length > 2 ** 32) broken("chain-bytes");
    const pieces = this.#arena.translate(Number(address), length, write) ?? broken("buffer-address");
    (write ? this.writable : this.readable).push(...pieces);
    if (write) this.writableBytes += length;
    else this.readableBytes += length;
  }

  /** Where in the twin an indirect table begins, as a list of its descriptors' bytes. */
  table(address: bigint, length: number): DataView {
    if (length === 0 || length % 16 !== 0 || length > 65536 * 16) broken("indirect");
    const pieces = this.#arena.translate(Number(address), length, false) ?? broken("buffer-address");
    const bytes = new Uint8Array(length);
    let done = 0;
    for (const piece of pieces) {
      const from = (this.#arena.regions[piece.region]?.at ?? 0) + piece.offset;
      bytes.set(this.#arena.twin.subarray(from, from + piece.length), done);
      done += piece.length;
    }
    return new DataView(bytes.buffer);
  }
}

export abstract class DeviceModel {
  fault: QueueFaultKind | undefined;
  readonly inFlight = new Map<number, ModelChain>();
  /** Popped and not used, oldest first. */
  protected order: ModelChain[] = [];
  protected held = new Map<number, number>();
  protected staged: { chain: ModelChain; written: number }[] = [];
  protected kicksOff = false;
  /** The first flush of a queue that was started with a state always notifies. */
  notifyNext = false;
  protected readonly arena: Arena;
  protected readonly features: QueueFeatures;
  protected readonly size: number;

  constructor(arena: Arena, features: QueueFeatures, size: number) {
    this.arena = arena;
    this.features = features;
    this.size = size;
  }

  get stagedCount(): number {
    return this.staged.length;
  }

  pop(max: number): ModelChain[] {
    const chains: ModelChain[] = [];
    if (this.fault !== undefined) return chains;
    try {
      // How far the driver is ahead is looked at once for all that one call takes.
      const waiting = this.waiting();
      while (chains.length < Math.min(max, waiting)) {
        const chain = this.next();
        if (chain === undefined) break;
        chains.push(chain);
        this.inFlight.set(chain.id, chain);
        this.order.push(chain);
      }
    } catch (error) {
      this.#note(error);
    }
    return chains;
  }

  unpop(count: number): void {
    if (this.fault !== undefined) return;
    for (const chain of this.order.splice(this.order.length - count)) {
      this.inFlight.delete(chain.id);
      this.back(chain);
    }
  }

  push(id: number, written: number): void {
    if (this.fault !== undefined) return;
    const chain = this.inFlight.get(id) as ModelChain;
    this.held.set(id, written);
    if (!this.features.inOrder) this.#stage(chain);
    else while (this.order[0] !== undefined && this.held.has(this.order[0].id)) this.#stage(this.order[0]);
  }

  /** The queue was stopped with nothing in flight, and started again from its state. */
  restarted(): void {
    this.kicksOff = false;
    const { usedIndex, usedWrap, availIndex } = this.state;
    this.notifyNext = usedIndex !== 0 || !usedWrap || (availIndex !== 0 && !this.features.packed);
  }

  /** May `id` be pushed (in flight, not pushed before)? */
  canPush(id: number): boolean {
    return this.inFlight.has(id) && !this.held.has(id);
  }

  flush(): boolean {
    if (this.fault !== undefined || this.staged.length === 0) return false;
    const staged = this.staged;
    this.staged = [];
    this.returned.push(...staged.map(({ chain }) => chain.id));
    const asked = this.publish(staged);
    const notify = asked || this.notifyNext;
    this.notifyNext = false;
    return notify;
  }

  available(): boolean {
    if (this.fault !== undefined) return false;
    try {
      return this.someWait();
    } catch (error) {
      this.#note(error);
      return false;
    }
  }

  enableKicks(): boolean {
    if (this.fault !== undefined) return false;
    this.allowKicks();
    this.kicksOff = false;
    return this.available();
  }

  disableKicks(): void {
    if (this.fault !== undefined || this.kicksOff) return;
    this.kicksOff = true;
    this.forbidKicks();
  }

  /** Ids whose chains the driver has got back, for a driver to collect. */
  returned: number[] = [];
  abstract get state(): { availIndex: number; availWrap: boolean; usedIndex: number; usedWrap: boolean };
  protected abstract waiting(): number;
  protected abstract someWait(): boolean;
  protected abstract next(): ModelChain | undefined;
  protected abstract back(chain: ModelChain): void;
  /** Writes a used entry that the driver must not see yet. */
  protected abstract prepare(chain: ModelChain, written: number): void;
  protected abstract publish(staged: { chain: ModelChain; written: number }[]): boolean;
  protected abstract allowKicks(): void;
  protected abstract forbidKicks(): void;

  #stage(chain: ModelChain): void {
    const written = this.held.get(chain.id) as number;
    this.prepare(chain, written);
    this.staged.push({ chain, written });
    this.held.delete(chain.id);
    this.inFlight.delete(chain.id);
    this.order.splice(this.order.indexOf(chain), 1);
  }

  #note(error: unknown): void {
    if (!(error instanceof Broken)) throw error;
    this.fault = error.kind;
  }
}

export class SplitDeviceModel extends DeviceModel {
  readonly ring: RawSplitRing;
  /** Chains taken and used elements published since the beginning; these do not wrap. */
  #avail = 0;
  #used = 0;

  constructor(arena: Arena, features: QueueFeatures, place: RawPlace, start = 0) {
    super(arena, features, place.size);
    this.ring = new RawSplitRing(arena.twinView, place);
    this.#avail = this.#used = start;
  }

  get state(): { availIndex: number; availWrap: boolean; usedIndex: number; usedWrap: boolean } {
    return { availIndex: this.#avail % 65536, availWrap: true, usedIndex: this.#used % 65536, usedWrap: true };
  }

  protected waiting(): number {
    const ahead = (this.ring.availIdx - (this.#avail % 65536) + 65536) % 65536;
    return ahead > this.size ? broken("index-jump") : ahead;
  }

  protected someWait(): boolean {
    return this.ring.availIdx !== this.#avail % 65536;
  }

  protected next(): ModelChain {
    const head = this.ring.readAvail(this.#avail);
    if (head >= this.size) broken("descriptor-index");
    if (this.inFlight.has(head)) broken("duplicate");
    const chain = new ChainCollector(this.arena);
    let read = (i: number): ReturnType<typeof readSplitDescriptor> => this.ring.readDescriptor(i);
    let entries = this.size;
    let inTable = false;
    let seen = 0;
    for (let index = head; ; ) {
      if (++seen > entries) broken("chain-length");
      const { address, length, flags, next } = read(index);
      if ((flags & VIRTQ_DESC_F_INDIRECT) !== 0) {
        if (!this.features.indirect || inTable || (flags & VIRTQ_DESC_F_NEXT) !== 0) broken("indirect");
        const table = chain.table(address as bigint, length);
        read = (i) => readSplitDescriptor(table, i * 16);
        entries = length / 16;
        inTable = true;
        seen = 0;
        index = 0;
        continue;
      }
      chain.add(address as bigint, length, (flags & VIRTQ_DESC_F_WRITE) !== 0);
      if ((flags & VIRTQ_DESC_F_NEXT) === 0) break;
      if (next >= entries) broken("descriptor-index");
      index = next;
    }
    this.#avail++;
    const { readable, writable, readableBytes, writableBytes } = chain;
    return { id: head, slots: 1, readable, writable, readableBytes, writableBytes };
  }

  protected back(): void {
    this.#avail--;
  }

  protected prepare(chain: ModelChain, written: number): void {
    this.ring.writeUsed(this.#used + this.staged.length, chain.id, written);
  }

  protected publish(staged: { chain: ModelChain; written: number }[]): boolean {
    const event = this.ring.usedEvent;
    let crossed = false;
    for (const _ of staged) {
      if (this.#used % 65536 === event) crossed = true;
      this.#used++;
    }
    this.ring.usedIdx = this.#used % 65536;
    const emptyAndDone = this.inFlight.size === this.held.size && !this.someWait();
    if (this.features.notifyOnEmpty && emptyAndDone) return true;
    return this.features.eventIdx ? crossed : (this.ring.availFlags & VIRTQ_AVAIL_F_NO_INTERRUPT) === 0;
  }

  protected allowKicks(): void {
    if (this.features.eventIdx) this.ring.availEvent = this.#avail % 65536;
    else if (this.kicksOff) this.ring.usedFlags = 0;
  }

  protected forbidKicks(): void {
    if (!this.features.eventIdx) this.ring.usedFlags = VIRTQ_USED_F_NO_NOTIFY;
  }
}

export class PackedDeviceModel extends DeviceModel {
  readonly ring: RawPackedRing;
  /** Slots taken and slots used since the beginning; the lap's number says the wrap counter. */
  #avail = 0;
  #used = 0;

  constructor(arena: Arena, features: QueueFeatures, place: RawPlace) {
    super(arena, features, place.size);
    this.ring = new RawPackedRing(arena.twinView, place);
  }

  get state(): { availIndex: number; availWrap: boolean; usedIndex: number; usedWrap: boolean } {
    return {
      availIndex: this.#avail % this.size,
      availWrap: this.#wrap(this.#avail),
      usedIndex: this.#used % this.size,
      usedWrap: this.#wrap(this.#used),
    };
  }

  protected waiting(): number {
    if (!this.someWait()) return 0;
    // Behind the first, only chains that are there to their last descriptor: the driver may be writing them just now.
    let whole = 0;
    for (let slot = this.#avail; slot < this.#avail + this.size; slot++) {
      const { flags } = this.ring.readDescriptor(slot % this.size);
      if (this.#bits(flags) !== RawPackedRing.available(this.#wrap(slot))) break;
      if ((flags & VIRTQ_DESC_F_NEXT) === 0) whole++;
    }
    return Math.max(whole, 1);
  }

  protected someWait(): boolean {
    const bits = this.#bits(this.ring.readDescriptor(this.#avail % this.size).flags);
    if (bits === RawPackedRing.used(this.#wrap(this.#avail))) broken("flags");
    return bits === RawPackedRing.available(this.#wrap(this.#avail));
  }

  protected next(): ModelChain | undefined {
    const first = this.ring.readDescriptor(this.#avail % this.size).flags;
    if (this.#bits(first) !== RawPackedRing.available(this.#wrap(this.#avail))) return undefined;
    const chain = new ChainCollector(this.arena);
    const held = [...this.inFlight.values(), ...this.staged.map(({ chain }) => chain)];
    const busy = held.reduce((sum, { slots }) => sum + slots, 0);
    for (let links = 1; ; links++) {
      if (links > this.size) broken("chain-length");
      if (busy + links > this.size) broken("index-jump");
      const slot = this.#avail + links - 1;
      const { address, length, flags, id } = this.ring.readDescriptor(slot % this.size);
      if (this.#bits(flags) !== RawPackedRing.available(this.#wrap(slot))) broken("flags");
      if ((flags & VIRTQ_DESC_F_INDIRECT) !== 0) {
        if (!this.features.indirect || links > 1 || (flags & VIRTQ_DESC_F_NEXT) !== 0) broken("indirect");
        const table = chain.table(address as bigint, length);
        for (let i = 0; i < length / 16; i++) {
          const entry = readPackedDescriptor(table, i * 16);
          chain.add(entry.address as bigint, entry.length, (entry.flags & VIRTQ_DESC_F_WRITE) !== 0);
        }
      } else chain.add(address as bigint, length, (flags & VIRTQ_DESC_F_WRITE) !== 0);
      if ((flags & VIRTQ_DESC_F_NEXT) !== 0) continue;
      if (this.inFlight.has(id)) broken("duplicate");
      this.#avail += links;
      const { readable, writable, readableBytes, writableBytes } = chain;
      return { id, slots: links, readable, writable, readableBytes, writableBytes };
    }
  }

  protected back({ slots }: ModelChain): void {
    this.#avail -= slots;
  }

  /** The first one of a batch keeps its flags until the batch is published. */
  protected prepare(chain: ModelChain, written: number): void {
    const slot = this.#used + this.staged.reduce((sum, one) => sum + one.chain.slots, 0);
    if (this.staged.length > 0) {
      this.#use(slot, chain, written);
      return;
    }
    const { address, id, flags } = this.ring.readDescriptor(slot % this.size);
    this.ring.writeDescriptor(slot % this.size, { address, length: written, id, flags });
  }

  protected publish(staged: { chain: ModelChain; written: number }[]): boolean {
    const { offset, wrap, flags } = this.ring.driverEvent;
    let crossed = false;
    const [first] = staged;
    const start = this.#used % this.size;
    // Its length has been there since it was prepared, unless the driver wrote over it.
    if (first !== undefined) this.#use(this.#used, first.chain, first.written, this.ring.readDescriptor(start).length);
    for (const { chain } of staged) {
      for (let slot = this.#used; slot < this.#used + chain.slots; slot++)
        if (slot % this.size === offset && this.#wrap(slot) === wrap) crossed = true;
      this.#used += chain.slots;
    }
    const kind = flags & 3;
    if (kind === RING_EVENT_FLAGS_DISABLE) return false;
    return kind === RING_EVENT_FLAGS_DESC && this.features.eventIdx ? crossed : true;
  }

  protected allowKicks(): void {
    if (this.features.eventIdx)
      this.ring.deviceEvent = {
        offset: this.#avail % this.size,
        wrap: this.#wrap(this.#avail),
        flags: RING_EVENT_FLAGS_DESC,
      };
    else if (this.kicksOff) this.ring.deviceEvent = { offset: 0, wrap: false, flags: RING_EVENT_FLAGS_ENABLE };
  }

  protected forbidKicks(): void {
    this.ring.deviceEvent = { offset: 0, wrap: false, flags: RING_EVENT_FLAGS_DISABLE };
  }

  #use(slot: number, chain: ModelChain, written: number, length = written): void {
    const flags = RawPackedRing.used(this.#wrap(slot)) | (written > 0 ? VIRTQ_DESC_F_WRITE : 0);
    this.ring.writeUsed(slot % this.size, chain.id, length, flags);
  }

  #wrap(slot: number): boolean {
    return Math.floor(slot / this.size) % 2 === 0;
  }

  #bits(flags: number): number {
    return flags & RawPackedRing.used(true);
  }
}
