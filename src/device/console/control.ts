import type { GuestMemory } from "../../memory/guest-memory.ts";
import {
  VIRTIO_CONSOLE_CONTROL_EVENT,
  VIRTIO_CONSOLE_CONTROL_ID,
  VIRTIO_CONSOLE_CONTROL_SIZE,
  VIRTIO_CONSOLE_CONTROL_VALUE,
} from "../../spec/console.ts";
import { ChainBatch, ChainWriter } from "../../virtqueue/index.ts";
import type { RunningQueue } from "../running-queue.ts";

/** Messages that wait for a driver which gives no buffers; more are dropped. */
const MAX_WAITING = 1024;

/** Control messages to the driver: they wait, in order, for buffers in the control receiveq. */
export class ControlSender {
  /** Messages that were dropped because too many waited, or cut short because the driver's buffer was. */
  lost = 0;
  readonly #waiting: Uint8Array[] = [];
  readonly #batch = new ChainBatch(1);

  clear(): void {
    this.#waiting.length = 0;
  }

  /** Puts a message in line; `extra` follows the header (§5.3.6.2). {@link flush} sends it. */
  add(id: number, event: number, value: number, extra: Uint8Array = new Uint8Array(0)): void {
    if (this.#waiting.length >= MAX_WAITING) {
      this.lost++;
      return;
    }
    const message = new Uint8Array(VIRTIO_CONSOLE_CONTROL_SIZE + extra.length);
    const view = new DataView(message.buffer);
    view.setUint32(VIRTIO_CONSOLE_CONTROL_ID, id, true);
    view.setUint16(VIRTIO_CONSOLE_CONTROL_EVENT, event, true);
    view.setUint16(VIRTIO_CONSOLE_CONTROL_VALUE, value, true);
    message.set(extra, VIRTIO_CONSOLE_CONTROL_SIZE);
    this.#waiting.push(message);
  }

  /** Writes as many messages as there are buffers. The caller looks for a fault of the queue afterwards. */
  flush(running: RunningQueue | undefined, memory: GuestMemory): void {
    if (running === undefined) return;
    const batch = this.#batch;
    while (this.#waiting.length > 0) {
      batch.clear();
      if (running.queue.pop(batch, 1) === 0) {
        if (running.queue.fault === undefined && running.queue.enableKicks()) continue;
        break;
      }
      const message = this.#waiting.shift() as Uint8Array;
      const written = new ChainWriter(memory).to(batch, 0).bytes(message);
      if (written < message.length) this.lost++;
      running.queue.push(batch.id[0] as number, written);
    }
    running.publish();
  }
}
