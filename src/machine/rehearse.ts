import { MemoryBlockBackend } from "../backend/block/memory.ts";
import { NullCharBackend } from "../backend/char/null.ts";
import { type Environment, SILENT } from "../common/environment.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import type { BackendFactory } from "./backend-factory.ts";
import { DeferredSlots } from "./deferred-slots.ts";
import type { MachineDescription } from "./description.ts";
import { buildMachine } from "./machine-builder.ts";
import type { TypeRegistry } from "./object-model/registry.ts";

const SMALL = 4096;

/** Back ends that open nothing. */
const NOTHING: BackendFactory = {
  openDrive: async (options) => new MemoryBlockBackend({ capacity: SMALL, readOnly: options.readOnly }),
  openChardev: async ({ id }) => new NullCharBackend(id),
  loadModule: async () => undefined,
  openEntropy: async () => ({ name: "none", fill: () => undefined }),
};

/**
 * Builds a machine of nothing and takes it apart again: finds addresses used twice, unknown drives and all else that only shows when
 * the parts come together, before anything is downloaded, opened or booted.
 * @throws UsageError
 */
export async function rehearse(
  description: MachineDescription,
  registry: TypeRegistry,
  environment: Environment,
): Promise<void> {
  const bus = { attach: () => undefined, detach: () => undefined, occupied: () => false };
  const machine = await buildMachine(
    {
      ...description,
      drives: description.drives.map((drive) => ({ ...drive, source: { file: "" } })),
      chardevs: description.chardevs.map((chardev) => ({ ...chardev, backend: { type: "null" } })),
    },
    {
      registry,
      environment: { ...environment, log: SILENT },
      memory: GuestMemory.allocate(SMALL),
      pci: new DeferredSlots(bus),
      backends: NOTHING,
      rehearsal: true,
    },
  );
  await machine.close();
}
