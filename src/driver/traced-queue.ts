import type { QueueStartEvent, Tracer } from "../trace/types.ts";
import type { DriverQueue, QueueConfig, QueueFault, ScatterList } from "../virtqueue/index.ts";

/** A queue that tells a tracer what a driver adds to it and gets back. Only a traced driver has one. */
export class TracedQueue implements DriverQueue {
  readonly size: number;
  readonly #queue: DriverQueue;
  readonly #index: number;
  readonly #tracer: Tracer;

  constructor(queue: DriverQueue, index: number, tracer: Tracer) {
    this.size = queue.size;
    this.#queue = queue;
    this.#index = index;
    this.#tracer = tracer;
  }

  get fault(): QueueFault | undefined {
    return this.#queue.fault;
  }

  get free(): number {
    return this.#queue.free;
  }

  get inFlight(): number {
    return this.#queue.inFlight;
  }

  add(sg: ScatterList, first: number, out: number, in_: number, token: number): boolean {
    const added = this.#queue.add(sg, first, out, in_, token);
    if (added) this.#tracer.emit({ kind: "add", queue: this.#index, token, out, in: in_ });
    return added;
  }

  publish(): boolean {
    return this.#queue.publish();
  }

  kickData(): number {
    return this.#queue.kickData();
  }

  get(tokens: Uint32Array, lengths: Uint32Array, max: number): number {
    const count = this.#queue.get(tokens, lengths, max);
    for (let i = 0; i < count; i++)
      this.#tracer.emit({
        kind: "get",
        queue: this.#index,
        token: tokens[i] as number,
        written: lengths[i] as number,
      });
    return count;
  }

  disableCallbacks(): void {
    this.#queue.disableCallbacks();
  }

  enableCallbacks(): boolean {
    return this.#queue.enableCallbacks();
  }

  detach(): number {
    return this.#queue.detach();
  }
}

/** That a queue starts, as traces show it. */
export function queueStart(queue: number, config: QueueConfig, packed: boolean): QueueStartEvent {
  const { size, desc: descriptorArea, driver: driverArea, device: deviceArea } = config;
  const format = packed ? "packed" : "split";
  return { kind: "queue", queue, state: "start", format, size, descriptorArea, driverArea, deviceArea };
}
