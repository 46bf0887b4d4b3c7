export { ChainBatch } from "./chain-batch.ts";
export { ChainReader, ChainWriter } from "./chain-cursor.ts";
export { createDeviceQueue, createDriverQueue } from "./create.ts";
export { type IndirectTables, indirectTablesBytes } from "./driver-common.ts";
export { legacySplitLayout, packedLayout, QUEUE_ALIGN, type QueueLayout, splitLayout } from "./layout.ts";
export * from "./types.ts";
