/** A source of random bytes good enough for keys. */
export interface EntropySource {
  readonly name: string;
  /** Fills the whole array, without blocking. */
  fill(into: Uint8Array): void;
}
