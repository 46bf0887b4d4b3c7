export { defaultCacheDir } from "./cache.ts";
export { type DataDisk, type DataDiskOptions, ensureDataDisk } from "./data-disk.ts";
export { type CompressionFormat, compressionOf, decompress, unpackKernel } from "./decompress.ts";
export { listGuests, type PreparedGuest, removeGuests } from "./guest-cache.ts";
export { GUEST_ARCHITECTURES } from "./packages.ts";
export { type PrepareGuestOptions, prepareGuest } from "./prepare.ts";
export { type GuestProgress, type GuestStage, type OnGuestProgress, STAGE_TITLES } from "./progress.ts";
export { type ProgressRenderer, progressRenderer } from "./progress-terminal.ts";
export { type StateInfo, type StateKey, type StateStore, type StateStoreOptions, stateStore } from "./state-store.ts";
