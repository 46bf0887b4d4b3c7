export { type Environment, type Logger, type LogLevel, SILENT } from "../common/environment.ts";
export { FeatureSet } from "../common/feature-set.ts";
export { ConfigSpace } from "./config-space.ts";
export { DEFAULT_RING_FEATURES, DeviceCore, type DeviceDescription, LEGACY_FEATURES, RING_FEATURES } from "./core.ts";
export { RunningQueue } from "./running-queue.ts";
export type { SharedMemoryRegion } from "./shared-memory.ts";
export { StatusMachine } from "./status-machine.ts";
export type { TransportPort } from "./transport-port.ts";
