export {
  type Disk,
  type DiskContext,
  type DiskFactory,
  type DiskRead,
  type DiskSource,
  type DiskWrite,
  defineDisk,
} from "./disk.ts";
export { DiskBackend, type DiskFaults } from "./disk-backend.ts";
export { MemoryBlockBackend, type MemoryBlockOptions } from "./memory.ts";
export { DISK_TIMEOUT, type OpenDiskOptions, openDisk } from "./open-disk.ts";
export { OverlayBlockBackend } from "./overlay.ts";
export { ReadOnlyBlockBackend } from "./read-only.ts";
export * from "./types.ts";
