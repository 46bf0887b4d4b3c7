import type { BlockBackend } from "../../backend/block/types.ts";
import { FeatureSet } from "../../common/feature-set.ts";
import {
  VIRTIO_BLK_CFG_BLK_SIZE,
  VIRTIO_BLK_CFG_CAPACITY,
  VIRTIO_BLK_CFG_CYLINDERS,
  VIRTIO_BLK_CFG_DISCARD_SECTOR_ALIGNMENT,
  VIRTIO_BLK_CFG_HEADS,
  VIRTIO_BLK_CFG_MAX_DISCARD_SECTORS,
  VIRTIO_BLK_CFG_MAX_DISCARD_SEG,
  VIRTIO_BLK_CFG_MAX_SECURE_ERASE_SECTORS,
  VIRTIO_BLK_CFG_MAX_SECURE_ERASE_SEG,
  VIRTIO_BLK_CFG_MAX_WRITE_ZEROES_SECTORS,
  VIRTIO_BLK_CFG_MAX_WRITE_ZEROES_SEG,
  VIRTIO_BLK_CFG_MIN_IO_SIZE,
  VIRTIO_BLK_CFG_NUM_QUEUES,
  VIRTIO_BLK_CFG_OPT_IO_SIZE,
  VIRTIO_BLK_CFG_PHYSICAL_BLOCK_EXP,
  VIRTIO_BLK_CFG_SECTORS,
  VIRTIO_BLK_CFG_SECURE_ERASE_SECTOR_ALIGNMENT,
  VIRTIO_BLK_CFG_SEG_MAX,
  VIRTIO_BLK_CFG_SIZE_MAX,
  VIRTIO_BLK_CFG_WRITE_ZEROES_MAY_UNMAP,
  VIRTIO_BLK_F_BLK_SIZE,
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_FLUSH,
  VIRTIO_BLK_F_GEOMETRY,
  VIRTIO_BLK_F_LIFETIME,
  VIRTIO_BLK_F_MQ,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_F_SECURE_ERASE,
  VIRTIO_BLK_F_SEG_MAX,
  VIRTIO_BLK_F_SIZE_MAX,
  VIRTIO_BLK_F_TOPOLOGY,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_F_ZONED,
  VIRTIO_BLK_ID_BYTES,
  VIRTIO_BLK_SECTOR_SIZE,
} from "../../spec/blk.ts";
import { isPowerOfTwo, isWithin, need } from "./need.ts";
import { MAX_RANGES } from "./ranges.ts";
import { checkZoned, wholeZones, writeZonedConfig, type ZonedProperties, type ZonedSettings } from "./zoned-config.ts";

/** Sectors of a request that fit QEMU's and Linux' 31-bit byte counts. */
const MAX_RANGE_SECTORS = Math.floor((2 ** 31 - 1) / VIRTIO_BLK_SECTOR_SIZE);
/** Largest segment of a zoned disk, unless said. */
const ZONED_SIZE_MAX = 1024 * 1024;

/** Properties of the device, named as QEMU names them (without the dashes). All sizes in bytes. */
export interface BlkProperties {
  /** Entries of each queue: a power of two, 4..32768. Default 256. */
  readonly queueSize?: number;
  /** Request queues, 1..1024. Default 1. */
  readonly numQueues?: number;
  /** What GET_ID answers: up to 20 ASCII characters. Default empty. */
  readonly serial?: string;
  /** Unit that the guest addresses: a power of two, 512..2 MiB, no smaller than the back end's. Default the back end's. */
  readonly logicalBlockSize?: number;
  /** Unit that is written at once: a power of two, no smaller than the logical one. Default the back end's. */
  readonly physicalBlockSize?: number;
  /** Smallest request that is worthwhile: a multiple of the logical block size, at most 65535 blocks. Default 0, none. */
  readonly minIoSize?: number;
  /** Largest request that is worthwhile: a multiple of the logical block size. Default 0, none. */
  readonly optIoSize?: number;
  /** Lets the guest switch between writeback and writethrough. Default true. */
  readonly configWce?: boolean;
  /** Writeback ("on", the default) or writethrough ("off": a write completes when it is durable) to begin with. */
  readonly writeCache?: "on" | "off";
  /** Refuse writes even if the back end takes them. Default false. */
  readonly readOnly?: boolean;
  /** Segments of a request that the guest may send; default queueSize - 2. */
  readonly segMax?: number;
  /** Largest segment; 0, the default, sets no limit. */
  readonly sizeMax?: number;
  /** Disk geometry for firmware; guessed from the capacity unless given. */
  readonly geometry?: { readonly cylinders: number; readonly heads: number; readonly sectors: number };
  /** Offer DISCARD, where the back end takes it. Default true. */
  readonly discard?: boolean;
  /** Offer WRITE_ZEROES, where the back end takes it. Default true. */
  readonly writeZeroes?: boolean;
  /** Sectors of 512 bytes in a range of DISCARD: 1..4194303, the default. */
  readonly maxDiscardSectors?: number;
  /** Likewise of WRITE_ZEROES and SECURE_ERASE. */
  readonly maxWriteZeroesSectors?: number;
  /** Ranges in a request of DISCARD, WRITE_ZEROES or SECURE_ERASE: 1..256. Default 1. */
  readonly maxSegments?: number;
  /** Unit that a discard should be a multiple of: a multiple of the logical block size. Default the back end's. */
  readonly discardGranularity?: number;
  /** Makes it a host-managed zoned disk; then there is neither DISCARD nor WRITE_ZEROES. */
  readonly zoned?: ZonedProperties | undefined;
}

