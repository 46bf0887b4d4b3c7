import type { EntropySource } from "../../backend/entropy/types.ts";
import { RngDevice } from "../../device/rng.ts";
import type { MachineHost } from "../machine-host.ts";
import { property, reference, UINT32, UINT64 } from "../object-model/property.ts";
import type { TypeRegistry } from "../object-model/registry.ts";
import { registerVirtioPciFamily } from "../pci/virtio-pci.ts";
import { UsageError } from "../usage-error.ts";
import { RngBackendObject } from "./entropy.ts";
import type { VirtioDeviceObject } from "./virtio-device.ts";

const UNLIMITED = 2n ** 63n - 1n;
const MAX_PERIOD = 2 ** 31 - 1;

const RNG = property("rng", reference("link<rng-backend>"), undefined, {
  description: "ID of an rng-random or rng-builtin object; the host's own random numbers if left out",
});
const MAX_BYTES = property("max-bytes", UINT64, UNLIMITED, {
  description: "Bytes that the guest gets in a period",
  refuse: (value) => (value > 0n && value <= UNLIMITED ? undefined : "it is at least 1, and less than 2^63"),
});
const PERIOD = property("period", UINT32, 0x10000, {
  description: "Length of a period in milliseconds",
  refuse: (value) => (value > 0 && value <= MAX_PERIOD ? undefined : `it is a positive number up to ${MAX_PERIOD}`),
});

function entropySource(device: VirtioDeviceObject, host: MachineHost): EntropySource {
  const id = device.get(RNG);
  if (id === undefined || id === "") return host.backends.entropy;
  const object = host.backends.findObject({ id, device: device.face, property: RNG.name });
  if (object instanceof RngBackendObject && object.source !== undefined) return object.source;
  throw new UsageError(
    `Property '${device.face.typeName}.rng' can't take '${id}': a ${object.typeName} is no rng-backend`,
  );
}

export function registerVirtioRng(registry: TypeRegistry): void {
  registry.register<VirtioDeviceObject>({
    name: "virtio-rng-device",
    parent: "virtio-device",
    category: "Misc",
    userCreatable: true,
    classInit(klass) {
      klass.addProperties(RNG, MAX_BYTES, PERIOD);
    },
    realize(device, host) {
      const maxBytes = device.get(MAX_BYTES);
      device.core = new RngDevice({
        source: entropySource(device, host),
        environment: host.environment,
        name: device.coreName,
        ringFeatures: device.ringFeatures,
        ...(maxBytes === UNLIMITED ? {} : { maxBytes: Number(maxBytes) }),
        period: device.get(PERIOD),
      });
    },
  });
  registerVirtioPciFamily(registry, {
    name: "virtio-rng",
    device: "virtio-rng-device",
    category: "Misc",
    properties: [],
  });
}
