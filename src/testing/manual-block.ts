import { MemoryBlockBackend, type MemoryBlockOptions } from "../backend/block/memory.ts";
import {
  BLOCK_IO_ERROR,
  BLOCK_OK,
  BLOCK_READ,
  BLOCK_WRITE,
  type BlockBackend,
  type BlockLifetime,
  type BlockRequests,
  type BlockSink,
} from "../backend/block/types.ts";

/** One request, as it was submitted. */
export interface SubmittedRequest {
  readonly slot: number;
  readonly generation: number;
  readonly op: number;
  readonly offset: number;
  readonly length: number;
  readonly pieces: number;
  readonly flags: number;
}

export interface ManualBlockOptions extends Partial<MemoryBlockOptions> {
  /** Answer by itself in a later turn, in the order of submission or (with a number, the seed) out of order. */
  readonly auto?: "ordered" | number;
  readonly lifetime?: BlockLifetime;
}

/**
 * A block back end that answers when it is told to, in any order, or fails. The bytes move at the moment of the answer, so
 * that a front side that used its buffers for something else meanwhile shows.
 */
export class ManualBlockBackend implements BlockBackend {
  readonly name = "manual";
  readonly inline = false;
  readonly discard = true;
  readonly writeZeroes = true;
  readonly secureErase = true;
  readonly lifetime?: BlockLifetime;
  /** Everything that was ever submitted. */
  readonly log: SubmittedRequest[] = [];
  /** Calls of `submit`. */
  submits = 0;
  waiting: SubmittedRequest[] = [];
  /** Fails the requests that it is true for. */
  fail: (request: SubmittedRequest) => boolean = () => false;
  readonly disk: MemoryBlockBackend;
  #requests: BlockRequests | undefined;
  #sink: BlockSink | undefined;
  #result = BLOCK_OK;
  #scheduled = false;
  #seed: number;
  readonly #auto: boolean;

  constructor(options: ManualBlockOptions = {}) {
    this.disk = new MemoryBlockBackend({ capacity: 1024 * 1024, ...options });
    if (options.lifetime !== undefined) this.lifetime = options.lifetime;
    this.#auto = options.auto !== undefined;
    this.#seed = typeof options.auto === "number" ? options.auto : 0;
  }

  get capacity(): number {
    return this.disk.capacity;
  }
  get readOnly(): boolean {
    return this.disk.readOnly;
  }
  get blockSize(): number {
    return this.disk.blockSize;
  }
  get physicalBlockSize(): number {
    return this.disk.physicalBlockSize;
  }

  attach(requests: BlockRequests, sink: BlockSink): void {
    this.disk.attach(requests, {
      complete: (_slot, _generation, result) => {
        this.#result = result;
      },
      completed: () => undefined,
      resized: (capacity) => sink.resized(capacity),
    });
    this.#requests = requests;
    this.#sink = sink;
  }

  submit(slots: ArrayLike<number>, count: number): void {
    const requests = this.#requests as BlockRequests;
    this.submits++;
    for (let i = 0; i < count; i++) {
      const slot = slots[i] as number;
      const request: SubmittedRequest = {
        slot,
        generation: requests.generation[slot] as number,
        op: requests.op[slot] as number,
        offset: requests.offset[slot] as number,
        length: requests.length[slot] as number,
        pieces: requests.vector[slot]?.count ?? 0,
        flags: requests.flags[slot] as number,
      };
      checkVector(requests, request);
      this.log.push(request);
      this.waiting.push(request);
    }
    if (this.#auto) this.#schedule();
  }

  /** Answers one waiting request; the caller says {@link completed} after one or more. */
  answer(request: SubmittedRequest): void {
    this.waiting = this.waiting.filter((other) => other !== request);
    if (this.fail(request)) this.#result = BLOCK_IO_ERROR;
    else this.disk.submit([request.slot], 1);
    this.#sink?.complete(request.slot, request.generation, this.#result);
  }

  /** Completes a slot against the rules: one that is not in flight, or with another generation. */
  stray(slot: number, generation: number): void {
    this.#sink?.complete(slot, generation, BLOCK_OK);
  }

  completed(): void {
    this.#sink?.completed();
  }

  /** Answers everything that waits now, in order. Returns how much. */
  answerAll(): number {
    const requests = this.waiting;
    for (const request of requests) this.answer(request);
    this.completed();
    return requests.length;
  }

  async close(): Promise<void> {
    while (this.waiting.length > 0) await new Promise((resolve) => setImmediate(resolve));
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      const some = this.#seed === 0 ? this.waiting.length : 1 + this.#random(this.waiting.length);
      for (let i = 0; i < some && this.waiting.length > 0; i++) {
        const at = this.#seed === 0 ? 0 : this.#random(this.waiting.length);
        this.answer(this.waiting[at] as SubmittedRequest);
      }
      this.completed();
      if (this.waiting.length > 0) this.#schedule();
    });
  }

  #random(below: number): number {
    this.#seed = (Math.imul(this.#seed, 1103515245) + 12345) & 0x7fffffff;
    return (this.#seed >> 8) % Math.max(1, below);
  }
}

function checkVector(requests: BlockRequests, request: SubmittedRequest): void {
  if (request.op !== BLOCK_READ && request.op !== BLOCK_WRITE) return;
  const vector = requests.vector[request.slot];
  let sum = 0;
  for (let i = 0; i < request.pieces; i++) sum += vector?.length[i] ?? 0;
  if (sum !== request.length) throw new Error(`a vector of ${sum} bytes for a request of ${request.length}`);
}
