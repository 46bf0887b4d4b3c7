import assert from "node:assert/strict";
import {
  RING_EVENT_FLAGS_DESC,
  RING_EVENT_FLAGS_DISABLE,
  VIRTQ_DESC_F_INDIRECT,
  VIRTQ_DESC_F_NEXT,
  VIRTQ_DESC_F_WRITE,
  VIRTQ_USED_F_NO_NOTIFY,
} from "../spec/ring.ts";
import type { QueueFaultKind, QueueFeatures } from "../virtqueue/types.ts";
import { RawPackedRing, type RawPlace, RawSplitRing, readPackedDescriptor, readSplitDescriptor } from "./raw-ring.ts";
import { type Arena, type Random, RING_BASE, RING_BYTES } from "./ring-arena.ts";

/**
 * A device that mostly behaves, for fuzzing the driver's side: it reads what the driver wrote and compares it with what was
 * asked for, and works out by hand what `get` has to return.
 */

/** The driver's indirect tables lie here, behind the rings. */
export const TABLES = 0x600;

interface Element {
  readonly address: number;
  readonly length: number;
  readonly write: boolean;
}

export interface AddedChain {
  readonly token: number;
  readonly elements: readonly Element[];
  readonly slots: number;
  readonly room: number;
  /** Head or buffer id; known once the device has read the chain. */
  id: number;
}

interface Got {
  readonly token: number;
  readonly length: number;
}

/** The device's part: reads chains, returns them rightly or wrongly, and says what `get` must make of it. */
export abstract class FuzzDevice {
  fault: QueueFaultKind | undefined;
  /** Chains the device has seen and the driver has not got back, in order of adding. */
  readonly seen: AddedChain[] = [];
  /** Of those, the ones the device has not returned. */
  owed: AddedChain[] = [];
  protected readonly random: Random;
  protected readonly features: QueueFeatures;
  protected readonly place: RawPlace;
  protected readonly view: DataView;
  readonly #arena: Arena;
  /** What a batch that one used entry answers has still to give. */
  #answers: { chain: AddedChain; length: number }[] = [];

  constructor(random: Random, arena: Arena, features: QueueFeatures, place: RawPlace) {
    this.random = random;
    this.features = features;
    this.place = place;
    this.#arena = arena;
    this.view = new DataView(arena.real.buffer);
  }

  /** Reads the chains that `publish` showed and compares them. Returns what publish has to return. */
  abstract accept(chains: AddedChain[]): boolean;
  abstract use(chain: AddedChain, length: number, skipped: AddedChain[]): void;
  abstract misuse(): void;
  abstract nudge(): void;
  /** Is there something for `get`? */
  abstract waits(): boolean;
  /** The next used entry, as far as `get` may look at all, or undefined; sets the fault where the entry cannot be. */
  protected abstract read(): { id: number; length: number; hasLength: boolean; ahead: number } | undefined;
  protected abstract pass(chain: AddedChain): void;
  abstract readonly callbacksEvent: unknown;
  protected abstract begin(): boolean;
  /** No more than so many, even where an entry read before promised more. */
  protected abstract most(): number;

  returnSome(): void {
    const { random } = this;
    if (this.owed.length === 0) return;
    const most = this.features.inOrder ? this.owed.length : 1;
    const first = this.features.inOrder ? 0 : random.below(this.owed.length);
    const count = random.once(2) ? 1 : 1 + random.below(most);
    const batch = this.owed.splice(first, count);
    const last = batch.pop() as AddedChain;
    this.use(last, random.once(3) ? last.room : random.below(last.room + 1), batch);
  }

  /** What `get(max)` must return; sets the fault. */
  get(max: number): Got[] {
    const got: Got[] = [];
    if (!this.begin()) return got;
    const most = Math.min(max, this.most());
    while (got.length < most && this.fault === undefined) {
      if (this.#answers.length === 0 && !this.#answer()) break;
      const answer = this.#answers.shift();
      if (answer === undefined) break;
      const { chain, length } = answer;
      got.push({ token: chain.token, length });
      this.seen.splice(this.seen.indexOf(chain), 1);
      this.owed = this.owed.filter((other) => other !== chain);
      this.pass(chain);
    }
    return got;
  }

  protected get answering(): boolean {
    return this.#answers.length > 0;
  }

  #answer(): boolean {
    const entry = this.read();
    if (entry === undefined) return false;
    const { id, hasLength, ahead } = entry;
    const at = this.seen.findIndex((chain) => chain.id === id);
    const chain = this.seen[at];
    if (id >= this.place.size) this.fault = "descriptor-index";
    else if (chain === undefined || (this.features.inOrder && at + 1 > ahead)) this.fault = "duplicate";
    else {
      let { length } = entry;
      if (length > chain.room) {
        if (!hasLength) length = 0;
        else if (this.features.legacy) length = chain.room;
        else {
          this.fault = "used-length";
          return false;
        }
      }
      const skipped = this.features.inOrder ? this.seen.slice(0, at) : [];
      this.#answers = [...skipped.map((one) => ({ chain: one, length: one.room })), { chain, length }];
      return true;
    }
    return false;
  }

