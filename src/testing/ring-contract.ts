import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { GuestMemory } from "../memory/guest-memory.ts";
import {
  ChainBatch,
  ChainReader,
  ChainWriter,
  createDeviceQueue,
  createDriverQueue,
  type DeviceQueue,
  type DriverQueue,
  indirectTablesBytes,
  packedLayout,
  type QueueFeatures,
  type QueueLayout,
  splitLayout,
} from "../virtqueue/index.ts";
import { statements } from "./statements.ts";

/** What every pairing of a driver's and a device's queue has to do, whatever format, features and size. */

export const NO_FEATURES: QueueFeatures = {
  packed: false,
  indirect: false,
  eventIdx: false,
  inOrder: false,
  notificationData: false,
  legacy: false,
  notifyOnEmpty: false,
};

const QUEUE = 0x1000;
const CASE = { timeout: 60_000 };

/** A driver's and a device's queue on one memory, with scatter lists and arrays at hand. */
export class RingRig {
  readonly size: number;
  readonly features: QueueFeatures;
  readonly memory: GuestMemory;
  readonly config: QueueLayout;
  readonly driver: DriverQueue;
  device: DeviceQueue;
  readonly batch: ChainBatch;
  readonly tokens: Uint32Array;
  readonly lengths: Uint32Array;
  readonly sg = { address: new Float64Array(8), length: new Uint32Array(8) };
  /** First byte of the memory that is free for buffers. */
  readonly buffers: number;

  constructor(features: Partial<QueueFeatures>, size: number, tables = false) {
    this.size = size;
    this.features = { ...NO_FEATURES, ...features };
    this.config = (this.features.packed ? packedLayout : splitLayout)(QUEUE, size);
    const tablesAt = Math.ceil((QUEUE + this.config.bytes) / 16) * 16;
    const entriesPerTable = 4;
    this.buffers = tablesAt + (tables ? indirectTablesBytes(size, entriesPerTable) : 0);
    this.memory = GuestMemory.allocate(Math.ceil(this.buffers / 0x10000) * 0x10000 + 0x10000);
    const indirect = tables ? { address: tablesAt, entriesPerTable } : undefined;
    this.driver = createDriverQueue(this.memory, this.config, this.features, indirect);
    this.device = createDeviceQueue(this.memory, this.config, this.features);
    this.batch = new ChainBatch(Math.min(size, 512));
    this.tokens = new Uint32Array(Math.min(size, 512));
    this.lengths = new Uint32Array(Math.min(size, 512));
  }

  get view(): DataView {
    return this.memory.regions[0]?.view ?? assert.fail("no memory");
  }

  /** Adds a chain of `out` and `in_` buffers of `bytes` each. */
  add(token: number, out = 1, in_ = 0, bytes = 16): boolean {
    for (let i = 0; i < out + in_; i++) {
      this.sg.address[i] = this.buffers + ((token * 64 + i * 16) % 0x8000);
      this.sg.length[i] = bytes;
    }
    return this.driver.add(this.sg, 0, out, in_, token);
  }

  /** Pops what is there, in one batch. Returns the ids. */
  pop(max = this.size): number[] {
    this.batch.clear();
    const count = this.device.pop(this.batch, max);
    return [...this.batch.id.subarray(0, count)];
  }

  /** What the driver gets back, as [token, length]. */
  get(max = this.size): [number, number][] {
    const count = this.driver.get(this.tokens, this.lengths, max);
    return Array.from({ length: count }, (_, i) => [this.tokens[i] as number, this.lengths[i] as number]);
  }

  healthy(): void {
    assert.equal(this.driver.fault, undefined);
    assert.equal(this.device.fault, undefined);
  }

  /** Stops the device's queue and starts another one in its place. */
  restart(): void {
    this.device = createDeviceQueue(this.memory, this.config, this.features, this.device.state());
  }
}

