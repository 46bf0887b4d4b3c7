export {
  type Decompress,
  type KernelSegment,
  type LinuxKernel,
  type PayloadFormat,
  prepareKernel,
} from "./bzimage.ts";
export { V86Engine, type V86EngineState } from "./engine.ts";
export type { ResetCause, V86EngineEvents } from "./events.ts";
export { V86_VERSION } from "./internals.ts";
export type { LinuxBoot } from "./linux-boot.ts";
export { checkMemorySize, type V86EngineOptions } from "./options.ts";
export { defaultScheduler, type Scheduler } from "./scheduler.ts";
