import {
  BLOCK_DISCARD,
  BLOCK_MAY_UNMAP,
  BLOCK_SECURE_ERASE,
  BLOCK_WRITE_ZEROES,
  type BlockLifetime,
} from "../../backend/block/types.ts";
import {
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_SECURE_ERASE,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_LIFETIME_EST_MAX,
  VIRTIO_BLK_LIFETIME_EST_TYP_A,
  VIRTIO_BLK_LIFETIME_EST_TYP_B,
  VIRTIO_BLK_LIFETIME_PRE_EOL_INFO,
  VIRTIO_BLK_LIFETIME_SIZE,
  VIRTIO_BLK_PRE_EOL_INFO_URGENT,
  VIRTIO_BLK_RANGE_FLAGS,
  VIRTIO_BLK_RANGE_NUM_SECTORS,
  VIRTIO_BLK_RANGE_SECTOR,
  VIRTIO_BLK_RANGE_SIZE,
  VIRTIO_BLK_S_IOERR,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_S_UNSUPP,
  VIRTIO_BLK_SECTOR_SIZE,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_SECURE_ERASE,
  VIRTIO_BLK_T_WRITE_ZEROES,
  VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
} from "../../spec/blk.ts";

/** Segments that a request may be allowed to have. */
export const MAX_RANGES = 256;

/** A request type that names ranges. */
interface RangeType {
  readonly feature: number;
  /** BLOCK_DISCARD, ... */
  readonly op: number;
}

export const RANGE_TYPES: ReadonlyMap<number, RangeType> = new Map([
  [VIRTIO_BLK_T_DISCARD, { feature: VIRTIO_BLK_F_DISCARD, op: BLOCK_DISCARD }],
  [VIRTIO_BLK_T_WRITE_ZEROES, { feature: VIRTIO_BLK_F_WRITE_ZEROES, op: BLOCK_WRITE_ZEROES }],
  [VIRTIO_BLK_T_SECURE_ERASE, { feature: VIRTIO_BLK_F_SECURE_ERASE, op: BLOCK_SECURE_ERASE }],
]);

/** The ranges of one request, in bytes, checked. They are worked off one by one. */
export class RangeList {
  readonly op: number;
  count = 0;
  /** Ranges that the back end has or had. */
  begun = 0;
  readonly offset: number[] = [];
  readonly length: number[] = [];
  readonly flags: number[] = [];

  constructor(op: number) {
    this.op = op;
  }
}

/** What a range may be. Sectors of 512 bytes. */
export interface RangeLimits {
  readonly maxSegments: number;
  readonly maxSectors: number;
  /** Sectors of a logical block. */
  readonly blockSectors: number;
  /** Sectors of the disk. */
  readonly capacity: number;
}

/**
 * Reads the segments of a request from a copy of its data. Empty ones are left out. Returns a status: a list is only to be used
 * with VIRTIO_BLK_S_OK. Nothing is begun before all of them are checked.
 */
export function parseRanges(bytes: Uint8Array, list: RangeList, limits: RangeLimits): number {
  const { length } = bytes;
  if (length === 0 || length % VIRTIO_BLK_RANGE_SIZE !== 0) return VIRTIO_BLK_S_IOERR;
  if (length / VIRTIO_BLK_RANGE_SIZE > limits.maxSegments) return VIRTIO_BLK_S_IOERR;
  const view = new DataView(bytes.buffer, bytes.byteOffset, length);
  // Flags before ranges: an unknown flag may change what the range means (device: Block Device / Device Operation #3, #4).
  for (let at = 0; at < length; at += VIRTIO_BLK_RANGE_SIZE)
    if (!knowsFlags(list.op, view.getUint32(at + VIRTIO_BLK_RANGE_FLAGS, true))) return VIRTIO_BLK_S_UNSUPP;
  for (let at = 0; at < length; at += VIRTIO_BLK_RANGE_SIZE) {
    const low = view.getUint32(at + VIRTIO_BLK_RANGE_SECTOR, true);
    const sector = low + view.getUint32(at + VIRTIO_BLK_RANGE_SECTOR + 4, true) * 2 ** 32;
    const sectors = view.getUint32(at + VIRTIO_BLK_RANGE_NUM_SECTORS, true);
    if (sectors > limits.maxSectors || sector + sectors > limits.capacity) return VIRTIO_BLK_S_IOERR;
    if (sector % limits.blockSectors !== 0 || sectors % limits.blockSectors !== 0) return VIRTIO_BLK_S_IOERR;
    if (sectors === 0) continue;
    const i = list.count++;
    list.offset[i] = sector * VIRTIO_BLK_SECTOR_SIZE;
    list.length[i] = sectors * VIRTIO_BLK_SECTOR_SIZE;
    const unmap = view.getUint32(at + VIRTIO_BLK_RANGE_FLAGS, true) & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    list.flags[i] = unmap === 0 ? 0 : BLOCK_MAY_UNMAP;
  }
  return VIRTIO_BLK_S_OK;
}

const knowsFlags = (op: number, flags: number): boolean =>
  flags === 0 || (flags === VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP && op === BLOCK_WRITE_ZEROES);

/**
 * struct virtio_blk_lifetime. What a back end says beyond the specified values is told as unknown (device: Block Device / Device
 * Operation #8).
 */
export function lifetimeBytes(lifetime: BlockLifetime): Uint8Array {
  const view = new DataView(new ArrayBuffer(VIRTIO_BLK_LIFETIME_SIZE));
  const put = (at: number, value: number, most: number): void =>
    view.setUint16(at, Number.isInteger(value) && value >= 0 && value <= most ? value : 0, true);
  put(VIRTIO_BLK_LIFETIME_PRE_EOL_INFO, lifetime.preEol, VIRTIO_BLK_PRE_EOL_INFO_URGENT);
  put(VIRTIO_BLK_LIFETIME_EST_TYP_A, lifetime.typeA, VIRTIO_BLK_LIFETIME_EST_MAX);
  put(VIRTIO_BLK_LIFETIME_EST_TYP_B, lifetime.typeB, VIRTIO_BLK_LIFETIME_EST_MAX);
  return new Uint8Array(view.buffer);
}
