import type { ChainBatch, DeviceQueue, QueueFault, QueueState } from "../virtqueue/index.ts";

/**
 * Stands in for a queue while its device is being suspended and is suspended (VIRTIO 1.4 §3.4): nothing is available, so that a
 * device needs no code of its own for it. What is in flight still becomes used at first; once {@link frozen} the ring is not
 * touched, and what is pushed waits.
 */
export class SuspendedQueue implements DeviceQueue {
  readonly inner: DeviceQueue;
  frozen = false;
  readonly #ids: number[] = [];
  readonly #lengths: number[] = [];

  constructor(inner: DeviceQueue) {
    this.inner = inner;
  }

  get size(): number {
    return this.inner.size;
  }
  get fault(): QueueFault | undefined {
    return this.inner.fault;
  }
  get inFlight(): number {
    return this.inner.inFlight;
  }

  pop(_batch: ChainBatch, _max: number): number {
    return 0;
  }
  unpop(count: number): void {
    this.inner.unpop(count);
  }
  push(id: number, written: number): void {
    if (!this.frozen) this.inner.push(id, written);
    else {
      this.#ids.push(id);
      this.#lengths.push(written);
    }
  }
  flush(): boolean {
    return !this.frozen && this.inner.flush();
  }
  disableKicks(): void {}
  enableKicks(): boolean {
    return false;
  }
  available(): boolean {
    return false;
  }
  state(): QueueState {
    return this.inner.state();
  }

  /** Pushes what waited. Returns the queue itself. */
  thaw(): DeviceQueue {
    this.frozen = false;
    for (const [i, id] of this.#ids.entries()) this.inner.push(id, this.#lengths[i] as number);
    return this.inner;
  }
}
