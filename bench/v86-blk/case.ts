/** One row of the bench: what the guest does to each disk. */
export interface BlkCase {
  readonly name: string;
  /** As load.c has it. */
  readonly operation: "read" | "write" | "random-read";
  /** Bytes of a request. */
  readonly bytes: number;
  /** Requests of a round. */
  readonly count: number;
  readonly unit: "MB/s" | "IOPS";
}

/** What the worker writes when a case is done, in the case's unit. */
export interface CaseResult {
  readonly name: string;
  readonly values: readonly number[];
  readonly peerValues: readonly number[];
}

export const IMAGE_BYTES = 128 << 20;
/** Rounds that count, after those in which both sides' code gets compiled. */
export const ROUNDS = 7;
export const WARM_UP_ROUNDS = 3;

export const CASES: readonly BlkCase[] = [
  { name: "v86-blk.read.1m", operation: "read", bytes: 1 << 20, count: 192, unit: "MB/s" },
  { name: "v86-blk.write.1m", operation: "write", bytes: 1 << 20, count: 192, unit: "MB/s" },
  { name: "v86-blk.random-read.4k", operation: "random-read", bytes: 4096, count: 2000, unit: "IOPS" },
];