/** The same, checked, with every default filled in. */
export interface BlkSettings extends Required<Omit<BlkProperties, "zoned">> {
  readonly secureErase: boolean;
  readonly lifetime: boolean;
  /** Sectors of a range of SECURE_ERASE, and the unit that it is made of. */
  readonly maxSecureEraseSectors: number;
  readonly secureEraseAlignment: number;
  readonly zoned: ZonedSettings | undefined;
}

/** What the settings depend on. */
export type Medium = Pick<
  BlockBackend,
  | "capacity"
  | "readOnly"
  | "blockSize"
  | "physicalBlockSize"
  | "discard"
  | "discardUnit"
  | "writeZeroes"
  | "secureErase"
  | "lifetime"
>;

/** @throws ERR_VIRTKIT_BLK_OPTION naming the property and what it may be */
export function checkProperties(given: BlkProperties, medium: Medium): BlkSettings {
  const queueSize = given.queueSize ?? 256;
  const logicalBlockSize = given.logicalBlockSize ?? medium.blockSize;
  const readOnly = medium.readOnly || (given.readOnly ?? false);
  const physicalBlockSize = given.physicalBlockSize ?? Math.max(medium.physicalBlockSize, logicalBlockSize);
  const segMax = given.segMax ?? queueSize - 2;
  // max_append_sectors is bounded by seg_max * size_max (device: Block Device / Device Initialization #11): there is one, then.
  const sizeMax = given.sizeMax || (given.zoned === undefined ? 0 : ZONED_SIZE_MAX);
  const zoned =
    given.zoned && checkZoned(given.zoned, { capacity: medium.capacity, physicalBlockSize, segMax, sizeMax });
  const maxWriteZeroesSectors = given.maxWriteZeroesSectors ?? MAX_RANGE_SECTORS;
  const settings: BlkSettings = {
    queueSize,
    numQueues: given.numQueues ?? 1,
    serial: given.serial ?? "",
    logicalBlockSize,
    physicalBlockSize,
    minIoSize: given.minIoSize ?? 0,
    optIoSize: given.optIoSize ?? 0,
    configWce: given.configWce ?? true,
    writeCache: given.writeCache ?? "on",
    readOnly,
    segMax,
    sizeMax,
    geometry: given.geometry ?? guessGeometry(medium.capacity, logicalBlockSize),
    discard: !readOnly && medium.discard === true && given.discard !== false && zoned === undefined,
    writeZeroes: !readOnly && medium.writeZeroes === true && given.writeZeroes !== false && zoned === undefined,
    secureErase: !readOnly && medium.secureErase === true,
    lifetime: medium.lifetime !== undefined,
    maxDiscardSectors: given.maxDiscardSectors ?? MAX_RANGE_SECTORS,
    maxWriteZeroesSectors,
    maxSecureEraseSectors: zoned ? wholeZones(zoned, maxWriteZeroesSectors) : maxWriteZeroesSectors,
    secureEraseAlignment: zoned?.zoneSectors ?? logicalBlockSize / VIRTIO_BLK_SECTOR_SIZE,
    maxSegments: given.maxSegments ?? 1,
    discardGranularity: given.discardGranularity ?? Math.max(medium.discardUnit ?? 0, logicalBlockSize),
    zoned,
  };
  checkQueues(settings);
  checkRanges(settings);
  checkSizes(settings, medium);
  return settings;
}

