import type { DeviceOptions, MachineDescription } from "../description.ts";
import type { DeviceTree } from "../machine-builder.ts";
import type { MachineEvents } from "../machine-events.ts";
import type { DeviceObject } from "../object-model/device.ts";
import type { TypeRegistry } from "../object-model/registry.ts";

/** What a machine is doing, as QMP calls it. */
export type RunState = "prelaunch" | "running" | "paused" | "shutdown" | "internal-error";

/** What the control socket needs of a machine; `VirtualMachine` has it. */
export interface ControlledMachine {
  readonly name: string | undefined;
  readonly runState: RunState;
  readonly description: MachineDescription;
  readonly registry: TypeRegistry;
  /** Undefined before the devices are made. */
  readonly devices: DeviceTree | undefined;
  /** Resolves when the guest is up; rejects when it does not come up. */
  readonly whenUp: Promise<void>;
  on<Name extends keyof MachineEvents>(name: Name, listener: (...values: MachineEvents[Name]) => void): () => void;
  pause(): Promise<void>;
  resume(): void;
  reset(): Promise<void>;
  powerdown(): void;
  kill(): Promise<void>;
  resizeDrive(id: string, bytes: number): Promise<void>;
  setMemory(bytes: number): void;
  plugIn(options: DeviceOptions): Promise<DeviceObject>;
  /** Asks the guest to let go of a device; the event `deviceDeleted` tells when it has. */
  requestRemoval(device: DeviceObject): void;
}
