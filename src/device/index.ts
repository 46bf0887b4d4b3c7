export { type Environment, type Logger, type LogLevel, SILENT } from "../common/environment.ts";
export { FeatureSet } from "../common/feature-set.ts";
export { ConfigSpace } from "./config-space.ts";
export { DEFAULT_RING_FEATURES, DeviceCore, type DeviceDescription, LEGACY_FEATURES, RING_FEATURES } from "./core.ts";
export {
  type DeviceAnswer,
  type DeviceContext,
  type DeviceDefinition,
  type DeviceHandlers,
  type DeviceRequest,
  defineDevice,
  type PropertyDefinition,
} from "./custom/define.ts";
export { CustomDevice, type CustomDeviceOptions } from "./custom.ts";
export { RunningQueue } from "./running-queue.ts";
export type { SharedMemoryRegion } from "./shared-memory.ts";
export { StatusMachine } from "./status-machine.ts";
export type { TransportPort } from "./transport-port.ts";
