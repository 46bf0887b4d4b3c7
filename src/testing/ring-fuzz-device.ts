import assert from "node:assert/strict";
import { VIRTQ_DESC_F_INDIRECT, VIRTQ_DESC_F_NEXT, VIRTQ_DESC_F_WRITE } from "../spec/ring.ts";
import { ChainBatch, ChainReader, ChainWriter, createDeviceQueue, type DeviceQueue } from "../virtqueue/index.ts";
import type { QueueFeatures } from "../virtqueue/types.ts";
import {
  type RawDescriptor,
  RawPackedRing,
  type RawPlace,
  RawSplitRing,
  writePackedDescriptor,
  writeSplitDescriptor,
} from "./raw-ring.ts";
import { type Arena, type Piece, type Random, RING_BASE, RING_BYTES } from "./ring-arena.ts";
import { type DeviceModel, type ModelChain, PackedDeviceModel, SplitDeviceModel } from "./ring-model.ts";

/**
 * The device's side under a driver that mostly behaves: every call is compared with the model, and the memory with its
 * twin. An episode ends with a fault or after some hundred operations.
 */

/** Indirect tables lie here, one for each head or id. */
const TABLES = 0x600;
const TABLE_ENTRIES = 4;
export const MAX_SIZE = 32;

export interface Counts {
  operations: number;
  chains: number;
  readonly faults: Record<string, number>;
}

export function randomFeatures(random: Random, packed: boolean): QueueFeatures {
  return {
    packed,
    indirect: random.once(2),
    eventIdx: random.once(2),
    inOrder: random.once(3),
    notificationData: false,
    legacy: false,
    notifyOnEmpty: !packed && random.once(8),
  };
}

export function randomPlace(random: Random, packed: boolean, arena: Arena): RawPlace & { guest: RawPlace } {
  const size = packed ? 1 + random.below(MAX_SIZE) : 2 ** random.below(6);
  const guest = {
    size,
    desc: RING_BASE,
    driver: RING_BASE + MAX_SIZE * 16,
    device: RING_BASE + MAX_SIZE * 16 + 0x80,
  };
  const at = (address: number): number => arena.ringOffset(address);
  return { size, desc: at(guest.desc), driver: at(guest.driver), device: at(guest.device), guest };
}

/** A buffer that is in guest memory: anywhere but in the rings, and not over the end of the last region. */
export function goodBuffer(random: Random, write: boolean): { address: number; length: number } {
  const length = 1 + random.below(random.once(20) ? 600 : 40);
  if (random.once(8)) return { address: 2 ** 33 + random.below(0x400 - 600), length };
  // The read-only region follows at 0x2400: readable buffers may reach into it.
  const end = write ? 0x2400 : 0x2600;
  return { address: RING_BASE + RING_BYTES + random.below(end - RING_BYTES - 600), length };
}

const BAD_ADDRESSES: (number | bigint)[] = [
  0,
  RING_BASE - 1,
  RING_BASE + 0x23f8,
  RING_BASE + 0x25ff,
  2 ** 33 + 0x3ff,
  2 ** 53,
  2n ** 64n - 1n,
  2n ** 64n - 16n,
];

/** A descriptor with one field that is likely wrong. */
function spoil(random: Random, descriptor: RawDescriptor): RawDescriptor {
  switch (random.below(5)) {
    case 0:
      return { ...descriptor, address: random.pick(BAD_ADDRESSES) };
    case 1:
      return { ...descriptor, length: random.pick([0, 0, 7, 15, 0x400, 0xffffffff, random.u32()]) };
    case 2:
      return { ...descriptor, flags: descriptor.flags ^ (1 << random.below(16)) };
    case 3:
      return { ...descriptor, next: random.pick([0, random.below(40), 0xffff]) };
    default:
      return { ...descriptor, id: random.pick([0, random.below(40), 0xffff]) };
  }
}

/** The driver's part, common to both formats: which buffers, and where indirect tables go. */
abstract class FuzzDriver {
  protected readonly random: Random;
  protected readonly arena: Arena;
  protected readonly features: QueueFeatures;
  protected readonly place: RawPlace;
  /** One chain in so many is spoilt. */
  protected readonly spoilOne: number;

  constructor(random: Random, arena: Arena, features: QueueFeatures, place: RawPlace) {
    this.random = random;
    this.arena = arena;
    this.features = features;
    this.place = place;
    this.spoilOne = random.pick([10, 60, 400]);
  }

  abstract offer(): void;
  abstract returned(id: number): void;
  abstract nudge(usedIndex: number): void;

