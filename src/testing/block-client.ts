import assert from "node:assert/strict";
import { type BlockBackend, BlockRequests } from "../backend/block/types.ts";

/** A piece of a request's vector. */
export interface Piece {
  readonly buffer: Uint8Array;
  readonly offset: number;
  readonly length: number;
}

export interface Ask {
  readonly op: number;
  readonly offset: number;
  readonly pieces: readonly Piece[];
  /** Bytes, for what has no vector. */
  readonly length?: number;
  /** Default 0. */
  readonly flags?: number;
}

/** The front side of a block back end: checks that it keeps its promises. */
export class BlockClient {
  readonly requests: BlockRequests;
  readonly backend: BlockBackend;
  /** Slots in the order of their completion. */
  readonly order: number[] = [];
  capacity: number;
  #free: number[];
  readonly #waiting: (((result: number) => void) | undefined)[] = [];
  readonly #results = new Map<number, number>();

  constructor(backend: BlockBackend, slots = 64) {
    this.backend = backend;
    this.capacity = backend.capacity;
    this.requests = new BlockRequests(slots);
    this.#free = Array.from({ length: slots }, (_, i) => slots - 1 - i);
    backend.attach(this.requests, {
      complete: (slot, generation, result) => this.#complete(slot, generation, result),
      completed: () => this.#completed(),
      resized: (capacity) => {
        this.capacity = capacity;
      },
    });
  }

  /** Submits all at once and resolves with the results. */
  async run(...asks: Ask[]): Promise<number[]> {
    const slots = asks.map((ask) => this.#fill(ask));
    const promises = slots.map((slot) => new Promise<number>((resolve) => (this.#waiting[slot] = resolve)));
    this.backend.submit(slots, slots.length);
    if (this.backend.inline)
      for (const slot of slots) assert.ok(this.#results.has(slot), "an inline back end answers inside submit");
    this.#completed();
    return Promise.all(promises);
  }

  #fill(ask: Ask): number {
    const slot = this.#free.pop();
    assert.ok(slot !== undefined, "too many requests at once");
    const { requests } = this;
    const vector = requests.vector[slot];
    assert.ok(vector !== undefined);
    vector.clear();
    for (const { buffer, offset, length } of ask.pieces) vector.add(buffer, offset, length);
    requests.op[slot] = ask.op;
    requests.offset[slot] = ask.offset;
    requests.length[slot] = ask.length ?? ask.pieces.reduce((sum, piece) => sum + piece.length, 0);
    requests.flags[slot] = ask.flags ?? 0;
    requests.generation[slot] = (requests.generation[slot] as number) + 1;
    return slot;
  }

  #complete(slot: number, generation: number, result: number): void {
    assert.equal(generation, this.requests.generation[slot], "a generation that is over");
    assert.ok(this.#waiting[slot] !== undefined, "completed a slot that is not in flight");
    assert.ok(!this.#results.has(slot), "completed twice");
    this.#results.set(slot, result);
    this.order.push(slot);
  }

  #completed(): void {
    for (const [slot, result] of [...this.#results]) {
      this.#results.delete(slot);
      const resolve = this.#waiting[slot];
      this.#waiting[slot] = undefined;
      this.#free.push(slot);
      resolve?.(result);
    }
  }
}
