import { hex, VirtkitError } from "../common/error.ts";

/** Base addresses and sizes of regions are multiples of this, so that ring structures stay aligned in the views. */
const REGION_ALIGN = 16;

/**
 * A contiguous range of guest-physical addresses and the bytes behind it. All four views cover exactly the region: index 0 is
 * `base`. Read the views afresh in each turn; never keep one.
 */
export class MemoryRegion {
  /** First guest-physical address. */
  readonly base: number;
  /** Bytes, at most 2^32. */
  readonly size: number;
  /** One past the last address. */
  readonly end: number;
  /** A device must not write here (a ROM, or memory that was shared read-only). */
  readonly readOnly: boolean;
  u8!: Uint8Array;
  u16!: Uint16Array;
  u32!: Uint32Array;
  view!: DataView;

  /**
   * @param base a multiple of 16
   * @param buffer the bytes; `byteOffset` (a multiple of 4) and `size` (a multiple of 16, at most 2^32) choose a part
   * @throws ERR_VIRTKIT_MEMORY_REGION when one of them is out of range
   */
  constructor(
    base: number,
    buffer: ArrayBufferLike,
    options: { byteOffset?: number; size?: number; readOnly?: boolean } = {},
  ) {
    const byteOffset = options.byteOffset ?? 0;
    this.base = base;
    this.size = options.size ?? buffer.byteLength - byteOffset;
    this.end = base + this.size;
    this.readOnly = options.readOnly ?? false;
    if (!Number.isSafeInteger(this.end) || base < 0 || base % REGION_ALIGN !== 0)
      throw regionError(`the base address ${hex(base)} must be a multiple of ${REGION_ALIGN} below 2^53`);
    if (this.size <= 0 || this.size > 2 ** 32 || this.size % REGION_ALIGN !== 0)
      throw regionError(`the size ${this.size} must be a multiple of ${REGION_ALIGN} between ${REGION_ALIGN} and 2^32`);
    this.setBuffer(buffer, byteOffset);
  }

  /** Puts the region over another buffer (v86's memory moves when it grows). The contents must already be there. */
  setBuffer(buffer: ArrayBufferLike, byteOffset: number): void {
    if (byteOffset % 4 !== 0 || byteOffset < 0 || byteOffset + this.size > buffer.byteLength)
      throw regionError(`a buffer of ${buffer.byteLength} bytes has no ${this.size} aligned bytes at ${byteOffset}`);
    this.u8 = new Uint8Array(buffer, byteOffset, this.size);
    this.u16 = new Uint16Array(buffer, byteOffset, this.size / 2);
    this.u32 = new Uint32Array(buffer, byteOffset, this.size / 4);
    this.view = new DataView(buffer, byteOffset, this.size);
  }

  /** Empties the views, so that what still holds this region reads nothing and writes nowhere. */
  drop(): void {
    const nothing = new ArrayBuffer(0);
    this.u8 = new Uint8Array(nothing);
    this.u16 = new Uint16Array(nothing);
    this.u32 = new Uint32Array(nothing);
    this.view = new DataView(nothing);
  }
}

function regionError(why: string): VirtkitError {
  return new VirtkitError("ERR_VIRTKIT_MEMORY_REGION", `guest memory region: ${why}`);
}

// The typed arrays above read little-endian only on a little-endian host, and every ring is little-endian.
if (new Uint8Array(new Uint16Array([1]).buffer)[0] !== 1)
  throw new VirtkitError("ERR_VIRTKIT_BIG_ENDIAN", "virtkit needs a little-endian host");
