export { MemoryBlockBackend, type MemoryBlockOptions } from "./memory.ts";
export { ReadOnlyBlockBackend } from "./read-only.ts";
export * from "./types.ts";
