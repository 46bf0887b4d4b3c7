import type { CharBackend } from "../backend/char/types.ts";
import type { Environment } from "../common/environment.ts";
import { VirtkitError } from "../common/error.ts";
import { FeatureSet } from "../common/feature-set.ts";
import {
  VIRTIO_CONSOLE_CFG_COLS,
  VIRTIO_CONSOLE_CFG_EMERG_WR,
  VIRTIO_CONSOLE_CFG_MAX_NR_PORTS,
  VIRTIO_CONSOLE_CFG_ROWS,
  VIRTIO_CONSOLE_CFG_SIZE,
  VIRTIO_CONSOLE_CONSOLE_PORT,
  VIRTIO_CONSOLE_CONTROL_RX,
  VIRTIO_CONSOLE_CONTROL_TX,
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
import { type ChainBatch, ChainReader } from "../virtqueue/index.ts";
import { ControlSender } from "./console/control.ts";
import { ConsolePort, type PortHost } from "./console/port.ts";
import { DeviceCore } from "./core.ts";
import type { RunningQueue } from "./running-queue.ts";

export type { ConsolePort } from "./console/port.ts";

export interface ConsoleDeviceOptions {
  readonly environment: Environment;
  /** For messages; default "virtio-serial". */
  readonly name?: string;
  readonly ringFeatures?: FeatureSet;
  /** Ports at most, 1..511; one port means a plain console without MULTIPORT. Default 31. */
  readonly maxPorts?: number;
  /** Entries of each queue: a power of two, 2..32768. Default 128. */
  readonly queueSize?: number;
  /** Size of port 0's console in characters, 0..65535; 0, the default, is unknown. */
  readonly cols?: number;
  readonly rows?: number;
  /** Let the guest write single characters to port 0 without any queue. Default true. */
  readonly emergencyWrite?: boolean;
  /**
   * Order of the two numbers in a RESIZE message. Linux takes them as the specification has them (the default, "cols-rows") since
   * 6.15 and in stable releases of 2025 and later, Debian 12's among them; older kernels take "rows-cols".
   */
  readonly resizeOrder?: "cols-rows" | "rows-cols";
}

/** What {@link ConsoleDevice.addPort} is given. */
export interface ConsolePortOptions {
  readonly backend: CharBackend;
  /** A text console ("virtconsole"), or a plain byte stream ("virtserialport"). */
  readonly kind: "console" | "serial";
  /** Number of the port; the lowest free one unless given. 0 is for consoles only. */
  readonly id?: number;
  /** Name that the guest sees. */
  readonly name?: string;
}

/**
 * Console device (VIRTIO 1.4 §5.3): text consoles and plain ports over character back ends. Ports come and go while it
 * runs. With one port it is the plain console of old.
 */
export class ConsoleDevice extends DeviceCore {
  readonly maxPorts: number;
  readonly #multiport: boolean;
  readonly #resizeOrder: "cols-rows" | "rows-cols";
  readonly #ports: (ConsolePort | undefined)[];
  readonly #control = new ControlSender();
  readonly #host: PortHost;
  #driverReady = false;
  /** The driver sent DEVICE_READY and wants to hear of ports. */
  #controlReady = false;

  /** @throws ERR_VIRTKIT_CONSOLE_OPTION for an option out of range */
  constructor(options: ConsoleDeviceOptions) {
    const { maxPorts = 31, queueSize = 128, cols = 0, rows = 0, emergencyWrite = true } = options;
    need(isWithin(maxPorts, 1, 511), `max_ports=${maxPorts}`, "1..511");
    const sound = isWithin(queueSize, 2, 32768) && Number.isInteger(Math.log2(queueSize));
    need(sound, `queue-size=${queueSize}`, "a power of two, 2..32768");
    const multiport = maxPorts > 1;
    const bits = [VIRTIO_CONSOLE_F_SIZE];
    if (multiport) bits.push(VIRTIO_CONSOLE_F_MULTIPORT);
    if (emergencyWrite) bits.push(VIRTIO_CONSOLE_F_EMERG_WRITE);
    super({
      name: options.name ?? "virtio-serial",
      deviceId: VIRTIO_ID_CONSOLE,
      queueSizes: new Array<number>(multiport ? 2 * (maxPorts + 1) : 2).fill(queueSize),
      features: FeatureSet.of(...bits),
      ...(options.ringFeatures === undefined ? {} : { ringFeatures: options.ringFeatures }),
      configSize: VIRTIO_CONSOLE_CFG_SIZE,
      environment: options.environment,
    });
    this.maxPorts = maxPorts;
    this.#multiport = multiport;
    this.#resizeOrder = options.resizeOrder ?? "cols-rows";
    this.#ports = new Array(maxPorts).fill(undefined);
    this.#host = this.#portHost();
    checkSize(cols, rows);
    this.#writeSize(this.config.view, cols, rows);
    this.config.view.setUint32(VIRTIO_CONSOLE_CFG_MAX_NR_PORTS, maxPorts, true);
    if (emergencyWrite) this.config.allowWrite(VIRTIO_CONSOLE_CFG_EMERG_WR, 4);
  }

  /** The ports, by ascending number. */
  get ports(): readonly ConsolePort[] {
    return this.#ports.filter((port) => port !== undefined);
  }

  port(id: number): ConsolePort | undefined {
    return this.#ports[id];
  }

  /** Control messages to the driver that were lost because it gave no, or too small, buffers. */
  get lostMessages(): number {
    return this.#control.lost;
  }

  /**
   * Adds a port; a running driver is told. @throws ERR_VIRTKIT_CONSOLE_PORT when the number is taken or past the last, or
   * all are taken
   */
  addPort({ backend, kind, id, name = "" }: ConsolePortOptions): ConsolePort {
    const isConsole = kind === "console";
    const number = id ?? this.#freeId(isConsole);
    if (number === undefined)
      throw portError(`${this.name} has no free port; raise max_ports (now ${this.maxPorts}) or remove one`);
    if (!isWithin(number, 0, this.maxPorts - 1))
      throw portError(`${this.name}: nr=${number} is out of range; give 0..${this.maxPorts - 1} or raise max_ports`);
    if (this.#ports[number] !== undefined) throw portError(`${this.name}: port nr=${number} is in use; give another`);
    if (number === 0 && !isConsole && this.#multiport)
      throw portError(`${this.name}: nr=0 is for a virtconsole; give a virtserialport another number`);
    const port = new ConsolePort(this.#host, number, isConsole, name, backend);
    this.#ports[number] = port;
    if (number === 0) {
      port.cols = this.config.view.getUint16(VIRTIO_CONSOLE_CFG_COLS, true);
      port.rows = this.config.view.getUint16(VIRTIO_CONSOLE_CFG_ROWS, true);
    }
    if (this.#controlReady) this.#announce(port);
    else if (this.#driverReady && !this.#speaksMultiport) this.#openPlain();
    return port;
  }

  /** Takes a port out; a running driver is told. Its back end stays the caller's. */
  removePort(id: number): void {
    const port = this.#ports[id];
    if (port === undefined) throw portError(`${this.name} has no port nr=${id}`);
    port.remove();
    this.#ports[id] = undefined;
    const running = this.queue(transmitIndex(id));
    running?.publish();
    // What else the guest sent to the port has nowhere to go.
    if (running !== undefined && this.broken === undefined) this.service(running);
    if (port.announced && !this.#control.withdraw(id)) this.#send(id, VIRTIO_CONSOLE_DEVICE_REMOVE, 1);
  }

  /** The console of a port has another size now, in characters (1..65535). */
  resize(cols: number, rows: number, id = 0): void {
    checkSize(cols, rows);
    const port = this.#ports[id];
    if (port !== undefined) {
      port.cols = cols;
      port.rows = rows;
      if (port.announced && port.isConsole) this.#sendSize(port);
    }
    if (id === 0) this.config.update((view) => this.#writeSize(view, cols, rows));
  }

  override driverReady(ready: boolean): void {
    this.#driverReady = ready;
    if (ready && !this.#speaksMultiport) this.#openPlain();
  }

  protected override onReset(): void {
    this.#driverReady = false;
    this.#controlReady = false;
    this.#control.clear();
    for (const port of this.ports) {
      port.announced = false;
      port.setGuestOpen(false);
    }
  }

  // Buffers may have been there before the queue was started, and nobody kicks for those again.
  protected override onQueueStart(running: RunningQueue): void {
    this.environment.defer(() => {
      if (running.live && this.broken === undefined) this.onKick(running);
    });
  }

  protected override onQueueStop(running: RunningQueue): void {
    this.#portOf(running.index)?.queueStopped(running);
  }

  protected override onKick(running: RunningQueue): void {
    const { index } = running;
    if (this.#multiport && index === VIRTIO_CONSOLE_CONTROL_RX) this.#flushControl();
    else if (index % 2 === 0) this.#portOf(index)?.buffersArrived();
    else if (this.#portOf(index)?.stalled !== true) this.service(running);
  }

  protected override onChains(running: RunningQueue, batch: ChainBatch): boolean {
    const { queue, index } = running;
    for (let c = 0; c < batch.count; c++) {
      if (this.#multiport && index === VIRTIO_CONSOLE_CONTROL_TX) {
        const reader = new ChainReader(this.memory).from(batch, c);
        if (reader.remaining < 8) this.#ignored(`a control message of ${reader.remaining} bytes`);
        else this.#handle(reader.u32(), reader.u16(), reader.u16());
        if (!running.live) return false;
        queue.push(batch.id[c] as number, 0);
        continue;
      }
      const port = this.#portOf(index);
      if (port === undefined) queue.push(batch.id[c] as number, 0);
      else if (!port.transmit(running, batch, c)) {
        queue.unpop(batch.count - c - 1);
        return false;
      }
      if (!running.live) return false;
    }
    return true;
  }

  /** Emergency write: works on a device that nobody has set up (device: Console Device / Device Initialization #1). */
  protected override onConfigWritten(offset: number, length: number): void {
    const at = VIRTIO_CONSOLE_CFG_EMERG_WR;
    const character = this.config.view.getUint8(at);
    this.config.view.setUint32(at, 0, true);
    if (offset <= at && offset + length > at) this.#ports[0]?.backend.write(Uint8Array.of(character));
  }

  get #speaksMultiport(): boolean {
    return this.features.has(VIRTIO_CONSOLE_F_MULTIPORT);
  }

  // Control messages.

  #handle(id: number, event: number, value: number): void {
    if (event === VIRTIO_CONSOLE_DEVICE_READY) {
      this.#handleDeviceReady(value);
      return;
    }
    const port = this.#ports[id];
    if (port === undefined || !port.announced)
      this.#ignored(`control message ${event} for port ${id}, which there is not`);
    else if (event === VIRTIO_CONSOLE_PORT_READY) this.#handlePortReady(port, value);
    else if (event === VIRTIO_CONSOLE_PORT_OPEN) port.setGuestOpen(value !== 0);
    else this.#ignored(`an unknown control message (event ${event}, value ${value})`);
  }

  #handleDeviceReady(value: number): void {
    if (value === 0) {
      this.#ignored("the driver could not set itself up");
      return;
    }
    this.#controlReady = true;
    for (const port of this.ports) if (!port.announced) this.#announce(port);
  }

  #announce(port: ConsolePort): void {
    port.announced = true;
    this.#send(port.id, VIRTIO_CONSOLE_DEVICE_ADD, 1);
  }

  /** The driver has made the port; what there is to know of it follows. */
  #handlePortReady(port: ConsolePort, value: number): void {
    if (value === 0) {
      this.#ignored(`the driver could not add port ${port.id}`);
      return;
    }
    if (port.isConsole) this.#send(port.id, VIRTIO_CONSOLE_CONSOLE_PORT, 1);
    if (port.isConsole && port.cols > 0) this.#sendSize(port);
    if (port.name !== "") this.#send(port.id, VIRTIO_CONSOLE_PORT_NAME, 1, utf8(port.name));
    if (port.hostOpen) this.#send(port.id, VIRTIO_CONSOLE_PORT_OPEN, 1);
  }

  #sendSize(port: ConsolePort): void {
    const size = new DataView(new ArrayBuffer(4));
    const colsFirst = this.#resizeOrder === "cols-rows";
    size.setUint16(0, colsFirst ? port.cols : port.rows, true);
    size.setUint16(2, colsFirst ? port.rows : port.cols, true);
    this.#send(port.id, VIRTIO_CONSOLE_RESIZE, 0, new Uint8Array(size.buffer));
  }

  #send(id: number, event: number, value: number, extra?: Uint8Array): void {
    if (!this.#speaksMultiport) return;
    this.#control.add(id, event, value, extra);
    this.#flushControl();
  }

  #flushControl(): void {
    const running = this.queue(VIRTIO_CONSOLE_CONTROL_RX);
    const isDone = this.#control.flush(running, this.memory);
    if (running === undefined || !this.checkQueue(running) || isDone) return;
    this.environment.defer(() => {
      if (running.live && this.broken === undefined) this.#flushControl();
    });
  }

  #ignored(what: string): void {
    this.driverFault(what, false);
  }

  // Ports.

  /** A driver without MULTIPORT cannot say that it opened port 0: it has. */
  #openPlain(): void {
    this.#ports[0]?.setGuestOpen(true);
  }

  #portOf(index: number): ConsolePort | undefined {
    if (index < 2) return this.#ports[0];
    return index < 4 ? undefined : this.#ports[(index >> 1) - 1];
  }

  #freeId(isConsole: boolean): number | undefined {
    for (let id = isConsole || !this.#multiport ? 0 : 1; id < this.maxPorts; id++)
      if (this.#ports[id] === undefined) return id;
    return undefined;
  }

  #portHost(): PortHost {
    const device = this;
    return {
      get memory() {
        return device.memory;
      },
      get multiport() {
        return device.#speaksMultiport;
      },
      receiveQueue: (port) => (this.#driverReady ? this.queue(transmitIndex(port.id) - 1) : undefined),
      sound: (running) => this.checkQueue(running),
      resume: (running) => {
        if (running.live && this.broken === undefined) this.service(running);
      },
      hostOpened: (port, open) => {
        if (port.announced) this.#send(port.id, VIRTIO_CONSOLE_PORT_OPEN, open ? 1 : 0);
      },
      fault: (reason) => this.#ignored(reason),
      defer: (task) => this.environment.defer(task),
    };
  }

  #writeSize(view: DataView, cols: number, rows: number): void {
    view.setUint16(VIRTIO_CONSOLE_CFG_COLS, cols, true);
    view.setUint16(VIRTIO_CONSOLE_CFG_ROWS, rows, true);
  }
}

/** The transmitq of a port; its receiveq is the one in front (§5.3.2). */
const transmitIndex = (port: number): number => (port === 0 ? 1 : 2 * port + 3);

const isWithin = (n: number, low: number, high: number): boolean => Number.isInteger(n) && n >= low && n <= high;

function checkSize(cols: number, rows: number): void {
  need(isWithin(cols, 0, 65535) && isWithin(rows, 0, 65535), `a size of ${cols}x${rows}`, "0..65535 for each");
}

function need(ok: boolean, what: string, range: string): void {
  if (!ok)
    throw new VirtkitError("ERR_VIRTKIT_CONSOLE_OPTION", `console device: ${what} is out of range; give ${range}`);
}

function portError(message: string): VirtkitError {
  return new VirtkitError("ERR_VIRTKIT_CONSOLE_PORT", message);
}

/** UTF-8 without TextEncoder, which the core does not have. */
function utf8(text: string): Uint8Array {
  const bytes: number[] = [];
  for (const character of text) {
    const code = character.codePointAt(0) as number;
    if (code < 0x80) bytes.push(code);
    else if (code < 0x800) bytes.push(0xc0 | (code >> 6), 0x80 | (code & 63));
    else if (code < 0x10000) bytes.push(0xe0 | (code >> 12), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63));
    else bytes.push(0xf0 | (code >> 18), 0x80 | ((code >> 12) & 63), 0x80 | ((code >> 6) & 63), 0x80 | (code & 63));
  }
  return Uint8Array.from(bytes);
}
