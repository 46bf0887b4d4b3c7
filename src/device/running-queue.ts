import type { DeviceQueue } from "../virtqueue/index.ts";
import { SuspendedQueue } from "./suspended-queue.ts";

/**
 * A queue between its start and its stop. What finishes later keeps this object: once {@link live} is false the chain
 * belongs to the driver again, so neither guest memory nor the ring may be touched for it.
 */
export class RunningQueue {
  readonly index: number;
  live = true;
  /** The core's own mark that {@link DeviceQueue.fault} was passed on. */
  faultReported = false;
  /** The core's own marks: its service loop runs; it was asked for meanwhile. */
  inService = false;
  again = false;
  readonly #notify: () => void;
  #queue: DeviceQueue;
  #suspended: SuspendedQueue | undefined;

  constructor(index: number, queue: DeviceQueue, notify: () => void) {
    this.index = index;
    this.#queue = queue;
    this.#notify = notify;
  }

  /** Another object while the device is suspended. */
  get queue(): DeviceQueue {
    return this.#queue;
  }

  /** Nothing is taken from the queue any more. */
  suspend(): void {
    this.#suspended = new SuspendedQueue(this.#queue);
    this.#queue = this.#suspended;
  }

  /** Nor is the ring touched in any other way. */
  freeze(): void {
    if (this.#suspended !== undefined) this.#suspended.frozen = true;
  }

  resume(): void {
    if (this.#suspended === undefined) return;
    this.#queue = this.#suspended.thaw();
    this.#suspended = undefined;
    this.publish();
  }

  /** Publishes the chains that were pushed and notifies the driver if it asked for that. */
  publish(): void {
    if (this.live && this.queue.flush()) this.#notify();
  }
}
