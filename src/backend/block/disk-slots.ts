import type { IoVector } from "./types.ts";

/** Copies what a vector names into one buffer. */
export function gather(from: IoVector, into: Uint8Array): void {
  let done = 0;
  for (let i = 0; i < from.count; i++) {
    const start = from.offset[i] as number;
    const length = from.length[i] as number;
    into.set((from.buffer[i] as Uint8Array).subarray(start, start + length), done);
    done += length;
  }
}

/** Copies one buffer to where a vector points. */
export function scatter(from: Uint8Array, into: IoVector): void {
  let done = 0;
  for (let i = 0; i < into.count; i++) {
    const length = into.length[i] as number;
    (into.buffer[i] as Uint8Array).set(from.subarray(done, done + length), into.offset[i] as number);
    done += length;
  }
}
