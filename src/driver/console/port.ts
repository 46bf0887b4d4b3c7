import { VirtkitError } from "../../common/error.ts";
import type { DmaAllocator, DmaBuffer } from "../dma.ts";
import type { VirtQueue } from "../virtqueue.ts";

/** Buffers in a receiveq, and the bytes of each. */
const BUFFERS = 8;
const BUFFER_BYTES = 4096;

/** The buffers of one receiveq: given to the device, or filled and not yet read. */
export class ReceiveBuffers {
  readonly #queue: VirtQueue;
  readonly #dma: DmaAllocator;
  readonly #memory: DmaBuffer;
  readonly #filled: { token: number; at: number; end: number }[] = [];
  readonly #sg = { address: new Float64Array(1), length: new Uint32Array(1) };
  readonly #bytes: number;
  readonly #count: number;

  constructor(queue: VirtQueue, dma: DmaAllocator, count = BUFFERS, bytes = BUFFER_BYTES) {
    this.#count = Math.min(count, queue.size);
    this.#queue = queue;
    this.#dma = dma;
    this.#bytes = bytes;
    this.#memory = dma.alloc(this.#count * bytes);
  }

  /** Gives all buffers to the device, which may fill the first before this returns. */
  start(): void {
    for (let token = 0; token < this.#count; token++) this.#post(token);
    this.#queue.kick();
  }

  /** True when a read would find something. */
  get readable(): boolean {
    return this.#filled.length > 0;
  }

  /** The device filled a buffer. */
  filled(token: number, written: number): void {
    this.#filled.push({ token, at: 0, end: Math.min(written, this.#bytes) });
  }

  /** Takes up to `most` bytes of the oldest buffer; one that is empty goes back to the device. */
  read(most = this.#bytes): Uint8Array {
    const buffer = this.#filled[0];
    if (buffer === undefined) return new Uint8Array(0);
    const n = Math.min(most, buffer.end - buffer.at);
    const bytes = this.#memory.read(buffer.token * this.#bytes + buffer.at, n);
    buffer.at += n;
    if (buffer.at >= buffer.end) {
      this.#filled.shift();
      this.#post(buffer.token);
      this.#queue.kick();
    }
    return bytes;
  }

  release(): void {
    this.#dma.release(this.#memory);
  }

  #post(token: number): void {
    this.#sg.address[0] = this.#memory.address + token * this.#bytes;
    this.#sg.length[0] = this.#bytes;
    this.#queue.add(this.#sg, 0, 0, 1, token);
  }
}

/** What a port needs of its driver. */
export interface PortDriver {
  readonly dma: DmaAllocator;
  readonly name: string;
  sendOpen(port: ConsoleDriverPort, open: boolean): Promise<void>;
}

/** One port as the guest's side sees it. */
export class ConsoleDriverPort {
  readonly id: number;
  /** The device said that it is a console. */
  isConsole = false;
  /** Empty until the device gave one. */
  name = "";
  /** The host's end is open. */
  hostOpen = false;
  /** Size of the console in characters; 0 when unknown. */
  cols = 0;
  rows = 0;
  /** The device took the port out. */
  removed = false;
  onResize: ((cols: number, rows: number) => void) | undefined;
  onHostOpen: ((open: boolean) => void) | undefined;
  #open = false;
  readonly #driver: PortDriver;
  readonly #receive: ReceiveBuffers;
  readonly #transmit: VirtQueue;
  #waiting: (() => void)[] = [];
  #writing: Promise<void> = Promise.resolve();

  constructor(driver: PortDriver, id: number, receive: ReceiveBuffers, transmit: VirtQueue) {
    this.#driver = driver;
    this.id = id;
    this.#receive = receive;
    this.#transmit = transmit;
  }

  get isOpen(): boolean {
    return this.#open;
  }

  /** Tells the host that somebody reads and writes here. */
  async open(): Promise<void> {
    this.#open = true;
    await this.#driver.sendOpen(this, true);
  }

  async close(): Promise<void> {
    this.#open = false;
    await this.#driver.sendOpen(this, false);
  }

  /** Resolves with 1..`most` bytes as soon as there are some; with none when the host closed its end or the port is gone. */
  async read(most = BUFFER_BYTES): Promise<Uint8Array> {
    while (!this.#receive.readable) {
      if (this.removed || !this.hostOpen) return new Uint8Array(0);
      await new Promise<void>((resolve) => this.#waiting.push(resolve));
    }
    return this.#receive.read(most);
  }

  /**
   * Resolves when the host has taken all of it. Writes of several callers do not mix.
   * @throws ERR_VIRTKIT_CONSOLE_PORT when the port is gone, ERR_VIRTKIT_RESET when the device was reset meanwhile
   */
  write(bytes: Uint8Array): Promise<void> {
    const written = this.#writing.then(() => this.#write(bytes));
    this.#writing = written.catch(() => undefined);
    return written;
  }

  /** For the driver: bytes arrived, or the state of the other end changed. */
  wake(): void {
    const waiting = this.#waiting;
    this.#waiting = [];
    for (const resolve of waiting) resolve();
  }

  async #write(bytes: Uint8Array): Promise<void> {
    const { dma } = this.#driver;
    for (let done = 0; done < bytes.length; done += BUFFER_BYTES) {
      if (this.removed)
        throw new VirtkitError("ERR_VIRTKIT_CONSOLE_PORT", `${this.#driver.name}: port ${this.id} was removed`);
      const part = bytes.subarray(done, done + BUFFER_BYTES);
      const buffer = dma.alloc(part.length);
      try {
        buffer.write(part);
        await this.#transmit.transfer([buffer], []);
      } finally {
        dma.release(buffer);
      }
    }
  }
}
