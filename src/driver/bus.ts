import type { Environment } from "../common/environment.ts";
import { VirtkitError } from "../common/error.ts";
import type { FeatureSet } from "../common/feature-set.ts";
import type { Tracer } from "../trace/types.ts";
import type { DriverContext, VirtioDriver } from "./core.ts";
import type { DmaAllocator } from "./dma.ts";
import type { DriverTransport } from "./transport.ts";

/** A driver that may be bound to devices. */
export interface DriverType<D extends VirtioDriver = VirtioDriver> {
  readonly name: string;
  /** Device types that it drives, VIRTIO_ID_*. */
  readonly idTable: readonly number[];
  /** Makes the driver of one device; the bus starts it. */
  create(context: DriverContext): D;
}

/** A device on the bus, with or without a driver. */
export interface VirtioDevice {
  /** "virtio0", "virtio1", ... */
  readonly name: string;
  readonly transport: DriverTransport;
  /** The driver that is bound, from probe to remove. */
  readonly driver: VirtioDriver | undefined;
  /** Why the last probe failed. */
  readonly error: unknown;
}

class Device implements VirtioDevice {
  readonly name: string;
  readonly transport: DriverTransport;
  driver: VirtioDriver | undefined;
  error: unknown;

  constructor(name: string, transport: DriverTransport) {
    this.name = name;
    this.transport = transport;
  }
}

export interface VirtioBusOptions {
  readonly dma: DmaAllocator;
  readonly environment: Environment;
  /** Ring features that drivers may accept. */
  readonly ringFeatures?: FeatureSet;
  readonly maxQueueSize?: number;
  /** Gives each driver whom to tell what it does, by the driver's name. */
  readonly tracerOf?: ((driver: string) => Tracer | undefined) | undefined;
}

/**
 * The virtio bus: devices come from a transport's scan, drivers are registered, and each device is given to the first driver
 * whose id table has its type. Order does not matter: a driver that comes later gets the devices that wait.
 */
export class VirtioBus {
  readonly #options: VirtioBusOptions;
  readonly #devices: Device[] = [];
  readonly #drivers: DriverType[] = [];
  #next = 0;

  constructor(options: VirtioBusOptions) {
    this.#options = options;
  }

  get devices(): readonly VirtioDevice[] {
    return this.#devices;
  }

  /** Makes a driver known and probes the devices that nobody drives. Resolves when they were probed. */
  async registerDriver(type: DriverType): Promise<void> {
    this.#drivers.push(type);
    await this.#probeAll();
  }

  /** Adds the devices that a transport found and probes them. A failed probe stays with its device as `error`. */
  async scan(transports: Iterable<DriverTransport>): Promise<readonly VirtioDevice[]> {
    const found = [...transports].map((transport) => new Device(`virtio${this.#next++}`, transport));
    this.#devices.push(...found);
    await this.#probeAll();
    return found;
  }

  /** Adds one device and makes and starts a driver of this type for it. Throws what the probe threw. */
  async bind<D extends VirtioDriver>(type: DriverType<D>, transport: DriverTransport): Promise<D> {
    const device = new Device(`virtio${this.#next++}`, transport);
    this.#devices.push(device);
    const driver = await this.#probe(device, type);
    if (driver === undefined) throw device.error;
    return driver;
  }

  /** The driver of the n-th device that is driven by `type`. */
  driverOf<D extends VirtioDriver>(type: new (...args: never[]) => D, n = 0): D {
    const drivers = this.#devices.map(({ driver }) => driver).filter((driver): driver is D => driver instanceof type);
    const driver = drivers[n];
    if (driver === undefined)
      throw new VirtkitError("ERR_VIRTKIT_NO_DEVICE", `no device ${n} on the virtio bus is driven by ${type.name}`);
    return driver;
  }

  /** Removes a device: its driver resets it and lets go. */
  async remove(device: VirtioDevice): Promise<void> {
    const i = this.#devices.indexOf(device as Device);
    if (i < 0) return;
    const [gone] = this.#devices.splice(i, 1);
    if (gone?.driver === undefined) gone?.transport.close();
    else await gone.driver.remove();
  }

  /** Removes every device. */
  async close(): Promise<void> {
    for (const device of [...this.#devices]) await this.remove(device);
  }

  async #probeAll(): Promise<void> {
    for (const device of this.#devices) {
      if (device.driver !== undefined || device.error !== undefined) continue;
      const type = this.#drivers.find(({ idTable }) => idTable.includes(device.transport.deviceId));
      if (type !== undefined) await this.#probe(device, type);
    }
  }

  async #probe<D extends VirtioDriver>(device: Device, type: DriverType<D>): Promise<D | undefined> {
    const { dma, environment, ringFeatures, maxQueueSize, tracerOf } = this.#options;
    const tracer = tracerOf?.(type.name);
    try {
      const driver = type.create({
        transport: device.transport,
        dma,
        environment,
        ...(ringFeatures === undefined ? {} : { ringFeatures }),
        ...(maxQueueSize === undefined ? {} : { maxQueueSize }),
        ...(tracer === undefined ? {} : { tracer }),
      });
      device.driver = driver;
      await driver.start();
      return driver;
    } catch (error) {
      device.driver = undefined;
      device.error = error;
      environment.log.log("warn", `${device.name}: ${type.name} does not drive it: ${String(error)}`);
      return undefined;
    }
  }
}
