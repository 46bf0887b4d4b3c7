/**
 * Takes guest memory back, where the host can: an engine that has a way implements it. Addresses and lengths are guest-physical,
 * multiples of 4096, in guest memory, in one region. WebAssembly has no way to shrink or punch memory, so v86 has none.
 */
export interface BalloonHost {
  /** The guest does without these pages: they may be given back, what they hold may be lost. They read as zeros or as before. */
  release(address: number, length: number): void;
  /** The guest is about to use these pages again. */
  restore(address: number, length: number): void;
}
