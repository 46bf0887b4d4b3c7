import type { FeatureSet } from "../common/feature-set.ts";
import { DmaAllocator } from "../driver/dma.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import type { AccessSize } from "../transport/pci/function.ts";
import {
  type HostBridgeOptions,
  type MsiMessage,
  type PciAccess,
  type PciDriverTransport,
  PciHostBridge,
  PciScanner,
  type PciScanOptions,
  VirtioPciDevice,
  type VirtioPciOptions,
} from "../transport/pci/index.ts";
import { LoopDevice, LoopDriver, nodeEnvironment } from "./loop-device.ts";

/** A register access that a driver made. */
export interface PciRegisterAccess {
  readonly write: boolean;
  /** Index of the BAR that decoded it; "config" for configuration space, "none" where nobody answers. */
  readonly place: number | "config" | "none";
  /** Within the place. */
  readonly offset: number;
  readonly size: AccessSize;
  readonly value: number;
}

/** Stands between a driver and the only function of its bus: writes down every access, and may tell lies. */
export class PciLog implements PciAccess {
  readonly log: PciRegisterAccess[] = [];
  /** Bytes that the configuration space shows in place of its own, by offset. */
  readonly overlay = new Map<number, number>();
  /** What a read answers in the end. */
  answer: (access: PciRegisterAccess) => number = ({ value }) => value;
  /** What arrives of a write; undefined for nothing. */
  arrives: (access: PciRegisterAccess) => number | undefined = ({ value }) => value;
  readonly #bridge: PciHostBridge;

  constructor(bridge: PciHostBridge) {
    this.#bridge = bridge;
  }

  get resources() {
    return this.#bridge.resources;
  }

  configRead(device: number, fn: number, offset: number, size: AccessSize): number {
    let value = this.#bridge.configRead(device, fn, offset, size);
    if (device !== 0 || fn !== 0) return value;
    for (let i = 0; i < size; i++) {
      const byte = this.overlay.get(offset + i);
      const old = Math.floor(value / 256 ** i) % 256;
      if (byte !== undefined) value += (byte - old) * 256 ** i;
    }
    return this.#read("config", offset, size, value);
  }
  configWrite(device: number, fn: number, offset: number, size: AccessSize, value: number): void {
    const arrived = this.#write("config", offset, size, value);
    if (arrived !== undefined) this.#bridge.configWrite(device, fn, offset, size, arrived);
  }
  memRead(address: number, size: AccessSize): number {
    return this.#read(...this.#decode(address, false), size, this.#bridge.memRead(address, size));
  }
  memWrite(address: number, size: AccessSize, value: number): void {
    const arrived = this.#write(...this.#decode(address, false), size, value);
    if (arrived !== undefined) this.#bridge.memWrite(address, size, arrived);
  }
  ioRead(port: number, size: AccessSize): number {
    return this.#read(...this.#decode(port, true), size, this.#bridge.ioRead(port, size));
  }
  ioWrite(port: number, size: AccessSize, value: number): void {
    const arrived = this.#write(...this.#decode(port, true), size, value);
    if (arrived !== undefined) this.#bridge.ioWrite(port, size, arrived);
  }
  allocateMsi(handler: () => void): MsiMessage | undefined {
    return this.#bridge.allocateMsi(handler);
  }
  freeMsi(message: MsiMessage): void {
    this.#bridge.freeMsi(message);
  }
  onIntx(device: number, pin: number, handler: () => void): () => void {
    return this.#bridge.onIntx(device, pin, handler);
  }

  #decode(address: number, io: boolean): [number | "none", number] {
    const window = this.#bridge.bus.windows.find((w) => w.io === io && address >= w.base && address < w.end);
    return window === undefined ? ["none", address] : [window.bar, address - window.base];
  }

  #read(place: PciRegisterAccess["place"], offset: number, size: AccessSize, value: number): number {
    const answered = this.answer({ write: false, place, offset, size, value });
    this.log.push({ write: false, place, offset, size, value: answered });
    return answered;
  }

  #write(place: PciRegisterAccess["place"], offset: number, size: AccessSize, value: number): number | undefined {
    const access = { write: true, place, offset, size, value };
    this.log.push(access);
    return this.arrives(access);
  }
}

export interface PciDriverRigOptions {
  readonly device?: LoopDevice;
  readonly pci?: Partial<VirtioPciOptions>;
  readonly bridge?: Partial<HostBridgeOptions>;
  readonly scan?: Partial<PciScanOptions>;
  /** Ring features that the driver may accept; all unless said. */
  readonly ring?: FeatureSet;
}

/** A device on a PCI bus of its own, and its driver behind a {@link PciLog}. */
export class PciDriverRig {
  readonly device: LoopDevice;
  readonly pci: VirtioPciDevice;
  readonly bridge: PciHostBridge;
  readonly access: PciLog;
  readonly memory = GuestMemory.allocate(0x400000);
  readonly dma = new DmaAllocator(this.memory, 4096, 0x3ff000);
  readonly #environment = nodeEnvironment();
  readonly #options: PciDriverRigOptions;

  constructor(options: PciDriverRigOptions = {}) {
    this.#options = options;
    this.device = options.device ?? new LoopDevice();
    this.bridge = new PciHostBridge({ environment: this.#environment, ...options.bridge });
    this.access = new PciLog(this.bridge);
    this.pci = new VirtioPciDevice(this.device, { memory: this.memory, ...options.pci });
    this.bridge.bus.plug(this.pci);
  }

  get log(): PciRegisterAccess[] {
    return this.access.log;
  }

  scan(): PciDriverTransport {
    const options = { memory: this.memory, environment: this.#environment, ...this.#options.scan };
    const [transport] = new PciScanner(this.access, options).scan();
    if (transport === undefined) throw new Error("the scan finds no device");
    return transport;
  }

  /** A driver that was not started. */
  driver(transport = this.scan()): LoopDriver {
    const { ring } = this.#options;
    return new LoopDriver({
      transport,
      dma: this.dma,
      environment: this.#environment,
      ...(ring === undefined ? {} : { ringFeatures: ring }),
    });
  }

  async start(transport = this.scan()): Promise<LoopDriver> {
    const driver = this.driver(transport);
    await driver.start();
    return driver;
  }
}

/** A driver's whole life: traffic, configuration, a config change, queue reset, restart, removal. */
export async function liveThrough(driver: LoopDriver, device: LoopDevice): Promise<void> {
  const bytes = Uint8Array.of(1, 2, 3, 4, 5);
  const copied = async () => {
    for (let i = 0; i < 3; i++) {
      const back = await driver.copy(bytes, 1 + i);
      if (Buffer.compare(back, bytes) !== 0) throw new Error("the device copied something else");
    }
  };
  await copied();
  driver.value();
  driver.write(0x1234);
  const changed = driver.changed();
  device.config.update((view) => view.setUint8(0, 7));
  await changed;
  if (driver.features.has(40)) await driver.resetHoldQueue(4);
  const held = driver.hold(bytes);
  while (device.held.length === 0) await new Promise((resolve) => setImmediate(resolve));
  device.finish();
  await held;
  await driver.restart();
  await copied();
  await driver.remove();
}
