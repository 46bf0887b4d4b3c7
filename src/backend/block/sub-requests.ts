import { type BlockBackend, BlockRequests, type IoVector } from "./types.ts";

/** The disk in front of another. */
export interface SubRequestHost {
  /** A part of request `slot` is done: `length` bytes at `offset`, both in bytes of the disk. */
  done(slot: number, offset: number, length: number, result: number): void;
  /** Parts were done outside `submit`. */
  completed(): void;
}

/** Parts of requests, handed to a disk behind the one that was asked. */
export class SubRequests {
  readonly #disk: BlockBackend;
  readonly #from: BlockRequests;
  readonly #host: SubRequestHost;
  readonly #requests: BlockRequests;
  /** Whose part a slot is. */
  readonly #owner: Int32Array;
  readonly #free: number[];
  #added: number[] = [];

  constructor(disk: BlockBackend, from: BlockRequests, host: SubRequestHost) {
    const { slots } = from;
    this.#disk = disk;
    this.#from = from;
    this.#host = host;
    this.#requests = new BlockRequests(slots);
    this.#owner = new Int32Array(slots);
    this.#free = Array.from({ length: slots }, (_, i) => slots - 1 - i);
    disk.attach(this.#requests, {
      complete: (sub, generation, result) => this.#complete(sub, generation, result),
      completed: () => host.completed(),
      resized: () => undefined,
    });
  }

  /** Prepares the part of request `slot` from its byte `skip` on. False when there is no room. */
  add(slot: number, op: number, skip: number, length: number, flags: number): boolean {
    const sub = this.#free.pop();
    if (sub === undefined) return false;
    const requests = this.#requests;
    requests.op[sub] = op;
    requests.offset[sub] = (this.#from.offset[slot] as number) + skip;
    requests.length[sub] = length;
    requests.flags[sub] = flags;
    requests.generation[sub] = (requests.generation[sub] as number) + 1;
    cut(this.#from.vector[slot] as IoVector, skip, length, requests.vector[sub] as IoVector);
    this.#owner[sub] = slot;
    this.#added.push(sub);
    return true;
  }

  /** Hands over what was added; false when that was nothing. */
  submit(): boolean {
    const subs = this.#added;
    if (subs.length === 0) return false;
    this.#added = [];
    this.#disk.submit(subs, subs.length);
    return true;
  }

  #complete(sub: number, generation: number, result: number): void {
    const requests = this.#requests;
    if (generation !== requests.generation[sub]) return;
    const offset = requests.offset[sub] as number;
    const length = requests.length[sub] as number;
    requests.vector[sub]?.clear();
    this.#free.push(sub);
    this.#host.done(this.#owner[sub] as number, offset, length, result);
  }
}

/** Bytes `skip` .. `skip + length` of a vector, as another one. */
function cut(from: IoVector, skip: number, length: number, into: IoVector): void {
  into.clear();
  for (let i = 0; i < from.count && length > 0; i++) {
    const piece = from.length[i] as number;
    if (skip >= piece) {
      skip -= piece;
      continue;
    }
    const n = Math.min(piece - skip, length);
    into.add(from.buffer[i] as Uint8Array, (from.offset[i] as number) + skip, n);
    skip = 0;
    length -= n;
  }
}
