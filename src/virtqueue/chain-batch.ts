/**
 * A batch that has so many segments ends there, and the rest is popped with the next one: otherwise a ring full of heads
 * that all name one huge indirect table would cost gigabytes. So does one for which as many descriptors were walked: empty
 * buffers make no segments, but they take time.
 */
export const BATCH_SEGMENTS = 65536;

/**
 * Descriptor chains as a device sees them: already walked, translated and checked. The arrays are the caller's and are used again
 * and again.
 *
 *     chain c (0 <= c < count)                        segment s
 *       id[c]             head or buffer id             region[s]  index into GuestMemory.regions
 *       first[c]          its first segment             offset[s]  byte offset in that region
 *       readable[c]       device-readable segments      length[s]  bytes
 *       writable[c]       then device-writable ones
 *       readableBytes[c], writableBytes[c]
 *
 * Region indices are good for this turn only. What outlives the turn keeps `memory.regions[region[s]]` and the offset.
 */
export class ChainBatch {
  count = 0;
  /** Segments in use. */
  segments = 0;
  /** Descriptors that were looked at one by one because something was unusual about their chain. */
  walked = 0;
  readonly capacity: number;
  readonly id: Uint16Array;
  readonly first: Uint32Array;
  readonly readable: Uint32Array;
  readonly writable: Uint32Array;
  readonly readableBytes: Float64Array;
  readonly writableBytes: Float64Array;
  region: Uint16Array;
  offset: Uint32Array;
  length: Uint32Array;

  /** @param capacity most chains a batch holds, 1..32768 */
  constructor(capacity: number, segments = capacity * 4) {
    this.capacity = capacity;
    this.id = new Uint16Array(capacity);
    this.first = new Uint32Array(capacity);
    this.readable = new Uint32Array(capacity);
    this.writable = new Uint32Array(capacity);
    this.readableBytes = new Float64Array(capacity);
    this.writableBytes = new Float64Array(capacity);
    this.region = new Uint16Array(segments);
    this.offset = new Uint32Array(segments);
    this.length = new Uint32Array(segments);
  }

  /** True when no further chain goes in, whatever the capacity. */
  get full(): boolean {
    return this.segments >= BATCH_SEGMENTS || this.walked >= BATCH_SEGMENTS;
  }

  clear(): void {
    this.count = 0;
    this.segments = 0;
    this.walked = 0;
  }

  /** Doubles the room for segments, keeping what is there. Rare: only while a batch first meets longer chains. */
  grow(): void {
    const more = this.length.length * 2;
    const region = new Uint16Array(more);
    const offset = new Uint32Array(more);
    const length = new Uint32Array(more);
    region.set(this.region);
    offset.set(this.offset);
    length.set(this.length);
    this.region = region;
    this.offset = offset;
    this.length = length;
  }
}
