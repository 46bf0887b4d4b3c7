import type { Command } from "../command.ts";
import { BLOCK_COMMANDS } from "./block.ts";
import { DEVICE_COMMANDS } from "./devices.ts";
import { MACHINE_COMMANDS } from "./machine.ts";
import { MEMORY_COMMANDS } from "./memory.ts";
import { OBJECT_COMMANDS } from "./objects.ts";
import { VIRTIO_COMMANDS } from "./virtio.ts";

/** Every command but `qmp_capabilities`, which is the protocol's own. */
export const COMMANDS: readonly Command[] = [
  ...MACHINE_COMMANDS,
  ...BLOCK_COMMANDS,
  ...MEMORY_COMMANDS,
  ...DEVICE_COMMANDS,
  ...OBJECT_COMMANDS,
  ...VIRTIO_COMMANDS,
];
