import { VirtkitError } from "../common/error.ts";
import {
  VIRTIO_CONSOLE_BAD_ID,
  VIRTIO_CONSOLE_CFG_COLS,
  VIRTIO_CONSOLE_CFG_EMERG_WR,
  VIRTIO_CONSOLE_CFG_MAX_NR_PORTS,
  VIRTIO_CONSOLE_CFG_ROWS,
  VIRTIO_CONSOLE_CONSOLE_PORT,
  VIRTIO_CONSOLE_CONTROL_EVENT,
  VIRTIO_CONSOLE_CONTROL_ID,
  VIRTIO_CONSOLE_CONTROL_RX,
  VIRTIO_CONSOLE_CONTROL_SIZE,
  VIRTIO_CONSOLE_CONTROL_TX,
  VIRTIO_CONSOLE_CONTROL_VALUE,
  VIRTIO_CONSOLE_DEVICE_ADD,
  VIRTIO_CONSOLE_DEVICE_READY,
  VIRTIO_CONSOLE_DEVICE_REMOVE,
  VIRTIO_CONSOLE_F_EMERG_WRITE,
  VIRTIO_CONSOLE_F_MULTIPORT,
  VIRTIO_CONSOLE_F_SIZE,
  VIRTIO_CONSOLE_PORT_NAME,
  VIRTIO_CONSOLE_PORT_OPEN,
  VIRTIO_CONSOLE_PORT_READY,
  VIRTIO_CONSOLE_RESIZE,
} from "../spec/console.ts";
import { VIRTIO_ID_CONSOLE } from "../spec/ids.ts";
import type { DriverType } from "./bus.ts";
import { ConsoleDriverPort, type PortDriver, ReceiveBuffers } from "./console/port.ts";
import { type DriverContext, VirtioDriver } from "./core.ts";
import type { VirtQueue } from "./virtqueue.ts";

export type { ConsoleDriverPort } from "./console/port.ts";

/** A queue for each direction of each port is made ahead, so they are small. */
const PORT_QUEUE = { size: 16, indirectEntries: 0 };
const CONTROL_BUFFERS = 16;
const CONTROL_BYTES = 1024;

/** Driver of the console device (VIRTIO 1.4 §5.3). */
export class ConsoleDriver extends VirtioDriver {
  static readonly type: DriverType<ConsoleDriver> = {
    name: "virtio_console",
    idTable: [VIRTIO_ID_CONSOLE],
    create: (context) => new ConsoleDriver(context),
  };

  /** A port was added; what else there is to know of it (name, console) may still arrive. */
  onPortAdded: ((port: ConsoleDriverPort) => void) | undefined;
  onPortRemoved: ((port: ConsoleDriverPort) => void) | undefined;
  readonly #ports = new Map<number, ConsoleDriverPort>();
  readonly #buffers = new Map<number, ReceiveBuffers>();
  readonly #portDriver: PortDriver;
  #watchers: (() => void)[] = [];

  constructor(context: DriverContext) {
    super(context, {
      name: "virtio_console",
      deviceIds: [VIRTIO_ID_CONSOLE],
      features: [
        { bit: VIRTIO_CONSOLE_F_SIZE },
        { bit: VIRTIO_CONSOLE_F_MULTIPORT },
        { bit: VIRTIO_CONSOLE_F_EMERG_WRITE },
      ],
    });
    this.#portDriver = { dma: this.dma, name: this.name, sendOpen: (port, open) => this.#sendOpen(port, open) };
  }

  get multiport(): boolean {
    return this.features.has(VIRTIO_CONSOLE_F_MULTIPORT);
  }

  /** Ports that the device has announced, by number. */
  get ports(): ReadonlyMap<number, ConsoleDriverPort> {
    return this.#ports;
  }

  /** Size of port 0 in characters by the configuration; zeros when the device does not say. */
  get size(): { cols: number; rows: number } {
    if (!this.features.has(VIRTIO_CONSOLE_F_SIZE)) return { cols: 0, rows: 0 };
    return this.readConfigFields(() => ({
      cols: this.readConfig(VIRTIO_CONSOLE_CFG_COLS, 2),
      rows: this.readConfig(VIRTIO_CONSOLE_CFG_ROWS, 2),
    }));
  }

