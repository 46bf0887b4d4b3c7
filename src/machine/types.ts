import { registerEntropy } from "./devices/entropy.ts";
import { registerVirtioBalloon } from "./devices/virtio-balloon.ts";
import { registerVirtioBlk } from "./devices/virtio-blk.ts";
import { registerVirtioDevice } from "./devices/virtio-device.ts";
import { registerVirtioRng } from "./devices/virtio-rng.ts";
import { registerVirtioSerial } from "./devices/virtio-serial.ts";
import { registerBaseTypes } from "./object-model/base-types.ts";
import { TypeRegistry } from "./object-model/registry.ts";
import { registerPci } from "./pci/pci-bus.ts";
import { registerVirtioPci } from "./pci/virtio-pci.ts";

/** A registry with every type that virtkit has; a program may add its own. */
export function createTypeRegistry(): TypeRegistry {
  const registry = new TypeRegistry();
  registerBaseTypes(registry);
  registerPci(registry);
  registerVirtioDevice(registry);
  registerVirtioPci(registry);
  registerEntropy(registry);
  registerVirtioBlk(registry);
  registerVirtioSerial(registry);
  registerVirtioRng(registry);
  registerVirtioBalloon(registry);
  return registry;
}
