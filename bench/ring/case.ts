/** One case of the ring bench, by the numbers that both the TypeScript and the C side are given. */
export interface RingCase {
  readonly packed: boolean;
  /** Descriptors a request: 1 (a device-readable buffer) or 3 (one device-readable, two device-writable). */
  readonly descriptors: number;
  readonly batch: number;
}

export const QUEUE_SIZE = 1024;
export const MEMORY_BYTES = 16 << 20;
export const QUEUE_ADDRESS = 0x10000;
/** Buffers lie here, SLOT_BYTES a request. */
export const BUFFERS = 1 << 20;
export const SLOT_BYTES = 8192;
export const SLOTS = 512;
/** The three buffers of a request; a request of one descriptor has the first alone. */
export const LENGTHS = [16, 4096, 1] as const;
/** Seconds a round lasts at least. */
export const ROUND_SECONDS = 0.25;
/** Batches between two looks at the clock, in requests. */
export const REQUESTS_A_LOOK = 16384;

export const caseName = ({ packed, descriptors, batch }: RingCase): string =>
  `ring.${packed ? "packed" : "split"}.d${descriptors}.b${batch}`;
