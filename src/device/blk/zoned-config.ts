import {
  VIRTIO_BLK_CFG_MAX_ACTIVE_ZONES,
  VIRTIO_BLK_CFG_MAX_APPEND_SECTORS,
  VIRTIO_BLK_CFG_MAX_OPEN_ZONES,
  VIRTIO_BLK_CFG_WRITE_GRANULARITY,
  VIRTIO_BLK_CFG_ZONE_SECTORS,
  VIRTIO_BLK_CFG_ZONED_MODEL,
  VIRTIO_BLK_SECTOR_SIZE,
  VIRTIO_BLK_Z_HM,
} from "../../spec/blk.ts";
import { isPowerOfTwo, isWithin, need } from "./need.ts";
import type { ZoneLayout } from "./zones.ts";

/** The zones of a host-managed zoned disk, named as QEMU names those of an NVMe namespace. All sizes in bytes. */
export interface ZonedProperties {
  /** A power of two, 64 KiB..1 GiB, no smaller than the physical block size. Default 64 MiB. */
  readonly zoneSize?: number;
  /** What of a sequential zone can be written: a multiple of the physical block size. Default the zone's size. */
  readonly zoneCapacity?: number;
  /** Zones at the start of the disk that are written like any other disk; more than there are make it all of them. Default 0. */
  readonly conventionalZones?: number;
  /** Zones that can be open at a time; 0, the default, sets no limit. */
  readonly maxOpen?: number;
  /** Zones that can be open or closed at a time, no fewer than can be open; 0, the default, sets no limit. */
  readonly maxActive?: number;
  /** Largest ZONE_APPEND, 0 for none at all. Default as much as a zone and the largest request hold. */
  readonly maxAppendSize?: number;
}

/** The same, checked, in sectors. */
export interface ZonedSettings extends ZoneLayout {
  readonly maxAppendSectors: number;
}

/** Zones of a disk at most. */
const MAX_ZONES = 2 ** 20;
const UINT32_MAX = 2 ** 32 - 1;
const DEFAULT_ZONE_SIZE = 64 * 1024 * 1024;

/** What the zones depend on. */
interface ZonedMedium {
  readonly capacity: number;
  readonly physicalBlockSize: number;
  readonly segMax: number;
  readonly sizeMax: number;
}

/** @throws ERR_VIRTKIT_BLK_OPTION naming the property and what it may be */
export function checkZoned(given: ZonedProperties, medium: ZonedMedium): ZonedSettings {
  const { capacity, physicalBlockSize: block, segMax, sizeMax } = medium;
  const { zoneSize = DEFAULT_ZONE_SIZE, conventionalZones = 0, maxOpen = 0, maxActive = 0 } = given;
  const smallest = Math.max(65536, block);
  need(
    isPowerOfTwo(zoneSize) && zoneSize >= smallest && zoneSize <= 2 ** 30,
    `zoned.zone_size=${zoneSize}`,
    `a power of two, ${smallest}..1073741824`,
  );
  const count = Math.ceil(capacity / zoneSize);
  need(count <= MAX_ZONES, `zoned.zone_size=${zoneSize}`, `a size that makes no more than ${MAX_ZONES} zones`);
  const zoneCapacity = given.zoneCapacity ?? zoneSize;
  const blocks = `a multiple of ${block} (the physical block size)`;
  need(
    isWithin(zoneCapacity, block, zoneSize) && zoneCapacity % block === 0,
    `zoned.zone_capacity=${zoneCapacity}`,
    `${blocks}, up to ${zoneSize} (the zone's size)`,
  );
  need(capacity % block === 0, `a zoned disk of ${capacity} bytes`, blocks);
  const zones = `0..${UINT32_MAX}`;
  need(isWithin(conventionalZones, 0, UINT32_MAX), `zoned.conventional_zones=${conventionalZones}`, zones);
  need(isWithin(maxActive, 0, UINT32_MAX), `zoned.max_active=${maxActive}`, `${zones}, 0 for no limit`);
  const most = maxActive === 0 ? UINT32_MAX : maxActive;
  need(isWithin(maxOpen, 0, most), `zoned.max_open=${maxOpen}`, `0..${most}, 0 for no limit`);
  const largest = Math.min(zoneCapacity, segMax * sizeMax);
  const maxAppendSize = given.maxAppendSize ?? largest - (largest % block);
  need(
    isWithin(maxAppendSize, 0, largest) && maxAppendSize % block === 0,
    `zoned.max_append_size=${maxAppendSize}`,
    `${blocks}, up to ${largest} (the zone's capacity, and seg-max * size-max)`,
  );
  return {
    capacity: capacity / VIRTIO_BLK_SECTOR_SIZE,
    zoneSectors: zoneSize / VIRTIO_BLK_SECTOR_SIZE,
    zoneCapacity: zoneCapacity / VIRTIO_BLK_SECTOR_SIZE,
    conventional: Math.min(conventionalZones, count),
    maxOpen,
    maxActive,
    writeGranularity: block,
    maxAppendSectors: maxAppendSize / VIRTIO_BLK_SECTOR_SIZE,
  };
}

/** As many whole zones as fit `sectors`, at least one. */
export const wholeZones = ({ zoneSectors }: ZonedSettings, sectors: number): number =>
  Math.max(zoneSectors, sectors - (sectors % zoneSectors));

/** struct virtio_blk_zoned_characteristics */
export function writeZonedConfig(view: DataView, settings: ZonedSettings): void {
  view.setUint32(VIRTIO_BLK_CFG_ZONE_SECTORS, settings.zoneSectors, true);
  view.setUint32(VIRTIO_BLK_CFG_MAX_OPEN_ZONES, settings.maxOpen, true);
  view.setUint32(VIRTIO_BLK_CFG_MAX_ACTIVE_ZONES, settings.maxActive, true);
  view.setUint32(VIRTIO_BLK_CFG_MAX_APPEND_SECTORS, settings.maxAppendSectors, true);
  view.setUint32(VIRTIO_BLK_CFG_WRITE_GRANULARITY, settings.writeGranularity, true);
  view.setUint8(VIRTIO_BLK_CFG_ZONED_MODEL, VIRTIO_BLK_Z_HM);
}
