import type { CharBackend } from "../../backend/char/types.ts";
import { ConsoleDevice, type ConsolePort } from "../../device/console.ts";
import type { Chardev } from "../machine-backends.ts";
import type { MachineHost } from "../machine-host.ts";
import { BusObject, DeviceObject } from "../object-model/device.ts";
import { BOOL, CHARDEV, property, STR, UINT32 } from "../object-model/property.ts";
import type { TypeRegistry } from "../object-model/registry.ts";
import { CLASS, registerVirtioPciFamily, vectors } from "../pci/virtio-pci.ts";
import { UsageError } from "../usage-error.ts";
import { VirtioDeviceObject } from "./virtio-device.ts";

const SERIAL_BUS = "virtio-serial-bus";
const NR_AUTO = 0xffffffff;
/** The configuration and port traffic share two, as a queue each would take 64. */
const VECTORS = vectors(2);

const MAX_PORTS = property("max_ports", UINT32, 31, {
  description: "Ports at most, 1 to 511; with 1 it is a plain console",
  refuse: (value) => (value >= 1 && value <= 511 ? undefined : "it is 1 to 511"),
});
const EMERGENCY_WRITE = property("emergency-write", BOOL, true);
const CHARDEV_ID = property("chardev", CHARDEV, undefined);
const NAME = property("name", STR, undefined, { description: "The guest finds the port as /dev/virtio-ports/NAME" });
const NR = property("nr", UINT32, NR_AUTO, { description: "Number of the port; the first free one if left out" });

/** The device proper, with a bus for its ports. */
class VirtioSerialObject extends VirtioDeviceObject {
  get console(): ConsoleDevice {
    if (this.core instanceof ConsoleDevice) return this.core;
    throw new Error(`${this.typeName} is not realized`);
  }
}

class VirtioSerialBus extends BusObject {
  get console(): ConsoleDevice {
    if (this.owner instanceof VirtioSerialObject) return this.owner.console;
    throw new Error(`${this.name} is not the bus of a virtio-serial device`);
  }
}

/** A port on that bus. */
export class VirtioSerialPortObject extends DeviceObject {
  port: ConsolePort | undefined;
  chardev: Chardev | undefined;
}

/** The far end of a port without chardev: nobody is there. */
class Nobody implements CharBackend {
  readonly name = "none";
  attach(): void {}
  write(bytes: Uint8Array): number {
    return bytes.length;
  }
  drained(): void {}
  guestOpen(): void {}
  async close(): Promise<void> {}
}

function consoleOf(device: DeviceObject): ConsoleDevice {
  if (device.parentBus instanceof VirtioSerialBus) return device.parentBus.console;
  throw new Error(`${device.typeName} is not on a ${SERIAL_BUS}`);
}

function checkPort(device: VirtioSerialPortObject, core: ConsoleDevice): void {
  const nr = device.get(NR);
  const name = device.get(NAME) ?? "";
  if (nr !== NR_AUTO && nr >= core.maxPorts) {
    const hint = "Give virtio-serial-pci a larger max_ports, or the port a smaller nr.";
    throw new UsageError(`${SERIAL_BUS}: Out-of-range port id specified, max. allowed: ${core.maxPorts - 1}`, { hint });
  }
  if (nr !== NR_AUTO && core.port(nr) !== undefined)
    throw new UsageError(`${SERIAL_BUS}: A port already exists at id ${nr}`, {
      hint: "Leave out nr for the first free one.",
    });
  if (nr === 0 && core.maxPorts > 1 && !device.isA("virtconsole"))
    throw new UsageError(
      "Port number 0 on virtio-serial devices is reserved for virtconsole devices for backward compatibility",
      { hint: "Leave out nr for the first free one." },
    );
  if (name !== "" && core.ports.some((port) => port.name === name))
    throw new UsageError(`${SERIAL_BUS}: A port already exists by name ${name}`);
}

function realizePort(device: VirtioSerialPortObject, host: MachineHost): void {
  const core = consoleOf(device);
  checkPort(device, core);
  const id = device.get(CHARDEV_ID) ?? "";
  const nr = device.get(NR);
  if (id !== "") device.chardev = host.backends.claimChardev({ id, device, property: CHARDEV_ID.name });
  try {
    device.port = core.addPort({
      backend: device.chardev?.backend ?? new Nobody(),
      kind: device.isA("virtconsole") ? "console" : "serial",
      ...(nr === NR_AUTO ? {} : { id: nr }),
      name: device.get(NAME) ?? "",
    });
  } catch (error) {
    releaseChardev(device);
    throw error;
  }
}

function unrealizePort(device: VirtioSerialPortObject): void {
  if (device.port !== undefined) consoleOf(device).removePort(device.port.id);
  device.port = undefined;
  releaseChardev(device);
}

function releaseChardev(device: VirtioSerialPortObject): void {
  if (device.chardev !== undefined) device.chardev.user = undefined;
  device.chardev = undefined;
}

function registerPorts(registry: TypeRegistry): void {
  registry.register({ name: SERIAL_BUS, parent: "bus", instanceClass: VirtioSerialBus });
  registry.register<VirtioSerialPortObject>({
    name: "virtio-serial-port",
    parent: "device",
    abstract: true,
    instanceClass: VirtioSerialPortObject,
    category: "Input",
    busType: SERIAL_BUS,
    busProvider: "virtio-serial-pci",
    classInit(klass) {
      klass.addProperties(CHARDEV_ID, NAME, NR);
    },
    realize: realizePort,
    unrealize: unrealizePort,
  });
  registry.register({ name: "virtserialport", parent: "virtio-serial-port", userCreatable: true });
  registry.register({ name: "virtconsole", parent: "virtserialport", userCreatable: true });
}

/** The console devices among these, and those below them. */
export function consoleDevices(devices: readonly DeviceObject[]): ConsoleDevice[] {
  return devices.flatMap((device) => [
    ...(device instanceof VirtioSerialObject ? [device.console] : []),
    ...device.childBuses.flatMap((bus) => consoleDevices(bus.devices)),
  ]);
}

export function registerVirtioSerial(registry: TypeRegistry): void {
  registerPorts(registry);
  registry.register<VirtioSerialObject>({
    name: "virtio-serial-device",
    parent: "virtio-device",
    instanceClass: VirtioSerialObject,
    category: "Input",
    userCreatable: true,
    classInit(klass) {
      klass.addProperties(MAX_PORTS, EMERGENCY_WRITE);
    },
    realize(device, host) {
      device.core = new ConsoleDevice({
        environment: host.environment,
        name: device.coreName,
        ringFeatures: device.ringFeatures,
        maxPorts: device.get(MAX_PORTS),
        emergencyWrite: device.get(EMERGENCY_WRITE),
      });
      device.addBus(SERIAL_BUS, device.face.id === undefined ? undefined : `${device.face.id}.0`);
    },
  });
  registerVirtioPciFamily(registry, {
    name: "virtio-serial",
    device: "virtio-serial-device",
    category: "Input",
    properties: [CLASS, VECTORS],
  });
}
