export { GuestMemory, type WriteObserver } from "./guest-memory.ts";
export { MemoryRegion } from "./memory-region.ts";
