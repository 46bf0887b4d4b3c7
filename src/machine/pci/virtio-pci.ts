import { VirtioPciDevice, type VirtioPciOptions } from "../../transport/pci/virtio-pci-device.ts";
import { VirtioBusObject, VirtioDeviceObject } from "../devices/virtio-device.ts";
import type { MachineHost } from "../machine-host.ts";
import type { Category } from "../object-model/class.ts";
import type { DeviceObject } from "../object-model/device.ts";
import { BOOL, fixedProperty, ON_OFF_AUTO, type Property, property, UINT32 } from "../object-model/property.ts";
import type { TypeRegistry } from "../object-model/registry.ts";
import { UsageError } from "../usage-error.ts";
import { PciDevice } from "./pci-bus.ts";

/** As many as the device has queues, and one for its configuration. */
export const VECTORS_AUTO = 0xffffffff;
const MAX_VECTORS = 2048;
const BACKEND = "virtio-backend";

/** MSI-X vectors; a family may give the property another default. */
export const vectors = (byDefault: number): Property<number> =>
  property("vectors", UINT32, byDefault, {
    description: `MSI-X vectors, 0 to ${MAX_VECTORS}; 0 for INTx only, ${VECTORS_AUTO} for one a queue and one more`,
    refuse: (value) =>
      value <= MAX_VECTORS || value === VECTORS_AUTO ? undefined : `MSI-X has at most ${MAX_VECTORS} vectors`,
  });

/** Class and subclass in the PCI header, for families whose firmware drivers look at it. */
export const CLASS = property("class", UINT32, 0, {
  description: "PCI class and subclass, 0 for the usual one",
  refuse: (value) => (value <= 0xffff ? undefined : "a class and a subclass have 16 bits"),
});

const VECTORS = vectors(VECTORS_AUTO);
const PIO_NOTIFY = property("modern-pio-notify", BOOL, false);
const PAGE_PER_VQ = property("page-per-vq", BOOL, false);
const DISABLE_LEGACY = property("disable-legacy", ON_OFF_AUTO, "auto");
const DISABLE_MODERN = property("disable-modern", BOOL, false, { description: "on/off" });

/** A PCI device that carries a virtio device: the proxy around the device proper. */
export class VirtioPciProxy extends PciDevice {
  /** The device proper. */
  get backend(): VirtioDeviceObject {
    const child = this.child(BACKEND);
    if (!(child instanceof VirtioDeviceObject)) throw new Error(`${child.typeName} is no virtio device`);
    return child;
  }
}

/** The bus inside a proxy. Plugging the device proper into it lays out the PCI function. */
class VirtioPciBus extends VirtioBusObject {
  override plug(device: DeviceObject, host: MachineHost): void {
    const proxy = this.owner;
    if (!(proxy instanceof VirtioPciProxy) || !(device instanceof VirtioDeviceObject) || device.core === undefined)
      throw new Error(`${device.typeName} made no device model`);
    proxy.pciFunction = new VirtioPciDevice(device.core, pciOptions(proxy, host));
  }

  override unplug(): void {
    if (this.owner instanceof VirtioPciProxy) this.owner.pciFunction = undefined;
  }
}

function pciOptions(proxy: VirtioPciProxy, host: MachineHost): VirtioPciOptions {
  const count = proxy.get(VECTORS);
  const classCode = proxy.klass.find(CLASS.name) === undefined ? 0 : proxy.get(CLASS);
  return {
    memory: host.memory,
    ...(count === VECTORS_AUTO ? {} : { vectors: count }),
    ...(classCode === 0 ? {} : { classCode }),
    ioNotify: proxy.get(PIO_NOTIFY),
    pagePerQueue: proxy.get(PAGE_PER_VQ),
  };
}

function checkModes(proxy: VirtioPciProxy): void {
  if (!proxy.get(DISABLE_MODERN)) return;
  if (proxy.get(DISABLE_LEGACY) === "on") {
    const hint = "Set either disable-modern or disable-legacy to off.";
    throw new UsageError("device cannot work as neither modern nor legacy mode is enabled", { hint });
  }
  throw new UsageError(`Property '${proxy.typeName}.disable-modern' can't be 'on': there is no legacy interface yet`, {
    hint: "Leave it out: the device is modern, for drivers of VirtIO 1.0 and later (Linux since 3.19).",
  });
}

/** The proxy's common part, and the bus inside. */
export function registerVirtioPci(registry: TypeRegistry): void {
  registry.register({ name: "virtio-pci-bus", parent: "virtio-bus", instanceClass: VirtioPciBus });
  registry.register<VirtioPciProxy>({
    name: "virtio-pci",
    parent: "pci-device",
    abstract: true,
    instanceClass: VirtioPciProxy,
    classInit(klass) {
      klass.addProperties(
        VECTORS,
        PIO_NOTIFY,
        PAGE_PER_VQ,
        property("ioeventfd", BOOL, true, {
          description:
            "on/off; no effect: a way of KVM's to notify, while here the device is on the guest's own thread",
        }),
        fixedProperty("ats", BOOL, false, "address translation services need an IOMMU, and the machine has none"),
        fixedProperty("aer", BOOL, false, "the bus is conventional PCI, without PCI Express error reporting"),
      );
    },
    realize: checkModes,
  });
}

/** A family of PCI proxies around one device proper. */
export interface VirtioPciFamily {
  /** "virtio-blk": the types are NAME-pci and NAME-pci-non-transitional, and NAME is an alias. */
  readonly name: string;
  /** The type of the device proper. */
  readonly device: string;
  readonly category: Category;
  /** Beyond those of every proxy; the device proper's are forwarded. */
  readonly properties: readonly Property[];
}

/** Registers NAME-pci and NAME-pci-non-transitional over an abstract NAME-pci-base. */
export function registerVirtioPciFamily(registry: TypeRegistry, family: VirtioPciFamily): void {
  const base = `${family.name}-pci-base`;
  registry.register<VirtioPciProxy>({
    name: base,
    parent: "virtio-pci",
    abstract: true,
    category: family.category,
    classInit(klass) {
      klass.addProperties(...family.properties);
      klass.forwardProperties(BACKEND, registry.classOf(family.device));
    },
    instanceInit(proxy) {
      proxy.addChild(BACKEND, registry.create(family.device));
    },
    realize(proxy, host) {
      proxy.backend.realize(proxy.addBus("virtio-pci-bus", "virtio-bus"), host);
    },
  });
  registry.register<VirtioPciProxy>({
    name: `${family.name}-pci`,
    parent: base,
    alias: family.name,
    userCreatable: true,
    classInit(klass) {
      klass.addProperties(DISABLE_LEGACY, DISABLE_MODERN);
    },
  });
  registry.register<VirtioPciProxy>({ name: `${family.name}-pci-non-transitional`, parent: base, userCreatable: true });
}
