import type { DeviceQueue } from "../virtqueue/index.ts";

/**
 * A queue between its start and its stop. What finishes later keeps this object: once {@link live} is false the chain
 * belongs to the driver again, so neither guest memory nor the ring may be touched for it.
 */
export class RunningQueue {
  readonly index: number;
  readonly queue: DeviceQueue;
  live = true;
  /** The core's own mark that {@link DeviceQueue.fault} was passed on. */
  faultReported = false;
  /** The core's own marks: its service loop runs; it was asked for meanwhile. */
  inService = false;
  again = false;
  readonly #notify: () => void;

  constructor(index: number, queue: DeviceQueue, notify: () => void) {
    this.index = index;
    this.queue = queue;
    this.#notify = notify;
  }

  /** Publishes the chains that were pushed and notifies the driver if it asked for that. */
  publish(): void {
    if (this.live && this.queue.flush()) this.#notify();
  }
}
