/** Feature bits run past 64 (net uses bits up to 70), so a set holds 128 (VIRTIO 1.4 §2.2). */
export const FEATURE_BITS = 128;
const WORDS = FEATURE_BITS / 32;

/** An immutable set of feature bits 0..127. */
export class FeatureSet {
  static readonly EMPTY = new FeatureSet([]);
  readonly #words: Uint32Array;

  private constructor(words: ArrayLike<number>) {
    this.#words = new Uint32Array(WORDS);
    for (let i = 0; i < Math.min(words.length, WORDS); i++) this.#words[i] = words[i] as number;
  }

  /** The set of these bits; a bit outside 0..127 is a RangeError (a bug of ours, not a guest's). */
  static of(...bits: number[]): FeatureSet {
    const words = new Uint32Array(WORDS);
    for (const bit of bits) {
      if (!Number.isInteger(bit) || bit < 0 || bit >= FEATURE_BITS) throw new RangeError(`feature bit ${bit}`);
      words[bit >>> 5] = (words[bit >>> 5] as number) | (1 << (bit & 31));
    }
    return new FeatureSet(words);
  }

  /** From 32-bit words, bits 0..31 first; words past the fourth are ignored. */
  static fromWords(words: ArrayLike<number>): FeatureSet {
    return new FeatureSet(words);
  }

  has(bit: number): boolean {
    return (((this.#words[bit >>> 5] ?? 0) >>> (bit & 31)) & 1) !== 0;
  }

  /** Bits 32*i .. 32*i+31 as an unsigned number; 0 past the last word. */
  word(i: number): number {
    return this.#words[i] ?? 0;
  }

  /** This set with the 32 bits of word `i` replaced. */
  withWord(i: number, value: number): FeatureSet {
    const words = Uint32Array.from(this.#words);
    if (i < WORDS) words[i] = value;
    return new FeatureSet(words);
  }

  with(...bits: number[]): FeatureSet {
    return this.union(FeatureSet.of(...bits));
  }

  without(...bits: number[]): FeatureSet {
    return this.minus(FeatureSet.of(...bits));
  }

  union(other: FeatureSet): FeatureSet {
    return new FeatureSet(this.#words.map((w, i) => w | other.word(i)));
  }

  intersect(other: FeatureSet): FeatureSet {
    return new FeatureSet(this.#words.map((w, i) => w & other.word(i)));
  }

  minus(other: FeatureSet): FeatureSet {
    return new FeatureSet(this.#words.map((w, i) => w & ~other.word(i)));
  }

  equals(other: FeatureSet): boolean {
    return this.#words.every((w, i) => w === other.word(i));
  }

  isSubsetOf(other: FeatureSet): boolean {
    return this.minus(other).isEmpty();
  }

  isEmpty(): boolean {
    return this.#words.every((w) => w === 0);
  }

  /** The bits in ascending order. */
  *[Symbol.iterator](): IterableIterator<number> {
    for (let bit = 0; bit < FEATURE_BITS; bit++) if (this.has(bit)) yield bit;
  }

  /** 0x-prefixed hexadecimal of the whole set. */
  toString(): string {
    const digits = [...this.#words]
      .reverse()
      .map((w) => w.toString(16).padStart(8, "0"))
      .join("")
      .replace(/^0+(?=.)/, "");
    return `0x${digits}`;
  }
}
