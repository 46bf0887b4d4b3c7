export { type Environment, type Logger, SILENT } from "./common/environment.ts";
export { VirtkitError } from "./common/error.ts";
export type { ExecOptions, ExecResult } from "./machine/guest-agent/index.ts";
export { UsageError } from "./machine/usage-error.ts";
export type { MachineEnd, MachineEvents, VirtualMachine } from "./machine/virtual-machine.ts";
export {
  createMachine,
  type DeviceSettings,
  type DriveSettings,
  type MachineOptions,
  type TraceSettings,
} from "./node/create-machine.ts";
export { statsTable } from "./trace/stats-table.ts";
export type { TraceEvent, TraceKind } from "./trace/types.ts";