export function ringContract(name: string, features: Partial<QueueFeatures>, size: number, tables: boolean): void {
  const rig = (): RingRig => new RingRig(features, size, tables);
  const most = Math.min(size, 64);

  test(`${name}: chains come back with their tokens and lengths`, CASE, () => {
    const r = rig();
    for (let round = 0; round < 20; round++) {
      const count = 1 + ((round * 7) % most);
      for (let i = 0; i < count; i++) assert.equal(r.add(i, 0, 1), true);
      r.driver.publish();
      const ids = r.pop();
      assert.equal(ids.length, count);
      ids.forEach((id, i) => {
        r.device.push(id, i % 17);
      });
      r.device.flush();
      assert.deepEqual(
        r.get(),
        ids.map((_, i) => [i, i % 17]),
      );
      assert.deepEqual([r.driver.free, r.driver.inFlight, r.device.inFlight], [size, 0, 0]);
    }
    r.healthy();
  });

  test(`${name}: the payload arrives, both ways`, CASE, () => {
    const r = rig();
    if (size < 3 && !tables) return;
    const reader = new ChainReader(r.memory);
    const writer = new ChainWriter(r.memory);
    const out = Math.min(2, size - 1) || 1;
    if (out + 1 > size) return;
    r.memory.write(
      r.buffers,
      Uint8Array.from({ length: 32 }, (_, i) => i + 1),
    );
    r.add(0, out, 1);
    r.driver.publish();
    const [id] = r.pop();
    const bytes = new Uint8Array(16 * out);
    assert.equal(reader.from(r.batch, 0).bytes(bytes), bytes.length);
    assert.deepEqual([...bytes.subarray(0, 3)], [1, 2, 3]);
    assert.equal(writer.to(r.batch, 0).bytes(Uint8Array.of(7, 8, 9)), 3);
    r.device.push(id as number, writer.position);
    r.device.flush();
    assert.deepEqual(r.get(), [[0, 3]]);
    const back = new Uint8Array(3);
    r.memory.read(r.buffers + 16 * out, back);
    assert.deepEqual([...back], [7, 8, 9]);
  });

  test(`${name}: a full queue refuses and recovers`, CASE, () => {
    const r = rig();
    for (let i = 0; i < size; i++) assert.equal(r.add(i), true);
    assert.equal(r.driver.free, 0);
    assert.equal(r.add(size), false);
    r.driver.publish();
    let got = 0;
    while (got < size) {
      const ids = r.pop();
      assert.ok(ids.length > 0);
      for (const id of ids) r.device.push(id, 0);
      r.device.flush();
      for (let some = r.get(); some.length > 0; some = r.get()) got += some.length;
    }
    assert.equal(r.driver.free, size);
    assert.equal(r.add(1), true);
    r.healthy();
  });

  test(`${name}: 16-bit indices and wrap counters go round`, CASE, () => {
    const r = rig();
    for (let sent = 0; sent < 66_000; ) {
      const count = Math.min(most, 1 + (sent % 5));
      for (let i = 0; i < count; i++) r.add(sent + i);
      r.driver.publish();
      for (const id of r.pop()) r.device.push(id, 0);
      r.device.flush();
      const got = r.get();
      assert.deepEqual(
        got.map(([token]) => token),
        Array.from({ length: count }, (_, i) => sent + i),
      );
      sent += count;
    }
    r.healthy();
  });

  test(`${name}: nothing is visible before it is published`, CASE, () => {
    const r = rig();
    r.add(5);
    assert.equal(r.device.available(), false);
    assert.deepEqual(r.pop(), []);
    r.driver.publish();
    assert.equal(r.device.available(), true);
    const [id] = r.pop();
    r.device.push(id as number, 0);
    assert.deepEqual(r.get(), []);
    r.device.flush();
    assert.deepEqual(r.get(), [[5, 0]]);
  });

  test(`${name}: kicks and interrupts can be turned off, and none is lost when they are turned on`, CASE, () => {
    const r = rig();
    const turn = (): [boolean, boolean] => {
      r.add(1);
      const kick = r.driver.publish();
      for (const id of r.pop()) r.device.push(id, 0);
      const interrupt = r.device.flush();
      r.get();
      return [kick, interrupt];
    };
    assert.deepEqual(turn(), [true, true], "a new queue has both on");
    r.device.disableKicks();
    r.driver.disableCallbacks();
    for (let i = 0; i < 3; i++) assert.deepEqual(turn(), [false, false]);
    assert.equal(r.device.enableKicks(), false);
    assert.equal(r.driver.enableCallbacks(), false);
    assert.deepEqual(turn(), [true, true]);
    r.device.disableKicks();
    r.driver.disableCallbacks();
    turn();
    r.add(1);
    r.driver.publish();
    assert.equal(r.device.enableKicks(), true, "what came meanwhile is announced");
    for (const id of r.pop()) r.device.push(id, 0);
    r.device.flush();
    assert.equal(r.driver.enableCallbacks(), true);
  });

  test(`${name}: unpop gives chains back to the ring`, CASE, () => {
    const r = rig();
    const count = Math.min(3, size);
    for (let i = 0; i < count; i++) r.add(i);
    r.driver.publish();
    const ids = r.pop();
    r.device.unpop(count);
    assert.equal(r.device.inFlight, 0);
    assert.deepEqual(r.pop(), ids);
    for (const id of ids) r.device.push(id, 0);
    r.device.flush();
    assert.equal(r.get().length, count);
    r.healthy();
  });

  test(`${name}: a stopped queue goes on elsewhere from its state`, CASE, () => {
    const r = rig();
    for (let round = 0; round < 3 * size + 10 && round < 3000; round++) {
      const count = Math.min(size, 2);
      for (let i = 0; i < count; i++) r.add(i);
      r.driver.publish();
      const [first] = r.pop(1);
      r.device.push(first as number, 0);
      r.device.flush();
      if (round % 3 === 0) r.restart();
      for (const id of r.pop()) r.device.push(id, 0);
      if (round % 3 === 0 && count > 1) assert.equal(r.device.flush(), true, "a new start notifies at once");
      else r.device.flush();
      assert.equal(r.get().length, count);
    }
    r.healthy();
  });

  test(`${name}: after a reset each chain that did not come back is handed out once`, CASE, () => {
    const r = rig();
    const count = Math.min(4, size);
    for (let i = 0; i < count; i++) r.add(100 + i);
    r.driver.publish();
    const [id] = r.pop(1);
    r.device.push(id as number, 0);
    r.device.flush();
    r.get();
    const tokens = new Set<number>();
    for (let token = r.driver.detach(); token >= 0; token = r.driver.detach()) tokens.add(token);
    assert.deepEqual(
      [...tokens].sort(),
      Array.from({ length: count - 1 }, (_, i) => 101 + i),
    );
    assert.equal(r.driver.free, size);
  });

  test(`${name}: a device that pushes wrongly is told so`, CASE, () => {
    const r = rig();
    r.add(0, 0, 1);
    r.driver.publish();
    const [id] = r.pop() as [number];
    assert.throws(() => r.device.push(id, 17), { code: "ERR_VIRTKIT_WRITTEN" });
    r.device.push(id, 16);
    assert.throws(() => r.device.push(id, 0), { code: "ERR_VIRTKIT_NOT_IN_FLIGHT" });
    assert.throws(() => r.device.push(size + 1, 0), { code: "ERR_VIRTKIT_NOT_IN_FLIGHT" });
  });

  const tooLong = features.packed
    ? "driver: Basic Facilities of a Virtio Device / Packed Virtqueues / Scatter-Gather Support #2"
    : "driver: Basic Facilities of a Virtio Device / Virtqueues / The Virtqueue Descriptor Table / Indirect Descriptors #3";
  test(statements(`${name}: a chain longer than the queue is the caller's mistake`, tooLong), CASE, () => {
    const r = rig();
    const total = size + 1;
    const sg = { address: new Float64Array(total).fill(r.buffers), length: new Uint32Array(total).fill(1) };
    assert.throws(() => r.driver.add(sg, 0, total, 0, 0), { code: "ERR_VIRTKIT_CHAIN" });
    assert.throws(() => r.driver.add(sg, 0, 0, 0, 0), { code: "ERR_VIRTKIT_CHAIN" });
    assert.equal(r.driver.free, size);
    r.driver.publish();
    assert.equal(r.device.available(), false);
  });

  test(`${name}: every byte that changes is reported to the write observer`, CASE, () => {
    const r = rig();
    const region = r.memory.regions[0] as { u8: Uint8Array };
    const seen = new Uint8Array(region.u8.length);
    const before = region.u8.slice();
    r.memory.observeWrites((address, length) => seen.fill(1, address, address + length));
    for (let round = 0; round < 3; round++) {
      for (let i = 0; i < most && r.add(i, 1, size > 1 ? 1 : 0); i++);
      r.driver.publish();
      r.device.disableKicks();
      for (const id of r.pop()) r.device.push(id, 0);
      r.device.flush();
      r.device.enableKicks();
      r.driver.disableCallbacks();
      r.get();
      r.driver.enableCallbacks();
    }
    assert.equal(
      region.u8.findIndex((byte, i) => byte !== before[i] && seen[i] === 0),
      -1,
    );
  });

  test(`${name}: any order of calls keeps to a plain model`, CASE, () => {
    const call = fc.oneof(
      fc.record({
        op: fc.constant("add" as const),
        out: fc.integer({ min: 0, max: 2 }),
        in_: fc.integer({ min: 0, max: 2 }),
      }),
      fc.record({ op: fc.constantFrom("publish" as const, "flush" as const, "restart" as const) }),
      fc.record({ op: fc.constant("pop" as const), n: fc.nat({ max: 40 }) }),
      fc.record({ op: fc.constant("push" as const), n: fc.nat({ max: 40 }) }),
      fc.record({ op: fc.constant("get" as const), n: fc.nat({ max: 40 }) }),
    );
    fc.assert(
      fc.property(fc.array(call, { maxLength: 120 }), (calls) => {
        const model = new PlainModel(rig(), tables);
        for (const c of calls) {
          if (c.op === "add") model.add(c.out, c.in_);
          else if (c.op === "publish") model.publish();
          else if (c.op === "flush") model.flush();
          else if (c.op === "restart") model.restart();
          else if (c.op === "pop") model.pop(c.n);
          else if (c.op === "push") model.push(c.n);
          else if (c.op === "get") model.get(c.n);
        }
      }),
      { numRuns: size > 1000 ? 10 : 60 },
    );
  });
}