  protected buffers(most: number): RawDescriptor[] {
    const count = 1 + this.random.below(Math.min(most, 5));
    const readable = this.random.below(count + 1);
    return Array.from({ length: count }, (_, i) => ({
      ...goodBuffer(this.random, i >= readable),
      flags: i >= readable ? VIRTQ_DESC_F_WRITE : 0,
    }));
  }

  /** Writes the buffers into table `i`; the descriptor that refers to it. */
  protected intoTable(i: number, buffers: RawDescriptor[], packed: boolean): RawDescriptor {
    const address = RING_BASE + TABLES + i * TABLE_ENTRIES * 16 + (this.random.once(10) ? 1 : 0);
    const entries = buffers.slice(0, TABLE_ENTRIES);
    entries.forEach((buffer, n) => {
      const last = n + 1 === entries.length;
      const linked = packed || last ? buffer : { ...buffer, flags: buffer.flags | VIRTQ_DESC_F_NEXT, next: n + 1 };
      const at = this.arena.ringOffset(address) + n * 16;
      const written = this.random.once(this.spoilOne) ? spoil(this.random, linked) : linked;
      (packed ? writePackedDescriptor : writeSplitDescriptor)(this.arena.twinView, at, written);
    });
    return { address, length: entries.length * 16, flags: VIRTQ_DESC_F_INDIRECT };
  }
}

class SplitFuzzDriver extends FuzzDriver {
  readonly #ring: RawSplitRing;
  #free: number[];
  readonly #taken = new Map<number, number[]>();

  constructor(random: Random, arena: Arena, features: QueueFeatures, place: RawPlace) {
    super(random, arena, features, place);
    this.#ring = new RawSplitRing(arena.twinView, place);
    this.#free = Array.from({ length: place.size }, (_, i) => i);
  }