  protected compare(chain: AddedChain, elements: Element[]): void {
    if (JSON.stringify(elements) !== JSON.stringify(chain.elements))
      assert.fail(`chain ${chain.token} reads ${JSON.stringify(elements)}, not ${JSON.stringify(chain.elements)}`);
  }

  protected tableAt(address: bigint): number {
    const at = Number(address) - RING_BASE;
    assert.ok(at >= TABLES && at < RING_BYTES, "a table outside its area");
    return this.#arena.ringOffset(Number(address));
  }
}

export class SplitFuzzDevice extends FuzzDevice {
  readonly #ring: RawSplitRing;
  #avail = 0;
  #used = 0;
  #usedSeen = 0;

  constructor(random: Random, arena: Arena, features: QueueFeatures, place: RawPlace) {
    super(random, arena, features, place);
    this.#ring = new RawSplitRing(this.view, place);
  }

  get callbacksEvent(): unknown {
    return this.features.eventIdx ? [this.#ring.usedEvent, this.#usedSeen % 65536] : [this.#ring.availFlags, 0];
  }

  accept(chains: AddedChain[]): boolean {
    const ring = this.#ring;
    assert.equal(ring.availIdx, (this.#avail + chains.length) % 65536);
    let crossed = false;
    for (const chain of chains) {
      chain.id = ring.readAvail(this.#avail);
      assert.ok(!this.seen.some(({ id }) => id === chain.id), "a head that is in flight");
      this.compare(chain, this.#walk(chain.id));
      if (this.#avail % 65536 === ring.availEvent) crossed = true;
      this.#avail++;
      this.seen.push(chain);
      this.owed.push(chain);
    }
    if (chains.length === 0) return false;
    return this.features.eventIdx ? crossed : (ring.usedFlags & VIRTQ_USED_F_NO_NOTIFY) === 0;
  }

  #walk(head: number): Element[] {
    const elements: Element[] = [];
    let read = (i: number): ReturnType<typeof readSplitDescriptor> => this.#ring.readDescriptor(i);
    for (let index = head; ; ) {
      const { address, length, flags, next } = read(index);
      if ((flags & VIRTQ_DESC_F_INDIRECT) !== 0) {
        assert.equal(flags & VIRTQ_DESC_F_NEXT, 0);
        const table = this.tableAt(address as bigint);
        read = (i) => readSplitDescriptor(this.view, table + i * 16);
        index = 0;
        continue;
      }
      elements.push({ address: Number(address), length, write: (flags & VIRTQ_DESC_F_WRITE) !== 0 });
      if ((flags & VIRTQ_DESC_F_NEXT) === 0) return elements;
      if (this.features.inOrder) assert.equal(next, (index + 1) % (this.place.size || 1));
      index = next;
    }
  }

  use(chain: AddedChain, length: number, skipped: AddedChain[]): void {
    this.#ring.writeUsed(this.#used, chain.id, length);
    this.#used += skipped.length + 1;
    this.#ring.usedIdx = this.#used % 65536;
  }

  misuse(): void {
    const { random } = this;
    const ring = this.#ring;
    const { size } = this.place;
    const chain = this.owed[0];
    switch (random.below(5)) {
      case 0:
        ring.usedIdx = random.pick([this.#used + 1, this.#used - 1, this.#used + size + 1, random.below(65536)]);
        break;
      case 1:
        ring.use(random.pick([size, 0xffffffff, 65536, random.below(size)]), 0);
        break;
      case 2:
        if (chain !== undefined) ring.use(chain.id, random.pick([chain.room + 1, 0xffffffff, chain.room + 4096]));
        break;
      case 3:
        ring.writeUsed(random.below(size), random.u32(), random.u32());
        break;
      default:
        // Our descriptors and available entries are none of its business, and must be none of ours once written.
        ring.writeDescriptor(random.below(size), { address: random.u32(), length: 1, flags: random.below(8), next: 1 });
        ring.writeAvail(random.below(size), random.below(65536));
    }
  }

  nudge(): void {
    this.#ring.usedFlags = this.random.below(2);
    const near = (this.#avail + this.random.below(3)) % 65536;
    this.#ring.availEvent = this.random.once(4) ? this.random.below(65536) : near;
  }

  waits(): boolean {
    return this.#ring.usedIdx !== this.#usedSeen % 65536;
  }

  #ahead(): number {
    return (this.#ring.usedIdx - (this.#usedSeen % 65536) + 65536) % 65536;
  }

  protected most(): number {
    return this.#ahead();
  }

  protected begin(): boolean {
    if (this.#ahead() > this.seen.length) this.fault = "index-jump";
    return this.fault === undefined;
  }

  protected read(): { id: number; length: number; hasLength: boolean; ahead: number } | undefined {
    const ahead = this.#ahead();
    if (ahead === 0) return undefined;
    return { ...this.#ring.readUsed(this.#usedSeen), hasLength: true, ahead };
  }

  protected pass(): void {
    this.#usedSeen++;
  }
}

export class PackedFuzzDevice extends FuzzDevice {
  readonly #ring: RawPackedRing;
  /** Slots; these do not wrap. */
  #avail = 0;
  #used = 0;
  #usedSeen = 0;

  constructor(random: Random, arena: Arena, features: QueueFeatures, place: RawPlace) {
    super(random, arena, features, place);
    this.#ring = new RawPackedRing(this.view, place);
  }

  get callbacksEvent(): unknown {
    const { size } = this.place;
    const wanted = this.features.eventIdx
      ? { offset: this.#usedSeen % size, wrap: this.#wrap(this.#usedSeen), flags: RING_EVENT_FLAGS_DESC }
      : { ...this.#ring.driverEvent, flags: 0 };
    return [JSON.stringify(this.#ring.driverEvent), JSON.stringify(wanted)];
  }

  accept(chains: AddedChain[]): boolean {
    const { size } = this.place;
    const { offset, wrap, flags } = this.#ring.deviceEvent;
    let crossed = false;
    for (const chain of chains) {
      const elements: Element[] = [];
      for (let slot = this.#avail; slot < this.#avail + chain.slots; slot++) {
        const d = this.#ring.readDescriptor(slot % size);
        const more = slot + 1 < this.#avail + chain.slots;
        assert.equal(d.flags & 0x8080, RawPackedRing.available(this.#wrap(slot)));
        assert.equal((d.flags & VIRTQ_DESC_F_NEXT) !== 0, more);
        if ((d.flags & VIRTQ_DESC_F_INDIRECT) !== 0) elements.push(...this.#table(d.address as bigint, d.length));
        else
          elements.push({
            address: Number(d.address),
            length: d.length,
            write: (d.flags & VIRTQ_DESC_F_WRITE) !== 0,
          });
        chain.id = d.id;
        if (slot % size === offset && this.#wrap(slot) === wrap) crossed = true;
      }
      assert.ok(!this.seen.some(({ id }) => id === chain.id), "a buffer id that is in flight");
      this.compare(chain, elements);
      this.#avail += chain.slots;
      this.seen.push(chain);
      this.owed.push(chain);
    }
    const kind = flags & 3;
    if (chains.length === 0 || kind === RING_EVENT_FLAGS_DISABLE) return false;
    return kind === RING_EVENT_FLAGS_DESC && this.features.eventIdx ? crossed : true;
  }

  #table(address: bigint, length: number): Element[] {
    const at = this.tableAt(address);
    return Array.from({ length: length / 16 }, (_, i) => {
      const entry = readPackedDescriptor(this.view, at + i * 16);
      assert.equal(entry.flags & ~VIRTQ_DESC_F_WRITE, 0);
      return { address: Number(entry.address), length: entry.length, write: entry.flags !== 0 };
    });
  }

  use(chain: AddedChain, length: number, skipped: AddedChain[]): void {
    const flags = RawPackedRing.used(this.#wrap(this.#used)) | (this.random.once(4) ? 0 : VIRTQ_DESC_F_WRITE);
    this.#ring.writeUsed(this.#used % this.place.size, chain.id, length, flags);
    for (const one of [...skipped, chain]) this.#used += one.slots;
  }

  misuse(): void {
    const { random } = this;
    const { size } = this.place;
    const chain = this.owed[0];
    const index = this.#used % size;
    const used = RawPackedRing.used(this.#wrap(this.#used)) | (random.once(2) ? VIRTQ_DESC_F_WRITE : 0);
    switch (random.below(4)) {
      case 0:
        this.#ring.writeUsed(index, random.pick([size, 0xffff, random.below(size)]), 0, used);
        break;
      case 1:
        if (chain !== undefined)
          this.#ring.writeUsed(index, chain.id, random.pick([chain.room + 1, 0xffffffff]) >>> 0, used);
        break;
      case 2:
        this.#ring.writeUsed(index, random.below(size), random.u32(), random.below(65536));
        break;
      default:
        this.#ring.writeDescriptor(random.below(size), {
          address: random.u32(),
          length: random.u32(),
          id: random.below(65536),
          flags: random.below(65536),
        });
    }
  }

  nudge(): void {
    this.#ring.deviceEvent = {
      offset: this.random.below(this.place.size),
      wrap: this.random.once(2),
      flags: this.random.below(4),
    };
  }

  waits(): boolean {
    if (this.answering) return true;
    const { flags } = this.#ring.readDescriptor(this.#usedSeen % this.place.size);
    return (flags & 0x8080) === RawPackedRing.used(this.#wrap(this.#usedSeen));
  }

  protected most(): number {
    return Number.POSITIVE_INFINITY;
  }

  protected begin(): boolean {
    return this.fault === undefined;
  }

  protected read(): { id: number; length: number; hasLength: boolean; ahead: number } | undefined {
    if (!this.waits()) return undefined;
    const { id, length, flags } = this.#ring.readDescriptor(this.#usedSeen % this.place.size);
    return { id, length, hasLength: (flags & VIRTQ_DESC_F_WRITE) !== 0, ahead: this.seen.length };
  }

  protected pass(chain: AddedChain): void {
    this.#usedSeen += chain.slots;
  }

  #wrap(slot: number): boolean {
    return Math.floor(slot / this.place.size) % 2 === 0;
  }
}
