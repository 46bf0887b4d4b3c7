import type { PciFunction } from "../../transport/pci/function.ts";
import type { MachineHost, PciSlots } from "../machine-host.ts";
import { BusObject, DeviceObject } from "../object-model/device.ts";
import { BOOL, DEVFN_AUTO, fixedProperty, PCI_DEVFN, property, STR, UINT32 } from "../object-model/property.ts";
import type { TypeRegistry } from "../object-model/registry.ts";
import { UsageError } from "../usage-error.ts";
import { withMultifunctionBit } from "./multifunction.ts";

const SLOTS = 32;
const FUNCTIONS = 8;

export const ADDR = property("addr", PCI_DEVFN, DEVFN_AUTO);
export const MULTIFUNCTION = property("multifunction", BOOL, false);

/** "4.0": slot and function as QEMU's messages write them. */
const place = (devfn: number): string => `${(devfn >> 3).toString(16)}.${devfn & 7}`;

/** A device on a PCI bus. The levels of its type make the function while they realize it. */
export class PciDevice extends DeviceObject {
  /** Slot * 8 + function, from its realization on. */
  devfn = DEVFN_AUTO;
  /** What the engine gets to see. */
  pciFunction: PciFunction | undefined;
}

/** PCI bus 0: who sits where. */
export class PciBus extends BusObject {
  readonly #devices = new Map<number, PciDevice>();
  readonly #attached = new Map<PciDevice, { readonly slots: PciSlots; readonly pciFunction: PciFunction }>();

  /**
   * Gives the device the address it asks for, or function 0 of the first free slot.
   * @throws UsageError when the address is taken, or all are
   */
  reserve(device: PciDevice, slots: PciSlots): void {
    const wanted = device.get(ADDR);
    const devfn = wanted === DEVFN_AUTO ? this.#freeSlot(device, slots) : wanted;
    const other = this.#devices.get(devfn);
    if (other !== undefined || slots.occupied(devfn)) {
      const where = `slot ${devfn >> 3} function ${devfn & 7}`;
      const user = other === undefined ? "the board" : other.label;
      throw new UsageError(`PCI: ${where} not available for ${device.label}, in use by ${user}`, {
        hint: "Choose another addr=, or leave it out for the first free slot.",
      });
    }
    this.#checkFunctions(device, devfn);
    this.#devices.set(devfn, device);
    device.devfn = devfn;
  }

  release(device: PciDevice): void {
    this.#devices.delete(device.devfn);
    device.devfn = DEVFN_AUTO;
  }

  override plug(device: DeviceObject, host: MachineHost): void {
    if (!(device instanceof PciDevice) || device.pciFunction === undefined)
      throw new Error(`${device.typeName} made no PCI function`);
    const pciFunction = device.get(MULTIFUNCTION) ? withMultifunctionBit(device.pciFunction) : device.pciFunction;
    host.pci.attach(pciFunction, device.devfn);
    this.#attached.set(device, { slots: host.pci, pciFunction });
  }

  override unplug(device: DeviceObject): void {
    if (!(device instanceof PciDevice)) return;
    const attached = this.#attached.get(device);
    attached?.slots.detach(attached.pciFunction);
    this.#attached.delete(device);
  }

  /** Devices that no guest will find, because function 0 of their slot is empty. */
  get hidden(): PciDevice[] {
    return [...this.#devices].filter(([devfn]) => !this.#devices.has(devfn & ~7)).map(([, device]) => device);
  }

  #freeSlot(device: PciDevice, slots: PciSlots): number {
    for (let slot = 0; slot < SLOTS; slot++) {
      const all = Array.from({ length: FUNCTIONS }, (_, fn) => slot * FUNCTIONS + fn);
      if (all.every((devfn) => !this.#devices.has(devfn) && !slots.occupied(devfn))) return slot * FUNCTIONS;
    }
    throw new UsageError(`PCI: no slot/function available for ${device.label}, all in use`);
  }

  #checkFunctions(device: PciDevice, devfn: number): void {
    if (device.get(MULTIFUNCTION)) return;
    const hint = "Give function 0 of that slot multifunction=on.";
    const first = this.#devices.get(devfn & ~7);
    if ((devfn & 7) !== 0) {
      if (first === undefined || first.get(MULTIFUNCTION)) return;
      throw new UsageError(`PCI: single function device can't be populated in function ${place(devfn)}`, { hint });
    }
    for (let other = devfn + 1; other < devfn + FUNCTIONS; other++) {
      if (!this.#devices.has(other)) continue;
      const reason = `PCI: ${place(devfn)} indicates single function, but ${place(other)} is already populated.`;
      throw new UsageError(reason, { hint });
    }
  }
}

function pciBusOf(device: PciDevice): PciBus {
  const bus = device.parentBus;
  if (!(bus instanceof PciBus)) throw new Error(`${device.typeName} is not on a PCI bus`);
  return bus;
}

/** The PCI bus and what every device on it has. */
export function registerPci(registry: TypeRegistry): void {
  registry.register({ name: "PCI", parent: "bus", instanceClass: PciBus });
  registry.register<PciDevice>({
    name: "pci-device",
    parent: "device",
    abstract: true,
    instanceClass: PciDevice,
    busType: "PCI",
    classInit(klass) {
      klass.addProperties(
        ADDR,
        MULTIFUNCTION,
        property("rombar", UINT32, 1, {
          description: "No effect: there is no option ROM",
          refuse: (value) => (value <= 1 ? undefined : "it is 0 or 1"),
        }),
        property("romfile", STR, undefined, {
          refuse: (value) => (value === "" ? undefined : "option ROMs are not supported; only an empty name is"),
        }),
        fixedProperty("acpi-index", UINT32, 0, "the machine's ACPI tables name no devices"),
        property("failover_pair_id", STR, undefined, { refuse: () => "failover needs a network device and migration" }),
      );
    },
    realize(device, host) {
      pciBusOf(device).reserve(device, host.pci);
    },
    unrealize(device) {
      pciBusOf(device).release(device);
    },
  });
}
