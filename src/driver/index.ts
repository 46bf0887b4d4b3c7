export { FeatureSet } from "../common/feature-set.ts";
export { type DriverType, VirtioBus, type VirtioBusOptions, type VirtioDevice } from "./bus.ts";
export { type DriverContext, type DriverDescription, type DriverState, VirtioDriver } from "./core.ts";
export { DmaAllocator, DmaBuffer, type DmaSegment } from "./dma.ts";
export type { DriverFeature } from "./features.ts";
export type { DriverTransport, FoundSharedMemory } from "./transport.ts";
export { VirtQueue, type VirtQueueOptions } from "./virtqueue.ts";
