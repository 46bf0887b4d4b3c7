import fc from "fast-check";
import { GuestMemory } from "../memory/guest-memory.ts";
import {
  createDriverQueue,
  type DriverQueue,
  indirectTablesBytes,
  packedLayout,
  type QueueConfig,
  type QueueFeatures,
  type ScatterList,
  splitLayout,
} from "../virtqueue/index.ts";
import { RawPackedRing, RawSplitRing } from "./raw-ring.ts";
import { NO_FEATURES } from "./ring-contract.ts";

/** A driver's queue of ours under observation, in front of a device that is written by hand. */

const QUEUE = 0x1000;
const BUFFERS = 0x20000;
const TABLES = 0x10000;
export const TABLE_ENTRIES = 4;
const MEMORY = 0x40000;

export type DriverStep =
  | { readonly op: "add"; readonly out: number; readonly in_: number }
  | { readonly op: "publish" | "disable" | "enable" }
  /** The device uses one of the chains it has. */
  | { readonly op: "use"; readonly which: number }
  | { readonly op: "get"; readonly max: number };

/** Any order of calls of a driver, and of uses by its device. */
const driverSteps: fc.Arbitrary<DriverStep[]> = fc.array(
  fc.oneof<fc.WeightedArbitrary<DriverStep>[]>(
    { weight: 3, arbitrary: fc.record({ op: fc.constant("add" as const), out: fc.nat(3), in_: fc.nat(3) }) },
    {
      weight: 4,
      arbitrary: fc.record({ op: fc.constantFrom("publish" as const, "disable" as const, "enable" as const) }),
    },
    { weight: 3, arbitrary: fc.record({ op: fc.constant("use" as const), which: fc.nat(20) }) },
    { weight: 2, arbitrary: fc.record({ op: fc.constant("get" as const), max: fc.integer({ min: 1, max: 8 }) }) },
  ),
  { maxLength: 150, size: "max" },
);

interface InFlight {
  /** Split: the head. Packed: the buffer id. */
  readonly id: number;
  /** Packed: slots of the ring that it takes. */
  readonly slots: number;
  /** Packed: the first of them. */
  readonly first: number;
}

abstract class WatchedDriver {
  readonly memory: GuestMemory;
  readonly place: QueueConfig;
  readonly features: QueueFeatures;
  readonly queue: DriverQueue;
  readonly inFlight: InFlight[] = [];
  readonly tokens = new Uint32Array(64);
  readonly lengths = new Uint32Array(64);
  readonly sg: ScatterList = { address: new Float64Array(64), length: new Uint32Array(64) };
  /** Slots of a packed ring (entries of a split one) that came back through {@link get}, since the beginning. */
  returned = 0;
  /** By token: those that the chain takes. */
  readonly #slots: number[] = [];
  readonly #tables: boolean;
  #token = 0;

  constructor(features: Partial<QueueFeatures>, size: number, tables: boolean) {
    this.features = { ...NO_FEATURES, ...features };
    this.#tables = tables && this.features.indirect;
    this.place = (this.features.packed ? packedLayout : splitLayout)(QUEUE, size);
    this.memory = GuestMemory.allocate(MEMORY);
    // What was in the memory before must not matter.
    new Uint8Array(this.view.buffer, QUEUE, indirectTablesBytes(size, TABLE_ENTRIES) + 0x4000).fill(0xff);
    const indirect = tables ? { address: TABLES, entriesPerTable: TABLE_ENTRIES } : undefined;
    this.queue = createDriverQueue(this.memory, this.place, this.features, indirect);
  }

  get view(): DataView {
    const [region] = this.memory.regions;
    if (region === undefined) throw new Error("no memory");
    return region.view;
  }

  /** Offset of buffer `i` of a chain. */
  buffer(i: number): number {
    return BUFFERS + 32 * i;
  }