interface Popped {
  readonly id: number;
  readonly token: number;
  readonly room: number;
  done: boolean;
}

/** Lists of tokens, moved along: added, available, popped, done, used. */
class PlainModel {
  readonly #r: RingRig;
  readonly #tables: boolean;
  #next = 0;
  readonly #slots = new Map<number, number>();
  #added: number[] = [];
  #available: number[] = [];
  #popped: Popped[] = [];
  #staged: [number, number][] = [];
  #used: [number, number][] = [];
  readonly #written = new Map<number, number>();

  constructor(rig: RingRig, tables: boolean) {
    this.#r = rig;
    this.#tables = tables;
  }

  add(out: number, in_: number): void {
    const total = out + in_;
    if (total === 0 || total > this.#r.size) return;
    const slots = this.#tables && total > 1 ? 1 : total;
    const busy = [...this.#slots.values()].reduce((sum, n) => sum + n, 0);
    const token = this.#next++;
    const fits = busy + slots <= this.#r.size;
    assert.equal(this.#r.add(token, out, in_), fits);
    if (!fits) return;
    this.#slots.set(token, slots);
    this.#written.set(token, 16 * in_);
    this.#added.push(token);
  }

  publish(): void {
    this.#r.driver.publish();
    this.#available.push(...this.#added.splice(0));
  }

  pop(max: number): void {
    const ids = this.#r.pop(max);
    const tokens = this.#available.splice(0, Math.min(max, this.#r.batch.capacity));
    assert.equal(ids.length, tokens.length);
    tokens.forEach((token, i) => {
      const room = this.#written.get(token) as number;
      assert.equal(this.#r.batch.writableBytes[i], room);
      this.#popped.push({ id: ids[i] as number, token, done: false, room });
    });
  }

  push(n: number): void {
    const waiting = this.#popped.filter(({ done }) => !done);
    const chain = waiting[n % Math.max(waiting.length, 1)];
    if (chain === undefined) return;
    const written = Math.min(n, chain.room);
    this.#written.set(chain.token, written);
    this.#r.device.push(chain.id, written);
    chain.done = true;
    for (let i = 0; i < this.#popped.length; ) {
      const one = this.#popped[i] as Popped;
      if (!one.done && this.#r.features.inOrder) break;
      if (one.done) {
        this.#popped.splice(i, 1);
        this.#staged.push([one.token, this.#written.get(one.token) as number]);
      } else i++;
    }
  }

  flush(): void {
    this.#r.device.flush();
    this.#used.push(...this.#staged.splice(0));
  }

  get(max: number): void {
    const got = this.#r.get(max);
    assert.deepEqual(got, this.#used.splice(0, Math.min(max, this.#r.tokens.length)));
    for (const [token] of got) this.#slots.delete(token);
    this.#r.healthy();
  }

  restart(): void {
    if (this.#popped.length === 0 && this.#staged.length === 0) this.#r.restart();
  }
}
