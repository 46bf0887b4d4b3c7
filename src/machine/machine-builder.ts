import { MemoryBlockBackend } from "../backend/block/memory.ts";
import { OverlayBlockBackend } from "../backend/block/overlay.ts";
import type { BlockBackend } from "../backend/block/types.ts";
import type { Environment } from "../common/environment.ts";
import type { GuestMemory } from "../memory/guest-memory.ts";
import type { BackendFactory } from "./backend-factory.ts";
import type { ChardevOptions, DeviceOptions, DriveOptions, MachineDescription, ObjectOptions } from "./description.ts";
import { RngBackendObject } from "./devices/entropy.ts";
import { type Chardev, type Drive, MachineBackends } from "./machine-backends.ts";
import type { MachineHost, MachineTracing, PciSlots } from "./machine-host.ts";
import { suggest } from "./nearest.ts";
import { findBus } from "./object-model/bus-lookup.ts";
import { type BusObject, DeviceObject } from "./object-model/device.ts";
import type { QomObject } from "./object-model/object.ts";
import type { TypeRegistry } from "./object-model/registry.ts";
import { parseId } from "./object-model/values.ts";
import { PciBus } from "./pci/pci-bus.ts";
import { blame, blameAsync, UsageError } from "./usage-error.ts";

/** What a machine is built on. */
export interface MachineParts {
  readonly registry: TypeRegistry;
  readonly environment: Environment;
  /** The guest's RAM, and the engine's PCI bus. */
  readonly memory: GuestMemory;
  readonly pci: PciSlots;
  readonly backends: BackendFactory;
  readonly tracing?: MachineTracing;
  /** See {@link MachineHost.rehearsal}. */
  readonly rehearsal?: boolean;
}

/** COM1.. have this many. */
export const MAX_SERIAL_PORTS = 4;
/** Bytes of memory for what is written to a snapshot of a program's own back end. */
const SNAPSHOT_LIMIT = 2 ** 30;

/** The devices of a running machine and what they are connected to. */
export class DeviceTree {
  readonly backends: MachineBackends;
  /** The machine's own buses; devices on them may have more. */
  readonly buses: readonly BusObject[];
  /** COM1, ...; undefined where nothing is connected. */
  readonly serials: readonly (Chardev | undefined)[];
  readonly #host: MachineHost;
  readonly #registry: TypeRegistry;
  readonly #devices: DeviceObject[] = [];
  readonly #closers: Closer[];
  readonly #paths = new Map<DeviceObject, string>();
  #anonymous = 0;

  constructor(host: MachineHost, registry: TypeRegistry, serials: readonly (Chardev | undefined)[], closers: Closer[]) {
    this.backends = host.backends;
    this.serials = serials;
    this.#host = host;
    this.#registry = registry;
    this.#closers = closers;
    this.buses = [registry.createA(PciBus, "PCI", "pci.0")];
  }

  /** In the order of their creation. */
  get devices(): readonly DeviceObject[] {
    return this.#devices;
  }

  device(id: string): DeviceObject | undefined {
    return this.#devices.find((device) => device.id === id);
  }

  /** Where a device stands in QEMU's tree of objects: /machine/peripheral/ID, or /machine/peripheral-anon/device[N] without an id. */
  pathOf(device: DeviceObject): string {
    const path = this.#paths.get(device);
    if (path === undefined) throw new Error(`${device.label} is not in this machine`);
    return path;
  }