  offer(): void {
    const { random } = this;
    if (random.once(this.spoilOne * 4)) {
      this.#misbehave();
      return;
    }
    if (this.#free.length === 0) return;
    let descriptors = this.buffers(this.#free.length);
    if (this.features.indirect && random.once(2)) {
      const direct = random.once(3) ? descriptors.slice(0, this.#free.length - 1) : [];
      const behind = direct.some(({ flags }) => flags !== 0)
        ? descriptors.filter(({ flags }) => flags !== 0)
        : descriptors;
      descriptors = [...direct, this.intoTable(this.#free[0] as number, behind, false)];
    }
    const indices = this.#free.splice(0, descriptors.length);
    indices.forEach((index, i) => {
      const next = indices[i + 1];
      const plain = descriptors[i] as RawDescriptor;
      const linked = next === undefined ? plain : { ...plain, flags: plain.flags | VIRTQ_DESC_F_NEXT, next };
      this.#ring.writeDescriptor(index, random.once(this.spoilOne) ? spoil(random, linked) : linked);
    });
    this.#taken.set(indices[0] as number, indices);
    this.#ring.offer(indices[0] as number);
  }

  returned(id: number): void {
    this.#free.push(...(this.#taken.get(id) ?? []));
    this.#taken.delete(id);
    if (this.random.once(3)) this.#free.sort((a, b) => a - b);
  }

  nudge(usedIndex: number): void {
    this.#ring.availFlags = this.random.below(2);
    this.#ring.usedEvent = this.random.once(4) ? this.random.below(65536) : (usedIndex + this.random.below(4)) % 65536;
  }

  #misbehave(): void {
    const { random } = this;
    const ring = this.#ring;
    const position = ring.availIdx;
    if (random.once(3)) ring.availIdx = position + random.pick([this.place.size + 1, 40000, -1, 1]);
    else if (random.once(2)) ring.offer(random.pick([this.place.size, 0xffff, random.below(this.place.size)]));
    else ring.writeAvail(random.below(65536), random.below(65536));
  }
}

class PackedFuzzDriver extends FuzzDriver {
  readonly #ring: RawPackedRing;
  #ids: number[];
  readonly #taken = new Map<number, number>();
  #free: number;
  /** Slots made available since the beginning. */
  #next = 0;

  constructor(random: Random, arena: Arena, features: QueueFeatures, place: RawPlace) {
    super(random, arena, features, place);
    this.#ring = new RawPackedRing(arena.twinView, place);
    const wide = random.once(10) ? 60000 : 0;
    this.#ids = Array.from({ length: place.size }, (_, i) => i + wide);
    this.#free = place.size;
  }

  offer(): void {
    const { random } = this;
    const { size } = this.place;
    if (random.once(this.spoilOne * 4)) {
      this.#misbehave();
      return;
    }
    const id = this.#ids[0];
    if (this.#free === 0 || id === undefined) return;
    let descriptors = this.buffers(this.#free);
    if (this.features.indirect && random.once(2)) descriptors = [this.intoTable(id % MAX_SIZE, descriptors, true)];
    this.#ids.shift();
    descriptors.forEach((plain, i) => {
      const slot = this.#next + i;
      const wrap = Math.floor(slot / size) % 2 === 0;
      const more = i + 1 < descriptors.length ? VIRTQ_DESC_F_NEXT : 0;
      const linked = { ...plain, id, flags: plain.flags | more | RawPackedRing.available(wrap) };
      this.#ring.writeDescriptor(slot % size, random.once(this.spoilOne) ? spoil(random, linked) : linked);
    });
    this.#next += descriptors.length;
    this.#free -= descriptors.length;
    this.#taken.set(id, descriptors.length);
  }

  returned(id: number): void {
    const slots = this.#taken.get(id);
    if (slots === undefined) return;
    this.#taken.delete(id);
    this.#free += slots;
    this.#ids.push(id);
  }

  nudge(): void {
    const { size } = this.place;
    this.#ring.driverEvent = {
      // An offset past the ring is never reached, or counts as some other slot: both are allowed, so it is not asked for.
      offset: this.random.below(size),
      wrap: this.random.once(2),
      flags: this.random.below(4),
    };
  }

  /** Any slot, in flight or not, made to look like anything. */
  #misbehave(): void {
    const { random } = this;
    const { size } = this.place;
    const index = random.once(2) ? this.#next % size : random.below(size);
    const { address, length, id, flags } = this.#ring.readDescriptor(index);
    this.#ring.writeDescriptor(index, {
      address,
      length,
      id,
      flags: random.once(2) ? flags ^ 0x8080 : random.below(65536),
    });
  }
}

export class DeviceEpisode {
  readonly #random: Random;
  readonly #arena: Arena;
  readonly #features: QueueFeatures;
  readonly #place: RawPlace & { guest: RawPlace };
  readonly #counts: Counts;
  readonly #model: DeviceModel;
  readonly #driver: FuzzDriver;
  #queue: DeviceQueue;
  readonly #offer = (): void => this.#driver.offer();
  readonly #nudge = (): void => this.#driver.nudge(this.#model.state.usedIndex);
  readonly #batch = new ChainBatch(8, 4);
  readonly #reader: ChainReader;
  readonly #writer: ChainWriter;
  readonly #bytes = new Uint8Array(1024);

  constructor(random: Random, arena: Arena, packed: boolean, counts: Counts) {
    arena.reset(random.u32());
    this.#random = random;
    this.#arena = arena;
    this.#counts = counts;
    this.#features = randomFeatures(random, packed);
    this.#place = randomPlace(random, packed, arena);
    this.#reader = new ChainReader(arena.memory);
    this.#writer = new ChainWriter(arena.memory);
    if (packed) {
      this.#model = new PackedDeviceModel(arena, this.#features, this.#place);
      this.#driver = new PackedFuzzDriver(random, arena, this.#features, this.#place);
      this.#queue = createDeviceQueue(arena.memory, this.#place.guest, this.#features);
      return;
    }
    // Mostly close in front of the wrap of the 16-bit indices.
    const start = 65536 - random.below(200);
    const model = new SplitDeviceModel(arena, this.#features, this.#place, start);
    arena.write(() => {
      model.ring.availIdx = model.ring.usedIdx = start;
    });
    model.notifyNext = start % 65536 !== 0;
    this.#model = model;
    this.#driver = new SplitFuzzDriver(random, arena, this.#features, this.#place);
    this.#queue = createDeviceQueue(arena.memory, this.#place.guest, this.#features, model.state);
  }

  run(most: number): void {
    let done = 0;
    for (; done < most && this.#model.fault === undefined; done++) {
      this.#step();
      assert.equal(this.#queue.fault?.kind, this.#model.fault, this.#queue.fault?.reason);
      assert.equal(this.#queue.inFlight, this.#pushable().length);
    }
    this.#counts.operations += done;
    if (this.#model.fault !== undefined) {
      this.#counts.faults[this.#model.fault] = (this.#counts.faults[this.#model.fault] ?? 0) + 1;
      this.#deadQueueDoesNothing();
    }
    assert.equal(this.#arena.difference(), -1, "a stray byte");
  }

  #step(): void {
    const below = this.#random.below(20);
    if (below < 8) this.#arena.write(this.#offer);
    else if (below < 11) this.#pop();
    else if (below < 15) this.#push();
    else if (below < 17) this.#flush();
    else if (below === 17) this.#arena.write(this.#nudge);
    else if (below === 18) this.#kicks();
    else this.#restart();
  }

  #pop(): void {
    const max = 1 + this.#random.below(8);
    this.#batch.clear();
    const count = this.#queue.pop(this.#batch, max);
    const chains = this.#model.pop(max);
    assert.equal(count, chains.length);
    assert.equal(this.#batch.count, count);
    chains.forEach((chain, i) => {
      this.#compare(chain, i);
      if (this.#random.once(4)) this.#payload(chain, i);
    });
    this.#counts.chains += count;
    if (!this.#random.once(8)) return;
    const undone = this.#random.below(count + 1);
    this.#queue.unpop(undone);
    this.#model.unpop(undone);
  }

  #compare(chain: ModelChain, c: number): void {
    const batch = this.#batch;
    assert.equal(batch.id[c], chain.id);
    assert.equal(batch.readable[c], chain.readable.length);
    assert.equal(batch.writable[c], chain.writable.length);
    assert.equal(batch.readableBytes[c], chain.readableBytes);
    assert.equal(batch.writableBytes[c], chain.writableBytes);
    let s = batch.first[c] as number;
    for (const pieces of [chain.readable, chain.writable])
      for (const piece of pieces) {
        const same =
          batch.region[s] === piece.region && batch.offset[s] === piece.offset && batch.length[s] === piece.length;
        if (!same) assert.fail(`segment ${s} of chain ${chain.id} is not ${JSON.stringify(piece)}`);
        s++;
      }
  }

  /** Reads the whole readable part and writes some of the writable one, as a device would. */
  #payload(chain: ModelChain, c: number): void {
    const bytes = this.#bytes;
    const reader = this.#reader.from(this.#batch, c);
    if (chain.readableBytes <= bytes.length) {
      assert.equal(reader.bytes(bytes), chain.readableBytes);
      let done = 0;
      for (const piece of chain.readable) {
        const from = this.#at(piece);
        const wanted = this.#arena.real.subarray(from, from + piece.length);
        assert.equal(Buffer.compare(bytes.subarray(done, done + piece.length), wanted), 0);
        done += piece.length;
      }
      assert.equal(reader.u8(), -1);
    }
    if (chain.writable.some(({ region, offset }) => region === 0 && offset < RING_BYTES)) return;
    const count = Math.min(bytes.length, this.#random.below(chain.writableBytes + 10));
    bytes.fill(this.#random.u32(), 0, count);
    const fits = Math.min(count, chain.writableBytes);
    assert.equal(this.#writer.to(this.#batch, c).bytes(bytes.subarray(0, count)), fits);
    let done = 0;
    for (const piece of chain.writable) {
      const part = Math.min(piece.length, fits - done);
      this.#arena.twin.set(bytes.subarray(done, done + part), this.#at(piece));
      done += part;
    }
  }

  #at({ region, offset }: Piece): number {
    return (this.#arena.regions[region]?.at ?? 0) + offset;
  }

  #pushable(): ModelChain[] {
    return [...this.#model.inFlight.values()].filter(({ id }) => this.#model.canPush(id));
  }

  #push(): void {
    const waiting = this.#pushable();
    if (waiting.length === 0) return;
    const chain = this.#random.pick(waiting);
    const written = Math.min(this.#random.below(chain.writableBytes + 1), 2 ** 32 - 1);
    this.#queue.push(chain.id, written);
    this.#model.push(chain.id, written);
    if (!this.#model.canPush(chain.id)) assert.throws(() => this.#queue.push(chain.id, 0), /not in flight/);
  }

  #flush(): void {
    assert.equal(this.#queue.flush(), this.#model.flush(), "notification");
    for (const id of this.#model.returned.splice(0)) this.#driver.returned(id);
    if (this.#random.once(4)) assert.equal(this.#arena.difference(), -1, "a stray byte");
  }

  #kicks(): void {
    if (this.#random.once(3)) {
      this.#queue.disableKicks();
      this.#model.disableKicks();
    } else if (this.#random.once(2)) assert.equal(this.#queue.available(), this.#model.available());
    else assert.equal(this.#queue.enableKicks(), this.#model.enableKicks());
  }

  /** Stops the queue and starts it again from its state. */
  #restart(): void {
    assert.deepEqual(this.#queue.state(), this.#model.state);
    if (this.#model.inFlight.size > 0 || this.#model.stagedCount > 0) return;
    const state = this.#queue.state();
    this.#queue = createDeviceQueue(this.#arena.memory, this.#place.guest, this.#features, state);
    this.#model.restarted();
  }

  #deadQueueDoesNothing(): void {
    const queue = this.#queue;
    assert.equal(queue.pop(this.#batch, 8), 0);
    for (const { id } of this.#pushable()) queue.push(id, 0);
    assert.equal(queue.flush(), false);
    queue.disableKicks();
    assert.equal(queue.enableKicks(), false);
    assert.equal(queue.available(), false);
    queue.unpop(0);
  }
}
