import {
  VIRTIO_BLK_CFG_MAX_DISCARD_SECTORS,
  VIRTIO_BLK_CFG_MAX_DISCARD_SEG,
  VIRTIO_BLK_CFG_MAX_SECURE_ERASE_SECTORS,
  VIRTIO_BLK_CFG_MAX_SECURE_ERASE_SEG,
  VIRTIO_BLK_CFG_MAX_WRITE_ZEROES_SECTORS,
  VIRTIO_BLK_CFG_MAX_WRITE_ZEROES_SEG,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_SECURE_ERASE,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_RANGE_FLAGS,
  VIRTIO_BLK_RANGE_NUM_SECTORS,
  VIRTIO_BLK_RANGE_SECTOR,
  VIRTIO_BLK_RANGE_SIZE,
  VIRTIO_BLK_SECTOR_SIZE,
  VIRTIO_BLK_T_DISCARD,
  VIRTIO_BLK_T_SECURE_ERASE,
  VIRTIO_BLK_T_WRITE_ZEROES,
  VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
} from "../../spec/blk.ts";

/** A request type that names ranges, with its feature and where its limits stand in the configuration. */
export interface RangeKind {
  readonly name: string;
  readonly type: number;
  readonly feature: number;
  readonly maxSectors: number;
  readonly maxSegments: number;
}

export const DISCARD: RangeKind = {
  name: "DISCARD",
  type: VIRTIO_BLK_T_DISCARD,
  feature: VIRTIO_BLK_F_DISCARD,
  maxSectors: VIRTIO_BLK_CFG_MAX_DISCARD_SECTORS,
  maxSegments: VIRTIO_BLK_CFG_MAX_DISCARD_SEG,
};
export const WRITE_ZEROES: RangeKind = {
  name: "WRITE_ZEROES",
  type: VIRTIO_BLK_T_WRITE_ZEROES,
  feature: VIRTIO_BLK_F_WRITE_ZEROES,
  maxSectors: VIRTIO_BLK_CFG_MAX_WRITE_ZEROES_SECTORS,
  maxSegments: VIRTIO_BLK_CFG_MAX_WRITE_ZEROES_SEG,
};
export const SECURE_ERASE: RangeKind = {
  name: "SECURE_ERASE",
  type: VIRTIO_BLK_T_SECURE_ERASE,
  feature: VIRTIO_BLK_F_SECURE_ERASE,
  maxSectors: VIRTIO_BLK_CFG_MAX_SECURE_ERASE_SECTORS,
  maxSegments: VIRTIO_BLK_CFG_MAX_SECURE_ERASE_SEG,
};

/** Segments of a request that the driver makes at most. */
const SEGMENTS = 256;

interface Range {
  readonly sector: number;
  readonly sectors: number;
}

/** Cuts a range in bytes into requests of at most `maxSegments` segments of at most `maxSectors` sectors, in whole blocks. */
export function* splitRange(
  offset: number,
  length: number,
  limits: { readonly maxSectors: number; readonly maxSegments: number; readonly blockSize: number },
): Generator<Range[]> {
  const block = limits.blockSize / VIRTIO_BLK_SECTOR_SIZE;
  const most = Math.max(block, limits.maxSectors - (limits.maxSectors % block));
  const segments = Math.min(limits.maxSegments, SEGMENTS);
  let sector = offset / VIRTIO_BLK_SECTOR_SIZE;
  const end = sector + length / VIRTIO_BLK_SECTOR_SIZE;
  while (sector < end) {
    const request: Range[] = [];
    while (sector < end && request.length < segments) {
      const sectors = Math.min(most, end - sector);
      request.push({ sector, sectors });
      sector += sectors;
    }
    yield request;
  }
}

/** struct virtio_blk_discard_write_zeroes for each range. */
export function encodeRanges(ranges: readonly Range[], unmap: boolean): Uint8Array {
  const view = new DataView(new ArrayBuffer(ranges.length * VIRTIO_BLK_RANGE_SIZE));
  for (const [i, { sector, sectors }] of ranges.entries()) {
    const at = i * VIRTIO_BLK_RANGE_SIZE;
    view.setUint32(at + VIRTIO_BLK_RANGE_SECTOR, sector % 2 ** 32, true);
    view.setUint32(at + VIRTIO_BLK_RANGE_SECTOR + 4, Math.floor(sector / 2 ** 32), true);
    view.setUint32(at + VIRTIO_BLK_RANGE_NUM_SECTORS, sectors, true);
    view.setUint32(at + VIRTIO_BLK_RANGE_FLAGS, unmap ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0, true);
  }
  return new Uint8Array(view.buffer);
}