  add(out: number, in_: number): boolean {
    for (let i = 0; i < out + in_; i++) {
      this.sg.address[i] = this.buffer(i);
      this.sg.length[i] = 16;
    }
    const total = out + in_;
    this.#slots[this.#token] = this.#tables && total > 1 && total <= TABLE_ENTRIES ? 1 : total;
    return this.queue.add(this.sg, 0, out, in_, this.#token++);
  }

  get(max = 64): number {
    const count = this.queue.get(this.tokens, this.lengths, max);
    for (let i = 0; i < count; i++) this.returned += this.#slots[this.tokens[i] as number] as number;
    return count;
  }

  /** Takes the chains that became available since the last look into {@link inFlight}. */
  abstract look(): void;
  /** Uses one of the chains in flight: the oldest with IN_ORDER. */
  abstract use(which: number): void;

  step(step: DriverStep): void {
    const { queue } = this;
    if (step.op === "add") {
      if (step.out + step.in_ > 0 && step.out + step.in_ <= this.place.size) this.add(step.out, step.in_);
    } else if (step.op === "publish") queue.publish();
    else if (step.op === "disable") queue.disableCallbacks();
    else if (step.op === "enable") queue.enableCallbacks();
    else if (step.op === "get") this.get(step.max);
    else if (step.op === "use") {
      this.look();
      if (this.inFlight.length > 0) this.use(this.features.inOrder ? 0 : step.which % this.inFlight.length);
    }
    if (queue.fault !== undefined) throw new Error(queue.fault.reason);
  }
}

export class WatchedSplitDriver extends WatchedDriver {
  readonly ring: RawSplitRing;
  #seen = 0;

  constructor(features: Partial<QueueFeatures>, size: number, tables: boolean) {
    super({ ...features, packed: false }, size, tables);
    this.ring = new RawSplitRing(this.view, this.place);
  }

  override look(): void {
    for (; this.#seen !== this.ring.availIdx; this.#seen = (this.#seen + 1) & 0xffff)
      this.inFlight.push({ id: this.ring.readAvail(this.#seen), slots: 0, first: 0 });
  }

  override use(which: number): void {
    const [chain] = this.inFlight.splice(which, 1);
    if (chain !== undefined) this.ring.use(chain.id, 0);
  }
}

export class WatchedPackedDriver extends WatchedDriver {
  readonly ring: RawPackedRing;
  /** Where the next chain will become available, and where the next used descriptor goes. */
  readonly available = { index: 0, wrap: true };
  /** Slots that became available, since the beginning. */
  shown = 0;
  readonly used = { index: 0, wrap: true };

  constructor(features: Partial<QueueFeatures>, size: number, tables: boolean) {
    super({ ...features, packed: true }, size, tables);
    this.ring = new RawPackedRing(this.view, this.place);
  }

  override look(): void {
    for (;;) {
      const at = { ...this.available };
      let slots = 0;
      for (;;) {
        const { flags, id } = this.ring.readDescriptor(at.index);
        if ((flags & 0x8080) !== RawPackedRing.available(at.wrap)) {
          if (slots > 0) throw new Error("half a chain is available");
          return;
        }
        slots++;
        this.#advance(at, 1);
        if ((flags & 1) !== 0) continue;
        this.inFlight.push({ id, slots, first: this.available.index });
        this.shown += slots;
        break;
      }
      Object.assign(this.available, at);
    }
  }

  override use(which: number): void {
    const [chain] = this.inFlight.splice(which, 1);
    if (chain === undefined) return;
    this.ring.writeUsed(this.used.index, chain.id, 0, RawPackedRing.used(this.used.wrap));
    this.#advance(this.used, chain.slots);
  }

  #advance(at: { index: number; wrap: boolean }, slots: number): void {
    at.index += slots;
    if (at.index < this.place.size) return;
    at.index -= this.place.size;
    at.wrap = !at.wrap;
  }
}

/** Every combination of the features that change what a driver writes. */
export const DRIVER_FEATURES: readonly Partial<QueueFeatures>[] = [false, true].flatMap((eventIdx) =>
  [false, true].flatMap((inOrder) => [false, true].map((indirect) => ({ eventIdx, inOrder, indirect }))),
);

/** Runs any orders of calls on queues with each combination of features; `check` looks after each call. */
export function watchDriver<D extends WatchedDriver>(
  create: (features: Partial<QueueFeatures>) => D,
  check: (driver: D) => (step: DriverStep) => void,
): void {
  fc.assert(
    fc.property(fc.constantFrom(...DRIVER_FEATURES), driverSteps, (features, steps) => {
      const driver = create(features);
      const look = check(driver);
      for (const step of steps) {
        driver.step(step);
        look(step);
      }
    }),
    { numRuns: 200 },
  );
}
