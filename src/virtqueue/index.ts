export { ChainBatch } from "./chain-batch.ts";
export * from "./types.ts";
