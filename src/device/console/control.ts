import type { GuestMemory } from "../../memory/guest-memory.ts";
import {
  VIRTIO_CONSOLE_CONTROL_EVENT,
  VIRTIO_CONSOLE_CONTROL_ID,
  VIRTIO_CONSOLE_CONTROL_SIZE,
  VIRTIO_CONSOLE_CONTROL_VALUE,
  VIRTIO_CONSOLE_DEVICE_ADD,
  VIRTIO_CONSOLE_DEVICE_REMOVE,
} from "../../spec/console.ts";
import { ChainBatch, ChainWriter } from "../../virtqueue/index.ts";
import type { RunningQueue } from "../running-queue.ts";

/** Messages that wait for a driver which gives no buffers; more are dropped, but for those that add and remove ports. */
const MAX_WAITING = 1024;
/** Looks for buffers in one go that may find none although the driver said that there are some. */
const MAX_LOOKS = 16;

interface Message {
  readonly id: number;
  readonly event: number;
  readonly bytes: Uint8Array;
}

/** Control messages to the driver: they wait, in order, for buffers in the control receiveq. */
export class ControlSender {
  /** Messages that were dropped because too many waited, or cut short because the driver's buffer was. */
  lost = 0;
  #waiting: Message[] = [];
  readonly #batch = new ChainBatch(1);

  clear(): void {
    this.#waiting = [];
  }

  /** Puts a message in line; `extra` follows the header (§5.3.6.2). {@link flush} sends it. */
  add(id: number, event: number, value: number, extra: Uint8Array = new Uint8Array(0)): void {
    const mayGetLost = event !== VIRTIO_CONSOLE_DEVICE_ADD && event !== VIRTIO_CONSOLE_DEVICE_REMOVE;
    if (mayGetLost && this.#waiting.length >= MAX_WAITING) {
      this.lost++;
      return;
    }
    const bytes = new Uint8Array(VIRTIO_CONSOLE_CONTROL_SIZE + extra.length);
    const view = new DataView(bytes.buffer);
    view.setUint32(VIRTIO_CONSOLE_CONTROL_ID, id, true);
    view.setUint16(VIRTIO_CONSOLE_CONTROL_EVENT, event, true);
    view.setUint16(VIRTIO_CONSOLE_CONTROL_VALUE, value, true);
    bytes.set(extra, VIRTIO_CONSOLE_CONTROL_SIZE);
    this.#waiting.push({ id, event, bytes });
  }

  /**
   * Takes back that a port was added, with all that followed, if the driver has not heard of it: it must not hear of its removal
   * then (device: Console Device / Device Operation / Multiport Device Operation #2). True if so.
   */
  withdraw(port: number): boolean {
    const isAdded = ({ id, event }: Message): boolean => id === port && event === VIRTIO_CONSOLE_DEVICE_ADD;
    const added = this.#waiting.map(isAdded).lastIndexOf(true);
    if (added < 0) return false;
    this.#waiting = this.#waiting.filter(({ id }, i) => i < added || id !== port);
    return true;
  }

  /**
   * Writes as many messages as there are buffers. The caller looks for a fault of the queue afterwards. False when it is to be called
   * again in a later turn: a driver that runs at the same time must not keep the thread.
   */
  flush(running: RunningQueue | undefined, memory: GuestMemory): boolean {
    if (running === undefined) return true;
    const { queue } = running;
    const batch = this.#batch;
    let looks = 0;
    while (this.#waiting.length > 0 && looks < MAX_LOOKS) {
      batch.clear();
      if (queue.pop(batch, 1) === 0) {
        looks++;
        if (queue.fault === undefined && queue.enableKicks()) continue;
        break;
      }
      const { bytes } = this.#waiting.shift() as Message;
      const written = new ChainWriter(memory).to(batch, 0).bytes(bytes);
      if (written < bytes.length) this.lost++;
      queue.push(batch.id[0] as number, written);
    }
    running.publish();
    return looks < MAX_LOOKS;
  }
}