function checkQueues({ queueSize, numQueues, segMax, sizeMax, serial }: BlkSettings): void {
  need(
    isPowerOfTwo(queueSize) && queueSize >= 4 && queueSize <= 32768,
    `queue-size=${queueSize}`,
    "a power of two, 4..32768",
  );
  need(isWithin(numQueues, 1, 1024), `num-queues=${numQueues}`, "1..1024");
  need(isWithin(segMax, 1, queueSize - 2), `seg-max=${segMax}`, `1..${queueSize - 2} (queue-size - 2)`);
  need(
    isWithin(sizeMax, 0, 2 ** 32 - 1) && (sizeMax === 0 || sizeMax >= 4096),
    `size-max=${sizeMax}`,
    "0 or 4096..2^32-1",
  );
  need(
    serial.length <= VIRTIO_BLK_ID_BYTES && /^[\x20-\x7e]*$/.test(serial),
    `serial=${serial}`,
    `up to ${VIRTIO_BLK_ID_BYTES} ASCII characters`,
  );
}

function checkSizes(settings: BlkSettings, medium: Medium): void {
  const { logicalBlockSize: logical, physicalBlockSize: physical, minIoSize, optIoSize, geometry } = settings;
  need(
    isPowerOfTwo(logical) && logical >= medium.blockSize && logical <= 2 ** 21,
    `logical_block_size=${logical}`,
    `a power of two, ${medium.blockSize} (the image's own)..2097152`,
  );
  need(
    isPowerOfTwo(physical) && physical >= logical && physical <= 2 ** 21,
    `physical_block_size=${physical}`,
    `a power of two, ${logical} (the logical block size)..2097152`,
  );
  need(
    isWithin(minIoSize, 0, 65535 * logical) && minIoSize % logical === 0,
    `min_io_size=${minIoSize}`,
    `a multiple of ${logical}, at most 65535 of them`,
  );
  need(
    isWithin(optIoSize, 0, 2 ** 31) && optIoSize % logical === 0,
    `opt_io_size=${optIoSize}`,
    `a multiple of ${logical}, at most 2^31`,
  );
  need(
    medium.capacity % logical === 0,
    `logical_block_size=${logical}`,
    `a size that divides the image's ${medium.capacity} bytes`,
  );
  need(
    isWithin(geometry.cylinders, 1, 65535) && isWithin(geometry.heads, 1, 255) && isWithin(geometry.sectors, 1, 255),
    `cyls=${geometry.cylinders},heads=${geometry.heads},secs=${geometry.sectors}`,
    "cyls 1..65535, heads and secs 1..255",
  );
}

function checkRanges(settings: BlkSettings): void {
  const { logicalBlockSize, maxDiscardSectors, maxWriteZeroesSectors, maxSegments, discardGranularity } = settings;
  const sectors = `1..${MAX_RANGE_SECTORS} sectors`;
  need(isWithin(maxDiscardSectors, 1, MAX_RANGE_SECTORS), `max-discard-sectors=${maxDiscardSectors}`, sectors);
  need(
    isWithin(maxWriteZeroesSectors, 1, MAX_RANGE_SECTORS),
    `max-write-zeroes-sectors=${maxWriteZeroesSectors}`,
    sectors,
  );
  need(isWithin(maxSegments, 1, MAX_RANGES), `max-segments=${maxSegments}`, `1..${MAX_RANGES}`);
  need(
    isWithin(discardGranularity, 0, 2 ** 31) && discardGranularity % logicalBlockSize === 0,
    `discard_granularity=${discardGranularity}`,
    `a multiple of ${logicalBlockSize}, at most 2^31`,
  );
}

/** What the block device offers with these settings. */
export function blkFeatures(settings: BlkSettings): FeatureSet {
  const bits = [
    VIRTIO_BLK_F_SEG_MAX,
    VIRTIO_BLK_F_GEOMETRY,
    VIRTIO_BLK_F_BLK_SIZE,
    VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_TOPOLOGY,
  ];
  if (settings.configWce) bits.push(VIRTIO_BLK_F_CONFIG_WCE);
  if (settings.sizeMax > 0) bits.push(VIRTIO_BLK_F_SIZE_MAX);
  if (settings.readOnly) bits.push(VIRTIO_BLK_F_RO);
  if (settings.numQueues > 1) bits.push(VIRTIO_BLK_F_MQ);
  if (settings.discard) bits.push(VIRTIO_BLK_F_DISCARD);
  if (settings.writeZeroes) bits.push(VIRTIO_BLK_F_WRITE_ZEROES);
  if (settings.secureErase) bits.push(VIRTIO_BLK_F_SECURE_ERASE);
  if (settings.lifetime) bits.push(VIRTIO_BLK_F_LIFETIME);
  if (settings.zoned !== undefined) bits.push(VIRTIO_BLK_F_ZONED);
  return FeatureSet.of(...bits);
}

