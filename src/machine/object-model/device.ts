import type { MachineHost } from "../machine-host.ts";
import { UsageError } from "../usage-error.ts";
import type { ObjectClass, ObjectInit } from "./class.ts";
import { QomObject } from "./object.ts";

/** An object that sits on a bus, and may have buses of its own. */
export class DeviceObject extends QomObject {
  #parentBus: BusObject | undefined;
  readonly #childBuses: BusObject[] = [];
  readonly #realizedLevels: ObjectClass[] = [];
  #realized = false;

  /** The bus it sits on, from its realization on. */
  get parentBus(): BusObject | undefined {
    return this.#parentBus;
  }

  get childBuses(): readonly BusObject[] {
    return this.#childBuses;
  }

  /** True from the moment when the guest can see it. */
  get realized(): boolean {
    return this.#realized;
  }

  /** For `realize`: a bus of this device's, which goes when the device goes. An unnamed one is called after the device. */
  addBus(type: string, name?: string): BusObject {
    const bus = this.factory.createA(BusObject, type, name ?? `${this.id ?? type}.${this.#childBuses.length}`);
    bus.owner = this;
    this.#childBuses.push(bus);
    return bus;
  }

  /**
   * Brings the device to life on `bus`: every level of its type in order, ancestors first, and then the bus shows it to the guest. When
   * any of it fails, all that was done is undone in reverse, and the error goes on.
   * @throws UsageError
   */
  realize(bus: BusObject, host: MachineHost): void {
    if (this.#parentBus !== undefined) throw new Error(`${this.label} is realized already`);
    if (bus.isFull) throw new UsageError(`Bus '${bus.name}' is full`);
    this.#parentBus = bus;
    bus.devices.push(this);
    try {
      for (const level of this.klass.levels) {
        level.info.realize?.(this, host);
        this.#realizedLevels.push(level);
      }
      bus.plug(this, host);
    } catch (error) {
      this.#undo();
      throw error;
    }
    this.#realized = true;
  }

  /** The way back: away from the guest, then the devices on its own buses, then its levels, descendants first. Idempotent. */
  unrealize(): void {
    if (!this.#realized) return;
    this.#realized = false;
    this.#parentBus?.unplug(this);
    this.#undo();
  }

  #undo(): void {
    for (const bus of this.#childBuses.reverse()) bus.unrealizeDevices();
    for (const level of this.#realizedLevels.reverse()) level.info.unrealize?.(this);
    this.#childBuses.length = 0;
    this.#realizedLevels.length = 0;
    const devices = this.#parentBus?.devices;
    devices?.splice(devices.indexOf(this), 1);
    this.#parentBus = undefined;
  }
}

/** Where devices sit. Its id is its name; names need not be unique, the first that fits is taken. */
export class BusObject extends QomObject {
  /** Whose bus it is; undefined for the machine's own. */
  owner: DeviceObject | undefined;
  readonly devices: DeviceObject[] = [];

  constructor(init: ObjectInit) {
    super(init);
    if (init.id === undefined) throw new Error("a bus needs a name");
  }

  get name(): string {
    return this.id ?? "";
  }

  /** How many devices it takes. */
  get maxDevices(): number {
    return Number.POSITIVE_INFINITY;
  }

  get isFull(): boolean {
    return this.devices.length >= this.maxDevices;
  }

  /** Unrealizes the devices on it, the last first. */
  unrealizeDevices(): void {
    for (const device of [...this.devices].reverse()) device.unrealize();
  }

  /** Shows a realized device to the guest, or to what carries this bus. @throws UsageError */
  plug(_device: DeviceObject, _host: MachineHost): void {}

  /** Takes it away again. */
  unplug(_device: DeviceObject): void {}
}
