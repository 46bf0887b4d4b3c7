import type { DeviceCore } from "../../device/core.ts";
import { VIRTIO_F_IN_ORDER, VIRTIO_F_NOTIFICATION_DATA, VIRTIO_F_RING_PACKED } from "../../spec/features.ts";
import { VIRTIO_PCI_DEVICE_ID_TRANSITIONAL } from "../../spec/pci.ts";
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

/** Ring features that exist in the modern interface only, and the properties that ask for them. */
const MODERN_ONLY: readonly (readonly [string, number])[] = [
  ["packed", VIRTIO_F_RING_PACKED],
  ["in_order", VIRTIO_F_IN_ORDER],
  ["notification_data", VIRTIO_F_NOTIFICATION_DATA],
];

/** A PCI device that carries a virtio device: the proxy around the device proper. */
export class VirtioPciProxy extends PciDevice {
  /** What the type has of the two interfaces: fixed, or up to disable-legacy and disable-modern. */
  interfaces: "chosen" | "transitional" | "modern" = "chosen";

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
    device.core.setLegacyFeatures(device.legacyFeatures);
    device.trace(host.tracing);
    const interfaces = interfacesOf(proxy, device.core);
    proxy.pciFunction = new VirtioPciDevice(device.core, { ...pciOptions(proxy, host), ...interfaces });
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

/** Refuses a device without any interface before anything is made of it. */
function checkInterfaces(proxy: VirtioPciProxy): void {
  if (proxy.interfaces !== "chosen" || !proxy.get(DISABLE_MODERN) || proxy.get(DISABLE_LEGACY) !== "on") return;
  const hint = "Set either disable-modern or disable-legacy to off.";
  throw new UsageError("device cannot work as neither modern nor legacy mode is enabled", { hint });
}

/** The interfaces that the function has. "auto" is transitional, as the bus is conventional PCI, where the type has a legacy form. */
function interfacesOf(proxy: VirtioPciProxy, core: DeviceCore): Pick<VirtioPciOptions, "legacy" | "modern"> {
  const chosen = proxy.interfaces === "chosen";
  const modern = !(chosen && proxy.get(DISABLE_MODERN));
  const wanted = chosen ? proxy.get(DISABLE_LEGACY) : proxy.interfaces === "modern" ? "on" : "off";
  const possible = VIRTIO_PCI_DEVICE_ID_TRANSITIONAL.has(core.deviceId);
  if (!possible && (wanted === "off" || !modern)) {
    const hint = "Leave disable-legacy and disable-modern out.";
    throw new UsageError("device is modern-only, use disable-legacy=on", { hint });
  }
  const on = MODERN_ONLY.find(([, bit]) => core.offeredFeatures.has(bit));
  if (!modern && on !== undefined)
    throw new UsageError(`Property '${proxy.typeName}.${on[0]}' can't be 'on' with disable-modern=on`, {
      hint: "The legacy interface has no such queues: leave out one of the two.",
    });
  return { legacy: possible && wanted !== "on", modern };
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
    realize: checkInterfaces,
  });
}

/** A PCI proxy around one device proper. */
export interface VirtioPciType {
  readonly name: string;
  readonly description?: string;
  /** The type of the device proper, whose properties are forwarded. */
  readonly device: string;
  readonly category: Category;
}

/** Registers one proxy by itself, without a family around it. */
export function registerVirtioPciType(registry: TypeRegistry, { device, ...info }: VirtioPciType): void {
  registry.register<VirtioPciProxy>({
    ...info,
    parent: "virtio-pci",
    userCreatable: true,
    classInit(klass) {
      klass.addProperties(DISABLE_LEGACY, DISABLE_MODERN);
      klass.forwardProperties(BACKEND, registry.classOf(device));
    },
    instanceInit(proxy) {
      proxy.addChild(BACKEND, registry.create(device));
    },
    realize: realizeBackend,
  });
}

function realizeBackend(proxy: VirtioPciProxy, host: MachineHost): void {
  proxy.backend.realize(proxy.addBus("virtio-pci-bus", "virtio-bus"), host);
}

/** A family of PCI proxies around one device proper. */
export interface VirtioPciFamily {
  /** "virtio-blk": the types are NAME-pci, NAME-pci-transitional and NAME-pci-non-transitional, and NAME is an alias. */
  readonly name: string;
  /** The type of the device proper. */
  readonly device: string;
  readonly category: Category;
  /** Beyond those of every proxy; the device proper's are forwarded. */
  readonly properties: readonly Property[];
}

/** Registers NAME-pci, NAME-pci-transitional and NAME-pci-non-transitional over an abstract NAME-pci-base. */
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
    realize: realizeBackend,
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
  for (const [suffix, interfaces] of [
    ["transitional", "transitional"],
    ["non-transitional", "modern"],
  ] as const)
    registry.register<VirtioPciProxy>({
      name: `${family.name}-pci-${suffix}`,
      parent: base,
      userCreatable: true,
      instanceInit(proxy) {
        proxy.interfaces = interfaces;
      },
    });
}
