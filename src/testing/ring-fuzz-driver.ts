import assert from "node:assert/strict";
import { createDriverQueue, type DriverQueue } from "../virtqueue/index.ts";
import type { QueueFeatures } from "../virtqueue/types.ts";
import type { RawPlace } from "./raw-ring.ts";
import { type Arena, type Random, RING_BASE, RING_BYTES } from "./ring-arena.ts";
import { type Counts, goodBuffer, MAX_SIZE, randomFeatures, randomPlace } from "./ring-fuzz-device.ts";
import { type AddedChain, type FuzzDevice, PackedFuzzDevice, SplitFuzzDevice, TABLES } from "./ring-fuzz-far-device.ts";

const TABLE_ENTRIES = 4;

/** The driver's side under a device that mostly behaves. An episode ends with a fault or after some hundred operations. */
export class DriverEpisode {
  readonly #random: Random;
  readonly #arena: Arena;
  readonly #counts: Counts;
  readonly #features: QueueFeatures;
  readonly #place: RawPlace;
  readonly #queue: DriverQueue;
  readonly #device: FuzzDevice;
  readonly #hasTables: boolean;
  readonly #misuseOne: number;
  readonly #sg = { address: new Float64Array(8), length: new Uint32Array(8) };
  readonly #tokens = new Uint32Array(MAX_SIZE);
  readonly #lengths = new Uint32Array(MAX_SIZE);
  #added: AddedChain[] = [];
  #free: number;
  #misused = false;

  constructor(random: Random, arena: Arena, packed: boolean, counts: Counts) {
    arena.reset(random.u32());
    this.#random = random;
    this.#arena = arena;
    this.#counts = counts;
    this.#features = { ...randomFeatures(random, packed), legacy: !packed && random.once(4) };
    const place = randomPlace(random, packed, arena);
    this.#place = place;
    this.#hasTables = this.#features.indirect && random.once(2);
    this.#misuseOne = random.pick([8, 40, 300]);
    const tables = { address: RING_BASE + TABLES, entriesPerTable: TABLE_ENTRIES };
    this.#queue = createDriverQueue(arena.memory, place.guest, this.#features, this.#hasTables ? tables : undefined);
    const Device = packed ? PackedFuzzDevice : SplitFuzzDevice;
    this.#device = new Device(random, arena, this.#features, place);
    this.#free = place.size;
  }

