import { FeatureSet } from "../../common/feature-set.ts";
import { type DeviceCore, RING_FEATURES } from "../../device/core.ts";
import {
  VIRTIO_F_ANY_LAYOUT,
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_NOTIFY_ON_EMPTY,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_RING_RESET,
} from "../../spec/features.ts";
import type { DeviceTracer } from "../../trace/tracing.ts";
import type { MachineTracing } from "../machine-host.ts";
import { BusObject, DeviceObject } from "../object-model/device.ts";
import { BOOL, fixedProperty, type Property, property } from "../object-model/property.ts";
import type { TypeRegistry } from "../object-model/registry.ts";

const bit = (name: string, byDefault: boolean, description?: string): Property<boolean> =>
  property(name, BOOL, byDefault, description === undefined ? {} : { description });

/** The properties that switch ring features on and off. */
const RING_PROPERTIES: readonly (readonly [Property<boolean>, number])[] = [
  [bit("indirect_desc", true), VIRTIO_F_INDIRECT_DESC],
  [bit("event_idx", true), VIRTIO_F_EVENT_IDX],
  [bit("packed", false), VIRTIO_F_RING_PACKED],
  [bit("in_order", false), VIRTIO_F_IN_ORDER],
  [bit("notification_data", false), VIRTIO_F_NOTIFICATION_DATA],
  [bit("queue_reset", true), VIRTIO_F_RING_RESET],
];

const LEGACY_ONLY = "on/off; only the legacy interface has it";
const LEGACY_PROPERTIES: readonly (readonly [Property<boolean>, number])[] = [
  [bit("notify_on_empty", true, LEGACY_ONLY), VIRTIO_F_NOTIFY_ON_EMPTY],
  [bit("any_layout", true, LEGACY_ONLY), VIRTIO_F_ANY_LAYOUT],
];

/** The device proper, whatever carries it: it sits on the virtio bus of its transport's proxy. */
export class VirtioDeviceObject extends DeviceObject {
  /** The device model itself, made by the type's `realize`. */
  core: DeviceCore | undefined;
  #tracer: DeviceTracer | undefined;

  /** What the user knows the device as: its proxy, where it has one. */
  get face(): DeviceObject {
    return this.parentBus?.owner ?? this;
  }

  /** For the device model's messages. */
  get coreName(): string {
    return this.face.id ?? this.face.typeName;
  }

  /** Has the device model watched, before its transport is made. */
  trace(tracing: MachineTracing | undefined): void {
    this.#tracer = tracing?.tracer(this.coreName, this.face.typeName);
    if (this.core !== undefined) this.core.tracer = this.#tracer;
  }

  /** Nothing is left of the device model. */
  drop(): void {
    // Host I/O that is still on its way belongs to nobody from here on.
    this.core?.reset();
    this.core = undefined;
    this.#tracer?.close();
    this.#tracer = undefined;
  }

  /** The ring features that the properties ask for. */
  get ringFeatures(): FeatureSet {
    const off = RING_PROPERTIES.filter(([key]) => !this.get(key)).map(([, feature]) => feature);
    return RING_FEATURES.without(...off);
  }

  /** Those that only the legacy interface offers. */
  get legacyFeatures(): FeatureSet {
    return FeatureSet.of(...LEGACY_PROPERTIES.filter(([key]) => this.get(key)).map(([, feature]) => feature));
  }
}

/** The type of bus that a virtio device sits on. A transport's own kind makes the transport when a device is plugged in. */
export class VirtioBusObject extends BusObject {
  override get maxDevices(): number {
    return 1;
  }
}

export function registerVirtioDevice(registry: TypeRegistry): void {
  registry.register({ name: "virtio-bus", parent: "bus", abstract: true, instanceClass: VirtioBusObject });
  registry.register<VirtioDeviceObject>({
    name: "virtio-device",
    parent: "device",
    abstract: true,
    instanceClass: VirtioDeviceObject,
    busType: "virtio-bus",
    classInit(klass) {
      klass.addProperties(
        ...[...RING_PROPERTIES, ...LEGACY_PROPERTIES].map(([key]) => key),
        fixedProperty("iommu_platform", BOOL, false, "the machine has no IOMMU"),
      );
    },
    unrealize(device) {
      device.drop();
    },
  });
}
