import { Arena, Random } from "./ring-arena.ts";
import { type Counts, DeviceEpisode } from "./ring-fuzz-device.ts";
import { DriverEpisode } from "./ring-fuzz-driver.ts";

export const RING_SIDES = ["device-split", "device-packed", "driver-split", "driver-packed"] as const;
export type RingSide = (typeof RING_SIDES)[number];

export interface RingFuzzOptions {
  readonly side: RingSide;
  readonly operations: number;
  readonly seed: number;
  /** Called now and then with the operations done. */
  readonly onProgress?: (operations: number) => void;
}

/** Operations between two new queues, where none breaks before. */
const EPISODE = 400;

/**
 * Plays random operations on one ring side, well-formed and malformed, against a model of it. The same seed is the same
 * run.
 * @throws AssertionError at the first difference, stray byte or exception; its message names the seed and the episode
 */
export function fuzzRing({ side, operations, seed, onProgress }: RingFuzzOptions): Counts {
  const arena = new Arena();
  const counts: Counts = { operations: 0, chains: 0, faults: {} };
  const Episode = side.startsWith("device") ? DeviceEpisode : DriverEpisode;
  const packed = side.endsWith("packed");
  for (let episode = 0; counts.operations < operations; episode++) {
    const random = new Random(seed + episode * 7919);
    try {
      new Episode(random, arena, packed, counts).run(EPISODE);
    } catch (error) {
      throw new Error(`${side}: seed ${seed}, episode ${episode}: ${(error as Error).message}`, { cause: error });
    }
    if (episode % 1000 === 0) onProgress?.(counts.operations);
  }
  return counts;
}
