import { BalloonDevice } from "../../device/balloon.ts";
import { BOOL, fixedProperty, property, reference } from "../object-model/property.ts";
import type { TypeRegistry } from "../object-model/registry.ts";
import { registerVirtioPciFamily } from "../pci/virtio-pci.ts";
import type { VirtioDeviceObject } from "./virtio-device.ts";

const DEFLATE_ON_OOM = property("deflate-on-oom", BOOL, false);
const FREE_PAGE_REPORTING = property("free-page-reporting", BOOL, false);
const PAGE_POISON = property("page-poison", BOOL, true);

export function registerVirtioBalloon(registry: TypeRegistry): void {
  registry.register<VirtioDeviceObject>({
    name: "virtio-balloon-device",
    parent: "virtio-device",
    category: "Misc",
    userCreatable: true,
    classInit(klass) {
      klass.addProperties(
        DEFLATE_ON_OOM,
        FREE_PAGE_REPORTING,
        PAGE_POISON,
        fixedProperty("free-page-hint", BOOL, false, "machines are not migrated"),
        fixedProperty("qemu-4-0-config-size", BOOL, false, "the configuration has its full size"),
        property("iothread", reference("link<iothread>"), undefined, {
          refuse: () => "there are no iothread objects: a device runs on the thread of its machine",
        }),
      );
    },
    realize(device, host) {
      device.core = new BalloonDevice({
        environment: host.environment,
        name: device.coreName,
        ringFeatures: device.ringFeatures,
        deflateOnOom: device.get(DEFLATE_ON_OOM),
        freePageReporting: device.get(FREE_PAGE_REPORTING),
        pagePoison: device.get(PAGE_POISON),
        ...(host.balloon === undefined ? {} : { host: host.balloon }),
      });
    },
  });
  registerVirtioPciFamily(registry, {
    name: "virtio-balloon",
    device: "virtio-balloon-device",
    category: "Misc",
    properties: [],
  });
}