  /** Makes a device, gives it its properties, brings it to life and plugs it in. Nothing is left of one that fails. @throws UsageError */
  addDevice(options: DeviceOptions): DeviceObject {
    return blame(options.option, () => {
      const device = createDevice(this.#registry, options);
      if (options.id !== undefined && this.device(options.id) !== undefined) throw duplicateId(options.id, "device");
      device.realize(findBus(this.buses, device.klass, options.bus), this.#host);
      this.#devices.push(device);
      const anonymous = device.id === undefined ? this.#anonymous++ : 0;
      const path = device.id === undefined ? `-anon/device[${anonymous}]` : `/${device.id}`;
      this.#paths.set(device, `/machine/peripheral${path}`);
      return device;
    });
  }

  /** Unplugs a device, and with it those on its buses. Its back ends stay open. */
  removeDevice(device: DeviceObject): void {
    device.unrealize();
    for (const other of [...this.#devices]) {
      if (other.realized) continue;
      this.#devices.splice(this.#devices.indexOf(other), 1);
      this.#paths.delete(other);
    }
  }

  /** Unplugs every device, the last first, and closes the back ends in reverse order. */
  async close(): Promise<void> {
    for (const device of [...this.#devices].reverse()) this.removeDevice(device);
    await closeAll(this.#closers);
  }
}

type Closer = () => Promise<void>;

/**
 * Builds the machine in QEMU's order: objects, chardevs, drives, devices. When anything fails, all of it is undone.
 * @throws UsageError naming the option that is wrong
 */
export async function buildMachine(description: MachineDescription, parts: MachineParts): Promise<DeviceTree> {
  checkDescription(description, parts.registry);
  const closers: Closer[] = [];
  try {
    const backends = new MachineBackends(await parts.backends.openEntropy({ type: "builtin" }));
    for (const options of description.objects) await addObject(options, backends, parts);
    for (const options of description.chardevs) await addChardev(options, backends, parts, closers);
    const serials = connectSerials(description, backends);
    for (const options of description.drives) await addDrive(options, backends, parts, closers);
    const { environment, memory, pci, tracing, rehearsal = false } = parts;
    const host = { environment, memory, pci, backends, rehearsal, ...(tracing === undefined ? {} : { tracing }) };
    const machine = new DeviceTree(host, parts.registry, serials, closers);
    addDevices(machine, allDevices(description), environment);
    return machine;
  } catch (error) {
    await closeAll(closers).catch((also) => parts.environment.log.log("warn", `while closing: ${String(also)}`));
    throw error;
  }
}

/**
 * Finds what is wrong with a description without opening or making anything: unknown types, properties and values, ids
 * used twice.
 * @throws UsageError
 */
export function checkDescription(description: MachineDescription, registry: TypeRegistry): void {
  const { objects, chardevs, drives, devices } = description;
  const kinds = { object: objects, chardev: chardevs, drive: drives, device: devices };
  for (const [kind, items] of Object.entries(kinds)) {
    const seen = new Set<string>();
    for (const { option, id } of items) {
      if (id === undefined) continue;
      blame(option, () => {
        if (seen.has(parseId(id))) throw duplicateId(id, kind);
      });
      seen.add(id);
    }
  }
  for (const options of objects) blame(options.option, () => createObject(registry, options));
  for (const options of devices) blame(options.option, () => createDevice(registry, options));
}

function duplicateId(id: string, kind: string): UsageError {
  return new UsageError(`Duplicate ID '${id}' for ${kind}`, { hint: `Give each ${kind} an id of its own.` });
}

function createObject(registry: TypeRegistry, options: ObjectOptions): QomObject {
  const object = registry.create(registry.objectClass(options.type).name, parseId(options.id));
  object.setProperties(options.properties);
  return object;
}

function createDevice(registry: TypeRegistry, options: DeviceOptions): DeviceObject {
  const id = options.id === undefined ? undefined : parseId(options.id);
  const device = registry.createA(DeviceObject, registry.deviceClass(options.driver).name, id);
  device.setProperties(options.properties);
  return device;
}

async function addObject(options: ObjectOptions, backends: MachineBackends, parts: MachineParts): Promise<void> {
  await blameAsync(options.option, async () => {
    const object = createObject(parts.registry, options);
    if (object instanceof RngBackendObject) object.source = await parts.backends.openEntropy(object.options);
    backends.objects.set(options.id, object);
  });
}

async function addChardev(
  options: ChardevOptions,
  backends: MachineBackends,
  parts: MachineParts,
  closers: Closer[],
): Promise<void> {
  const given = options.backend;
  const backend =
    given.type === "open" ? given.backend : await blameAsync(options.option, () => parts.backends.openChardev(options));
  closers.push(() => backend.close());
  backends.chardevs.set(options.id, { id: options.id, backend, user: undefined });
}

async function addDrive(
  options: DriveOptions,
  backends: MachineBackends,
  parts: MachineParts,
  closers: Closer[],
): Promise<void> {
  const { source } = options;
  const backend =
    "backend" in source
      ? snapshotOf(source.backend, options)
      : await blameAsync(options.option, () => parts.backends.openDrive(options));
  closers.push(() => backend.close());
  const drive: Drive = { id: options.id, options, backend, user: undefined };
  backends.drives.set(options.id, drive);
}

/** A program's own back end under an overlay in memory, if one is asked for. */
function snapshotOf(backend: BlockBackend, { snapshot = false, readOnly }: DriveOptions): BlockBackend {
  if (!snapshot || readOnly) return backend;
  return new OverlayBlockBackend(
    backend,
    new MemoryBlockBackend({ capacity: backend.capacity, limit: SNAPSHOT_LIMIT }),
  );
}

function connectSerials(description: MachineDescription, backends: MachineBackends): (Chardev | undefined)[] {
  return description.serials.map(({ option, chardev: id }, port) =>
    blame(option, () => {
      if (port >= MAX_SERIAL_PORTS) throw new UsageError(`the machine has ${MAX_SERIAL_PORTS} serial ports`);
      if (id === undefined) return undefined;
      const chardev = backends.chardevs.get(id);
      if (chardev === undefined)
        throw new UsageError(`chardev '${id}' not found`, { hint: suggest(id, backends.chardevs.keys()) });
      if (chardev.user !== undefined) throw new UsageError(`chardev '${id}' is in use by ${chardev.user}`);
      chardev.user = `serial port ${port}`;
      return chardev;
    }),
  );
}

/** The devices asked for, and then those of drives with if=virtio, as QEMU has them. */
function allDevices(description: MachineDescription): DeviceOptions[] {
  const automatic = description.drives
    .filter((drive) => drive.interface === "virtio")
    .map(({ option, id }) => ({ option, driver: "virtio-blk-pci", properties: [{ name: "drive", value: id }] }));
  return [...description.devices, ...automatic];
}

function addDevices(machine: DeviceTree, devices: readonly DeviceOptions[], environment: Environment): void {
  try {
    for (const options of devices) machine.addDevice(options);
  } catch (error) {
    for (const device of [...machine.devices].reverse()) machine.removeDevice(device);
    throw error;
  }
  const hidden = machine.buses.flatMap((bus) => (bus instanceof PciBus ? bus.hidden : []));
  for (const device of hidden)
    environment.log.log("warn", `${device.label}: the guest will not find it, since function 0 of its slot is empty`);
}

/** Closes in reverse order, all of them; the first failure is thrown at the end. */
async function closeAll(closers: Closer[]): Promise<void> {
  const failures: unknown[] = [];
  for (const close of closers.splice(0).reverse()) {
    try {
      await close();
    } catch (error) {
      failures.push(error);
    }
  }
  if (failures.length > 0) throw failures[0];
}
