import type { CharBackend, CharSink } from "../../backend/char/types.ts";
import type { GuestMemory } from "../../memory/guest-memory.ts";
import { ChainBatch, ChainWriter } from "../../virtqueue/index.ts";
import type { RunningQueue } from "../running-queue.ts";
import { SegmentList } from "../segment-list.ts";

/** What the device does for a port. */
export interface PortHost {
  readonly memory: GuestMemory;
  /** False when the driver has no way to open ports: then port 0 is open while the driver is up. */
  readonly multiport: boolean;
  receiveQueue(port: ConsolePort): RunningQueue | undefined;
  /** The port's queue may have broken: passes it on. False if it has. */
  sound(running: RunningQueue): boolean;
  /** Chains may be taken from the port's transmitq again. */
  resume(running: RunningQueue): void;
  /** The host's end was opened or closed. */
  hostOpened(port: ConsolePort, open: boolean): void;
  fault(reason: string): void;
  /** Runs something in a later turn. */
  defer(task: () => void): void;
}

/** Looks for buffers in one go; a guest that adds as fast as they are filled, or adds empty ones, must not keep the thread. */
const LOOKS_PER_TURN = 2048;

/**
 * One port: a character back end on one side, a receiveq and a transmitq on the other. Nothing is buffered here. What the back end
 * has for the guest stays with it until the guest gives buffers; what the guest sent stays in its chain until the back end
 * takes it.
 */
export class ConsolePort {
  readonly id: number;
  /** A console (hvc in Linux), or a plain port (vport). */
  readonly isConsole: boolean;
  /** What the guest calls it: /dev/virtio-ports/NAME. Empty for none. */
  readonly name: string;
  readonly backend: CharBackend;
  /** The driver was told of the port. */
  announced = false;
  cols = 0;
  rows = 0;
  #guestOpen = false;
  #hostOpen: boolean;
  #removed = false;
  /** The back end offered more than the guest could take. */
  #receiveBlocked = false;
  #receiving = false;
  /** Looks that are left to this turn. */
  #looks = 0;
  /** The chain that the back end did not take wholly, and what is left of it. */
  #stalled: { running: RunningQueue; id: number } | undefined;
  readonly #rest = new SegmentList();
  #writing = false;
  #writableAgain = false;
  readonly #host: PortHost;
  readonly #batch = new ChainBatch(1);

  constructor(host: PortHost, id: number, isConsole: boolean, name: string, backend: CharBackend) {
    this.#host = host;
    this.id = id;
    this.isConsole = isConsole;
    this.name = name;
    this.backend = backend;
    // To a console the host is always there, whether somebody looks or not.
    this.#hostOpen = isConsole;
    const sink: CharSink = {
      receive: (bytes) => this.#receive(bytes),
      setOpen: (open) => this.#setHostOpen(open),
      writable: () => this.#writable(),
    };
    backend.attach(sink);
  }

  get guestOpen(): boolean {
    return this.#guestOpen;
  }
  get hostOpen(): boolean {
    return this.#hostOpen;
  }
  /** True while a chain of the guest's waits for the back end. */
  get stalled(): boolean {
    return this.#stalled !== undefined;
  }

