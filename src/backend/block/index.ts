export { MemoryBlockBackend, type MemoryBlockOptions } from "./memory.ts";
export { OverlayBlockBackend } from "./overlay.ts";
export { ReadOnlyBlockBackend } from "./read-only.ts";
export * from "./types.ts";
