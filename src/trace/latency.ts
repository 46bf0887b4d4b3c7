/** Buckets of an octave: a latency is known to about 9 %. */
const FINE = 8;
const OCTAVES = 48;

/** How often which latency occurred. Microseconds; what took less than 1 counts as 1. */
export class LatencyHistogram {
  count = 0;
  max = 0;
  readonly #buckets = new Uint32Array(FINE * OCTAVES);

  add(micros: number): void {
    const index = Math.min(Math.floor(Math.log2(Math.max(1, micros)) * FINE), this.#buckets.length - 1);
    this.#buckets[index] = (this.#buckets[index] as number) + 1;
    this.count++;
    if (micros > this.max) this.max = micros;
  }

  /** The latency that a share (0..1) of all did not exceed, at most as much too high as a bucket is wide; 0 without any. */
  quantile(share: number): number {
    const wanted = Math.max(1, Math.ceil(this.count * share));
    let seen = 0;
    for (let i = 0; i < this.#buckets.length; i++) {
      seen += this.#buckets[i] as number;
      if (seen >= wanted) return Math.min(2 ** ((i + 1) / FINE), this.max);
    }
    return 0;
  }

  /** Octaves with something in them and those between: how many took at least `from` and less than `to`. */
  octaves(): { readonly from: number; readonly to: number; readonly count: number }[] {
    const sums = Array.from({ length: OCTAVES }, (_, octave) =>
      this.#buckets.subarray(octave * FINE, (octave + 1) * FINE).reduce((sum, n) => sum + n, 0),
    );
    const first = sums.findIndex((sum) => sum > 0);
    if (first < 0) return [];
    const last = OCTAVES - 1 - [...sums].reverse().findIndex((sum) => sum > 0);
    return sums
      .slice(first, last + 1)
      .map((count, i) => ({ from: i + first === 0 ? 0 : 2 ** (i + first), to: 2 ** (i + first + 1), count }));
  }
}