  /** The guest opened or closed its end. */
  setGuestOpen(open: boolean): void {
    if (this.#guestOpen === open || this.#removed) return;
    this.#guestOpen = open;
    this.backend.guestOpen(open);
    if (open) this.buffersArrived();
  }

  /** The guest may have put buffers into the receiveq. */
  buffersArrived(): void {
    if (!this.#receiveBlocked || this.#removed) return;
    this.#receiveBlocked = false;
    // From inside receive: that goes on by itself.
    if (!this.#receiving) this.backend.drained();
  }

  /**
   * Takes chain `c` from the transmitq; it is pushed now or, if the back end is busy, later. False when no further chain
   * can be taken until then.
   */
  transmit(running: RunningQueue, batch: ChainBatch, c: number): boolean {
    const first = batch.first[c] as number;
    if ((batch.writable[c] as number) > 0) this.#host.fault(`port ${this.id}: a writable buffer in the transmitq`);
    this.#rest.clear();
    this.#rest.addFrom(this.#host.memory, batch, first, first + (batch.readable[c] as number));
    this.#stalled = { running, id: batch.id[c] as number };
    return this.#write();
  }

  /** A queue of the port was stopped: what it had in flight belongs to the driver again. */
  queueStopped(running: RunningQueue): void {
    if (this.#stalled?.running === running) this.#drop();
  }

  /** Takes the port out: an unfinished chain goes back to the guest, the back end is no longer heard. */
  remove(): void {
    this.setGuestOpen(false);
    this.#removed = true;
    this.#giveBack();
  }

  /** Goes on with the stalled chain. True when it is done and pushed. */
  #write(): boolean {
    const stalled = this.#stalled;
    if (stalled === undefined) return true;
    this.#writing = true;
    let done: boolean;
    do {
      this.#writableAgain = false;
      // Without a host there is nobody who could ever take it.
      done =
        !this.#hostOpen || this.#rest.drain((bytes) => (this.#hostOpen ? this.backend.write(bytes) : bytes.length));
    } while (!done && this.#writableAgain && this.#stalled === stalled);
    this.#writing = false;
    if (this.#stalled !== stalled) return true;
    if (done) this.#giveBack();
    return done;
  }

  #giveBack(): void {
    const stalled = this.#stalled;
    this.#drop();
    if (stalled?.running.live) stalled.running.queue.push(stalled.id, 0);
  }

  #drop(): void {
    this.#stalled = undefined;
    this.#rest.clear();
  }

  #writable(): void {
    if (this.#writing) this.#writableAgain = true;
    else this.#goOn();
  }

  #goOn(): void {
    const running = this.#stalled?.running;
    if (running === undefined || !this.#write()) return;
    if (!running.live) return;
    running.publish();
    this.#host.resume(running);
  }

  #setHostOpen(open: boolean): void {
    if (this.#removed || this.isConsole || open === this.#hostOpen) return;
    this.#hostOpen = open;
    this.#host.hostOpened(this, open);
    if (!open && !this.#writing) this.#goOn();
  }

  #receive(bytes: Uint8Array): number {
    let taken = 0;
    this.#receiving = true;
    this.#looks = LOOKS_PER_TURN;
    do {
      this.#receiveBlocked = false;
      taken += this.#fillBuffers(taken === 0 ? bytes : bytes.subarray(taken));
    } while (taken < bytes.length && !this.#receiveBlocked);
    this.#receiving = false;
    return taken;
  }

  /** Fills and publishes the buffers that there are. Marks the port blocked when they are too few. */
  #fillBuffers(bytes: Uint8Array): number {
    const running = this.#host.receiveQueue(this);
    if (running === undefined || this.#removed || !this.#isOpen()) {
      this.#receiveBlocked = true;
      return 0;
    }
    const { queue } = running;
    const batch = this.#batch;
    const writer = new ChainWriter(this.#host.memory);
    let taken = 0;
    while (taken < bytes.length) {
      if (this.#looks-- <= 0) {
        this.#receiveBlocked = true;
        this.#host.defer(() => this.buffersArrived());
        break;
      }
      batch.clear();
      if (queue.pop(batch, 1) === 0) {
        if (queue.fault === undefined && queue.enableKicks()) continue;
        this.#receiveBlocked = true;
        break;
      }
      if ((batch.readable[0] as number) > 0) this.#host.fault(`port ${this.id}: a readable buffer in the receiveq`);
      const n = writer.to(batch, 0).bytes(taken === 0 ? bytes : bytes.subarray(taken));
      queue.push(batch.id[0] as number, n);
      taken += n;
    }
    this.#host.sound(running);
    // May bring new buffers at once, see buffersArrived.
    running.publish();
    return taken;
  }

  #isOpen(): boolean {
    return this.#guestOpen || !this.#host.multiport;
  }
}