  run(most: number): void {
    let done = 0;
    const device = this.#device;
    for (; done < most && device.fault === undefined; done++) {
      this.#step();
      assert.equal(this.#queue.fault?.kind, device.fault, this.#queue.fault?.reason);
      assert.equal(this.#queue.free, this.#free);
      assert.equal(this.#queue.inFlight, device.seen.length + this.#added.length);
      if (this.#random.once(8)) this.#noStrayByte();
    }
    this.#counts.operations += done;
    if (device.fault !== undefined) {
      this.#counts.faults[device.fault] = (this.#counts.faults[device.fault] ?? 0) + 1;
      this.#deadQueueDoesNothing();
    }
    this.#noStrayByte();
    this.#detachAll();
  }

  #step(): void {
    const random = this.#random;
    const choice = random.below(20);
    if (choice < 7) this.#add();
    else if (choice < 10) this.#publish();
    else if (choice < 14) this.#returnSome();
    else if (choice < 17) this.#get();
    else if (choice === 17) this.#deviceActs(() => this.#device.nudge());
    else if (choice === 18) this.#callbacks();
    else if (this.#added.length === 0 && random.once(this.#misuseOne)) this.#misuse();
  }

  #misuse(): void {
    this.#misused = true;
    this.#deviceActs(() => this.#device.misuse());
  }

  #returnSome(): void {
    // A device that has lost its way in a packed ring would write over what was added and not yet published.
    if (this.#misused && this.#added.length > 0) return;
    this.#deviceActs(() => this.#device.returnSome());
  }

  #add(): void {
    const random = this.#random;
    const count = 1 + random.below(5);
    const out = random.below(count + 1);
    const elements = Array.from({ length: count }, (_, i) => ({ ...goodBuffer(random, i >= out), write: i >= out }));
    elements.forEach(({ address, length }, i) => {
      this.#sg.address[i + 1] = address;
      this.#sg.length[i + 1] = length;
    });
    const token = random.u32();
    const indirect = this.#hasTables && count > 1 && count <= TABLE_ENTRIES;
    const slots = indirect ? 1 : count;
    const add = (): boolean => this.#queue.add(this.#sg, 1, out, count - out, token);
    if (count > this.#place.size) {
      // A direct chain is refused for want of room first, which is no less true.
      if (this.#free > 0) assert.throws(add, { code: "ERR_VIRTKIT_CHAIN" });
      return;
    }
    const fits = slots <= this.#free;
    assert.equal(add(), fits);
    if (!fits) return;
    this.#free -= slots;
    const room = elements.reduce((sum, { write, length }) => sum + (write ? length : 0), 0);
    this.#added.push({ token, elements, slots, room, id: -1 });
  }

  #publish(): void {
    const notify = this.#queue.publish();
    this.#counts.chains += this.#added.length;
    assert.equal(notify, this.#device.accept(this.#added), "notification");
    this.#added = [];
  }

  #get(): void {
    const max = 1 + this.#random.below(MAX_SIZE - 1);
    const before = new Map(this.#device.seen.map((chain) => [chain.token, chain.slots]));
    const wanted = this.#device.get(max);
    const count = this.#queue.get(this.#tokens, this.#lengths, max);
    assert.equal(count, wanted.length);
    wanted.forEach(({ token, length }, i) => {
      assert.equal(this.#tokens[i], token);
      assert.equal(this.#lengths[i], length);
      this.#free += before.get(token) as number;
    });
  }

  #callbacks(): void {
    if (this.#random.once(2)) this.#queue.disableCallbacks();
    else {
      assert.equal(this.#queue.enableCallbacks(), this.#device.waits());
      const [is, wanted] = this.#device.callbacksEvent as unknown[];
      assert.equal(is, wanted);
    }
  }

  /** Everything but the parts that the driver writes has to be as the device left it. */
  #deviceActs(act: () => void): void {
    this.#ringsOfDeviceUntouched();
    act();
    const start = this.#arena.ringOffset(RING_BASE);
    this.#arena.twin.set(this.#arena.real.subarray(start, start + RING_BYTES), start);
  }

  #ringsOfDeviceUntouched(): void {
    const { real, twin } = this.#arena;
    const end = this.#place.device + (this.#features.packed ? 4 : 6 + 8 * this.#place.size);
    const same = Buffer.compare(real.subarray(this.#place.device, end), twin.subarray(this.#place.device, end)) === 0;
    assert.ok(same, "the driver wrote to the device's part");
  }

  #noStrayByte(): void {
    this.#ringsOfDeviceUntouched();
    const { real, twin } = this.#arena;
    const start = this.#arena.ringOffset(RING_BASE);
    const end = start + RING_BYTES;
    assert.equal(Buffer.compare(real.subarray(0, start), twin.subarray(0, start)), 0, "a stray byte below");
    assert.equal(Buffer.compare(real.subarray(end), twin.subarray(end)), 0, "a stray byte above");
  }

  #deadQueueDoesNothing(): void {
    const queue = this.#queue;
    const before = Buffer.from(this.#arena.real);
    assert.equal(queue.get(this.#tokens, this.#lengths, MAX_SIZE), 0);
    this.#sg.address[1] = RING_BASE + RING_BYTES;
    this.#sg.length[1] = 1;
    assert.equal(queue.add(this.#sg, 1, 1, 0, 0), false);
    assert.equal(queue.publish(), false);
    queue.disableCallbacks();
    assert.equal(queue.enableCallbacks(), false);
    assert.equal(Buffer.compare(before, this.#arena.real), 0, "a broken queue wrote");
  }

  /** After a reset each chain that never came back is handed out once. */
  #detachAll(): void {
    const left = [...this.#device.seen, ...this.#added].map(({ token }) => token).sort((a, b) => a - b);
    const detached: number[] = [];
    for (let token = this.#queue.detach(); token >= 0; token = this.#queue.detach()) detached.push(token);
    assert.deepEqual(
      detached.sort((a, b) => a - b),
      left,
    );
    assert.equal(this.#queue.free, this.#place.size);
    assert.equal(this.#queue.inFlight, 0);
  }
}
