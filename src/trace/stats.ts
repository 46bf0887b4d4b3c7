import { LatencyHistogram } from "./latency.ts";
import type { TraceSink } from "./tracing.ts";
import type { TraceEvent } from "./types.ts";

/** What one queue has done. */
export interface QueueStats {
  readonly device: string;
  readonly queue: number;
  kicks: number;
  /** Chains taken and returned. */
  popped: number;
  pushed: number;
  /** Bytes that the driver had for the device in the chains taken, and that the device wrote. */
  readableBytes: number;
  writtenBytes: number;
  interrupts: number;
  /** From pop to push. */
  readonly latency: LatencyHistogram;
}

interface Running {
  readonly stats: QueueStats;
  /** Times of the chains that were taken, by head, the last at the end. */
  readonly popped: Map<number, number>;
}

/** Counts what queues do. One serves any number of devices. */
export class TraceStats implements TraceSink {
  readonly #queues = new Map<string, Map<number, Running>>();
  /** Rules that drivers broke, by device. */
  readonly faults = new Map<string, number>();

  /** By device, in the order in which they were first seen, and index. */
  get queues(): readonly QueueStats[] {
    const all = [...this.#queues.values()].map((queues) => [...queues.values()].map(({ stats }) => stats));
    return all.flatMap((queues) => queues.sort((a, b) => a.queue - b.queue));
  }

  record(time: number, device: string, event: TraceEvent): void {
    switch (event.kind) {
      case "kick":
        this.#of(device, event.queue).stats.kicks++;
        break;
      case "pop":
        this.#popped(this.#of(device, event.queue), time, event.head, event.readableBytes);
        break;
      case "unpop":
        this.#unpopped(this.#of(device, event.queue), event.count);
        break;
      case "push":
        this.#pushed(this.#of(device, event.queue), time, event.head, event.written);
        break;
      case "interrupt":
        if (event.queue !== undefined) this.#of(device, event.queue).stats.interrupts++;
        break;
      case "queue":
        if ("state" in event) this.#of(device, event.queue).popped.clear();
        break;
      case "fault":
        this.faults.set(device, (this.faults.get(device) ?? 0) + 1);
        break;
    }
  }

  #popped({ stats, popped }: Running, time: number, head: number, bytes: number): void {
    stats.popped++;
    stats.readableBytes += bytes;
    popped.delete(head);
    popped.set(head, time);
  }

  #unpopped({ stats, popped }: Running, count: number): void {
    stats.popped -= count;
    for (const head of [...popped.keys()].slice(-count)) popped.delete(head);
  }

  #pushed({ stats, popped }: Running, time: number, head: number, written: number): void {
    stats.pushed++;
    stats.writtenBytes += written;
    const since = popped.get(head);
    popped.delete(head);
    if (since !== undefined) stats.latency.add(time - since);
  }

  #of(device: string, queue: number): Running {
    const queues = this.#queues.get(device) ?? new Map<number, Running>();
    this.#queues.set(device, queues);
    const found = queues.get(queue);
    if (found !== undefined) return found;
    const none = { kicks: 0, popped: 0, pushed: 0, readableBytes: 0, writtenBytes: 0, interrupts: 0 };
    const made = { stats: { device, queue, ...none, latency: new LatencyHistogram() }, popped: new Map() };
    queues.set(queue, made);
    return made;
  }
}