  /** Resolves with the first port that fits, now or once there is one. */
  async find(fits: (port: ConsoleDriverPort) => boolean): Promise<ConsoleDriverPort> {
    for (;;) {
      for (const port of this.#ports.values()) if (fits(port)) return port;
      await new Promise<void>((resolve) => this.#watchers.push(resolve));
    }
  }

  /**
   * Writes one character (its low 8 bits) without any queue.
   * @throws ERR_VIRTKIT_FEATURES when the device has no emergency write
   */
  emergencyWrite(character: number): void {
    if (!this.features.has(VIRTIO_CONSOLE_F_EMERG_WRITE))
      throw new VirtkitError("ERR_VIRTKIT_FEATURES", `${this.name}: the device has no emergency write`);
    this.writeConfig(VIRTIO_CONSOLE_CFG_EMERG_WR, 4, character & 0xff);
  }

  protected override onSetUp(): void {
    const ports = this.multiport ? this.readConfig(VIRTIO_CONSOLE_CFG_MAX_NR_PORTS, 4) : 1;
    for (let id = 0; id < ports && this.queueMaxSize(transmitIndex(id)) > 0; id++) {
      this.setUpQueue(transmitIndex(id) - 1, PORT_QUEUE);
      this.setUpQueue(transmitIndex(id), PORT_QUEUE);
    }
    if (!this.multiport) return;
    const receive = this.setUpQueue(VIRTIO_CONSOLE_CONTROL_RX, PORT_QUEUE);
    this.setUpQueue(VIRTIO_CONSOLE_CONTROL_TX, PORT_QUEUE);
    const buffers = new ReceiveBuffers(receive, this.dma, CONTROL_BUFFERS, CONTROL_BYTES);
    this.#buffers.set(VIRTIO_CONSOLE_CONTROL_RX, buffers);
    buffers.start();
  }

  protected override onReady(): void {
    if (this.multiport) void this.#send(VIRTIO_CONSOLE_BAD_ID, VIRTIO_CONSOLE_DEVICE_READY, 1);
    else this.#addPlainPort();
  }

  protected override onUsed(queue: VirtQueue, token: number, written: number): void {
    const buffers = this.#buffers.get(queue.index);
    if (buffers === undefined) return;
    buffers.filled(token, written);
    if (this.multiport && queue.index === VIRTIO_CONSOLE_CONTROL_RX) {
      while (buffers.readable) this.#handle(buffers.read());
      return;
    }
    const port = this.#ports.get(portOf(queue.index));
    if (port !== undefined) port.wake();
    // Nobody will ever read what came for a port that is gone.
    else while (buffers.readable) buffers.read();
  }

  protected override onConfigChanged(): void {
    if (this.multiport) return;
    const port = this.#ports.get(0);
    if (port !== undefined) resized(port, this.size);
  }

  protected override onTearDown(): void {
    for (const buffers of this.#buffers.values()) buffers.release();
    this.#buffers.clear();
    for (const port of [...this.#ports.values()]) this.#remove(port);
  }

  #addPlainPort(): void {
    const port = this.#add(0);
    if (port === undefined) return;
    port.isConsole = true;
    port.hostOpen = true;
    const { cols, rows } = this.size;
    port.cols = cols;
    port.rows = rows;
    this.onPortAdded?.(port);
    this.#changed();
  }

  #add(id: number): ConsoleDriverPort | undefined {
    const receive = this.queues[transmitIndex(id) - 1];
    const transmit = this.queues[transmitIndex(id)];
    if (receive === undefined || transmit === undefined || this.#ports.has(id)) return undefined;
    const old = this.#buffers.get(receive.index);
    const buffers = old ?? new ReceiveBuffers(receive, this.dma);
    const port = new ConsoleDriverPort(this.#portDriver, id, buffers, transmit);
    this.#buffers.set(receive.index, buffers);
    this.#ports.set(id, port);
    if (old === undefined) buffers.start();
    return port;
  }

  #remove(port: ConsoleDriverPort): void {
    this.#ports.delete(port.id);
    port.removed = true;
    port.hostOpen = false;
    port.wake();
    this.onPortRemoved?.(port);
  }

  #handle(message: Uint8Array): void {
    if (message.length < VIRTIO_CONSOLE_CONTROL_SIZE) return;
    const view = new DataView(message.buffer, message.byteOffset, message.length);
    const id = view.getUint32(VIRTIO_CONSOLE_CONTROL_ID, true);
    const event = view.getUint16(VIRTIO_CONSOLE_CONTROL_EVENT, true);
    const value = view.getUint16(VIRTIO_CONSOLE_CONTROL_VALUE, true);
    const port = this.#ports.get(id);
    if (event === VIRTIO_CONSOLE_DEVICE_ADD) this.#handleAdd(id);
    else if (port !== undefined) this.#handlePort(port, event, value, message.subarray(VIRTIO_CONSOLE_CONTROL_SIZE));
    this.#changed();
  }

  #handleAdd(id: number): void {
    const port = this.#add(id);
    void this.#send(id, VIRTIO_CONSOLE_PORT_READY, port === undefined ? 0 : 1);
    if (port !== undefined) this.onPortAdded?.(port);
  }

  #handlePort(port: ConsoleDriverPort, event: number, value: number, extra: Uint8Array): void {
    switch (event) {
      case VIRTIO_CONSOLE_DEVICE_REMOVE:
        this.#remove(port);
        break;
      case VIRTIO_CONSOLE_CONSOLE_PORT:
        // driver: Multiport Device Operation #2, #3: it is opened at once, as a console always is.
        port.isConsole = true;
        void port.open().catch(() => undefined);
        break;
      case VIRTIO_CONSOLE_RESIZE:
        if (extra.length >= 4) {
          const view = new DataView(extra.buffer, extra.byteOffset);
          resized(port, { cols: view.getUint16(0, true), rows: view.getUint16(2, true) });
        }
        break;
      case VIRTIO_CONSOLE_PORT_OPEN:
        port.hostOpen = value !== 0;
        port.onHostOpen?.(port.hostOpen);
        port.wake();
        break;
      case VIRTIO_CONSOLE_PORT_NAME:
        port.name = fromUtf8(extra);
        break;
    }
  }

  async #sendOpen(port: ConsoleDriverPort, open: boolean): Promise<void> {
    if (this.multiport) await this.#send(port.id, VIRTIO_CONSOLE_PORT_OPEN, open ? 1 : 0);
  }

