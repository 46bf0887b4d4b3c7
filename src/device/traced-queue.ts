import type { QueueStartEvent, Tracer } from "../trace/types.ts";
import type { ChainBatch, DeviceQueue, QueueConfig, QueueFault, QueueState } from "../virtqueue/index.ts";

/**
 * A queue that tells a tracer what is taken from it and returned to it. Only a traced device has one, so that the way of a chain
 * through an untraced device has no hooks at all.
 */
export class TracedQueue implements DeviceQueue {
  readonly size: number;
  readonly #queue: DeviceQueue;
  readonly #index: number;
  readonly #tracer: Tracer;

  constructor(queue: DeviceQueue, index: number, tracer: Tracer) {
    this.size = queue.size;
    this.#queue = queue;
    this.#index = index;
    this.#tracer = tracer;
  }

  get fault(): QueueFault | undefined {
    return this.#queue.fault;
  }

  get inFlight(): number {
    return this.#queue.inFlight;
  }

  pop(batch: ChainBatch, max: number): number {
    const first = batch.count;
    const count = this.#queue.pop(batch, max);
    for (let c = first; c < first + count; c++)
      this.#tracer.emit({
        kind: "pop",
        queue: this.#index,
        head: batch.id[c] as number,
        readable: batch.readable[c] as number,
        writable: batch.writable[c] as number,
        readableBytes: batch.readableBytes[c] as number,
        writableBytes: batch.writableBytes[c] as number,
      });
    return count;
  }

  unpop(count: number): void {
    this.#tracer.emit({ kind: "unpop", queue: this.#index, count });
    this.#queue.unpop(count);
  }

  push(id: number, written: number): void {
    this.#tracer.emit({ kind: "push", queue: this.#index, head: id, written });
    this.#queue.push(id, written);
  }

  flush(): boolean {
    return this.#queue.flush();
  }

  disableKicks(): void {
    this.#queue.disableKicks();
  }

  enableKicks(): boolean {
    return this.#queue.enableKicks();
  }

  available(): boolean {
    return this.#queue.available();
  }

  state(): QueueState {
    return this.#queue.state();
  }
}

/** That a queue starts, as traces show it. */
export function queueStart(queue: number, config: QueueConfig, packed: boolean): QueueStartEvent {
  const { size, desc: descriptorArea, driver: driverArea, device: deviceArea } = config;
  const format = packed ? "packed" : "split";
  return { kind: "queue", queue, state: "start", format, size, descriptorArea, driverArea, deviceArea };
}