/** Fills in the configuration space but for `writeback`, which follows the negotiation. */
export function writeConfig(view: DataView, settings: BlkSettings, capacity: number): void {
  const { logicalBlockSize: logical } = settings;
  writeCapacity(view, capacity);
  view.setUint32(VIRTIO_BLK_CFG_SIZE_MAX, settings.sizeMax, true);
  view.setUint32(VIRTIO_BLK_CFG_SEG_MAX, settings.segMax, true);
  view.setUint16(VIRTIO_BLK_CFG_CYLINDERS, settings.geometry.cylinders, true);
  view.setUint8(VIRTIO_BLK_CFG_HEADS, settings.geometry.heads);
  view.setUint8(VIRTIO_BLK_CFG_SECTORS, settings.geometry.sectors);
  view.setUint32(VIRTIO_BLK_CFG_BLK_SIZE, logical, true);
  view.setUint8(VIRTIO_BLK_CFG_PHYSICAL_BLOCK_EXP, Math.log2(settings.physicalBlockSize / logical));
  view.setUint16(VIRTIO_BLK_CFG_MIN_IO_SIZE, settings.minIoSize / logical, true);
  view.setUint32(VIRTIO_BLK_CFG_OPT_IO_SIZE, settings.optIoSize / logical, true);
  view.setUint16(VIRTIO_BLK_CFG_NUM_QUEUES, settings.numQueues, true);
  writeRangeLimits(view, settings);
  if (settings.zoned !== undefined) writeZonedConfig(view, settings.zoned);
}

function writeRangeLimits(view: DataView, settings: BlkSettings): void {
  const { maxSegments, maxWriteZeroesSectors } = settings;
  if (settings.discard) {
    view.setUint32(VIRTIO_BLK_CFG_MAX_DISCARD_SECTORS, settings.maxDiscardSectors, true);
    view.setUint32(VIRTIO_BLK_CFG_MAX_DISCARD_SEG, maxSegments, true);
    const alignment = settings.discardGranularity / VIRTIO_BLK_SECTOR_SIZE;
    view.setUint32(VIRTIO_BLK_CFG_DISCARD_SECTOR_ALIGNMENT, alignment, true);
  }
  if (settings.writeZeroes) {
    view.setUint32(VIRTIO_BLK_CFG_MAX_WRITE_ZEROES_SECTORS, maxWriteZeroesSectors, true);
    view.setUint32(VIRTIO_BLK_CFG_MAX_WRITE_ZEROES_SEG, maxSegments, true);
    view.setUint8(VIRTIO_BLK_CFG_WRITE_ZEROES_MAY_UNMAP, 1);
  }
  if (settings.secureErase) {
    view.setUint32(VIRTIO_BLK_CFG_MAX_SECURE_ERASE_SECTORS, settings.maxSecureEraseSectors, true);
    view.setUint32(VIRTIO_BLK_CFG_MAX_SECURE_ERASE_SEG, maxSegments, true);
    view.setUint32(VIRTIO_BLK_CFG_SECURE_ERASE_SECTOR_ALIGNMENT, settings.secureEraseAlignment, true);
  }
}

/** @param capacity bytes */
export function writeCapacity(view: DataView, capacity: number): void {
  const sectors = Math.floor(capacity / VIRTIO_BLK_SECTOR_SIZE);
  view.setUint32(VIRTIO_BLK_CFG_CAPACITY, sectors % 2 ** 32, true);
  view.setUint32(VIRTIO_BLK_CFG_CAPACITY + 4, Math.floor(sectors / 2 ** 32), true);
}

/**
 * The geometry that firmware of old expects: 16 heads of 63 sectors, 2..16383 cylinders. Where whole tracks of blocks larger than a
 * sector would not fill the disk, the sectors of a track are rounded down to whole blocks.
 */
export function guessGeometry(capacity: number, logicalBlockSize: number): BlkSettings["geometry"] {
  const heads = 16;
  const sectors = 63;
  const cylinders = Math.floor(capacity / VIRTIO_BLK_SECTOR_SIZE / (heads * sectors));
  const uneven = Math.floor(capacity / heads / sectors) % logicalBlockSize !== 0;
  const blockSectors = logicalBlockSize / VIRTIO_BLK_SECTOR_SIZE;
  return {
    cylinders: Math.min(16383, Math.max(2, cylinders)),
    heads,
    sectors: uneven ? Math.max(1, sectors - (sectors % blockSectors)) : sectors,
  };
}