  /** Sends a control message; what becomes of it after a reset is nobody's business. */
  async #send(id: number, event: number, value: number): Promise<void> {
    const queue = this.queues[VIRTIO_CONSOLE_CONTROL_TX];
    if (queue === undefined) return;
    const buffer = this.dma.alloc(VIRTIO_CONSOLE_CONTROL_SIZE);
    const view = new DataView(new ArrayBuffer(VIRTIO_CONSOLE_CONTROL_SIZE));
    view.setUint32(VIRTIO_CONSOLE_CONTROL_ID, id, true);
    view.setUint16(VIRTIO_CONSOLE_CONTROL_EVENT, event, true);
    view.setUint16(VIRTIO_CONSOLE_CONTROL_VALUE, value, true);
    buffer.write(new Uint8Array(view.buffer));
    try {
      await queue.transfer([buffer], []);
    } catch {
      // The device was reset.
    } finally {
      this.dma.release(buffer);
    }
  }

  #changed(): void {
    const watchers = this.#watchers;
    this.#watchers = [];
    for (const resolve of watchers) resolve();
  }
}

/** The transmitq of a port; its receiveq is the one in front (§5.3.2). */
const transmitIndex = (port: number): number => (port === 0 ? 1 : 2 * port + 3);
const portOf = (index: number): number => (index < 2 ? 0 : (index >> 1) - 1);

function resized(port: ConsoleDriverPort, { cols, rows }: { cols: number; rows: number }): void {
  port.cols = cols;
  port.rows = rows;
  port.onResize?.(cols, rows);
}

/** Names are UTF-8; QEMU ends them with a NUL. Without TextDecoder, which the core does not have. */
function fromUtf8(bytes: Uint8Array): string {
  let escaped = "";
  for (const byte of bytes) {
    if (byte === 0) break;
    escaped += `%${byte.toString(16).padStart(2, "0")}`;
  }
  try {
    return decodeURIComponent(escaped);
  } catch {
    return "";
  }
}
