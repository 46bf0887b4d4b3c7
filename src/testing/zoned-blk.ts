import assert from "node:assert/strict";
import { MemoryBlockBackend } from "../backend/block/memory.ts";
import { FeatureSet } from "../common/feature-set.ts";
import { BlkDevice, type BlkDeviceOptions, type ZonedProperties } from "../device/blk.ts";
import {
  VIRTIO_BLK_F_SECURE_ERASE,
  VIRTIO_BLK_F_ZONED,
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_T_IN,
  VIRTIO_BLK_T_OUT,
  VIRTIO_BLK_T_ZONE_APPEND,
  VIRTIO_BLK_T_ZONE_REPORT,
} from "../spec/blk.ts";
import { VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { RawBlk } from "./raw-blk.ts";
import { testEnvironment } from "./rig.ts";

export const ZONE_BYTES = 65536;
/** Sectors of a zone. */
export const ZONE = ZONE_BYTES / 512;
/** Sectors of a zone that can be written. */
export const ZONE_CAPACITY = 96;
/** Sectors of a physical block, the write granularity. */
export const ZONE_BLOCK = 8;

export const ZONED_FEATURES = FeatureSet.of(VIRTIO_F_VERSION_1, VIRTIO_BLK_F_ZONED, VIRTIO_BLK_F_SECURE_ERASE);
export const sectors = (count: number, byte = 0x11): Uint8Array => new Uint8Array(count * 512).fill(byte);

/** The byte that all of these are; undefined when they differ. */
export const uniform = (bytes: Uint8Array): number | undefined =>
  bytes.every((byte) => byte === bytes[0]) ? bytes[0] : undefined;

/** Eight zones and a shorter ninth; the first is conventional. The image is full of 0x77, which no guest has written. */
export function zonedDevice(zoned: ZonedProperties = {}, options: Partial<BlkDeviceOptions> = {}): BlkDevice {
  const bytes = 8 * ZONE_BYTES + 32768;
  const contents = new Uint8Array(bytes).fill(0x77);
  const backend = new MemoryBlockBackend({ capacity: bytes, contents });
  return new BlkDevice({
    backend,
    environment: testEnvironment,
    physicalBlockSize: ZONE_BLOCK * 512,
    zoned: { zoneSize: ZONE_BYTES, zoneCapacity: ZONE_CAPACITY * 512, conventionalZones: 1, ...zoned },
    ...options,
  });
}

export interface ZoneState {
  readonly capacity: number;
  readonly start: number;
  readonly wp: number;
  readonly type: number;
  readonly state: number;
}

export class ZonedBlk extends RawBlk {
  readonly device: BlkDevice;

  constructor(zoned: ZonedProperties = {}, options: Partial<BlkDeviceOptions> = {}, forced?: FeatureSet) {
    const device = zonedDevice(zoned, options);
    if (forced === undefined) super(device, ZONED_FEATURES.intersect(device.offeredFeatures));
    else super(device, forced, { forced: true });
    this.device = device;
  }

  config(offset: number): number {
    return this.device.config.read(offset, 4);
  }

  write(sector: number, count: number, byte?: number): number {
    return this.ask(VIRTIO_BLK_T_OUT, { sector, out: sectors(count, byte) }).status;
  }

  read(sector: number, count: number): { status: number; data: Uint8Array } {
    return this.ask(VIRTIO_BLK_T_IN, { sector, room: count * 512 });
  }

  manage(type: number, zone: number): number {
    return this.ask(type, { sector: zone * ZONE }).status;
  }

  append(sector: number, count: number): { status: number; sector: number; written: number } {
    const { status, data, written } = this.ask(VIRTIO_BLK_T_ZONE_APPEND, { sector, out: sectors(count), room: 8 });
    return { status, written, sector: Number(new DataView(data.buffer, data.byteOffset).getBigUint64(0, true)) };
  }

  report(sector = 0, zones = 16): ZoneState[] {
    const { status, data, written } = this.ask(VIRTIO_BLK_T_ZONE_REPORT, { sector, room: 64 + 64 * zones });
    assert.equal(status, VIRTIO_BLK_S_OK);
    const view = new DataView(data.buffer, data.byteOffset);
    const u64 = (at: number): number => Number(view.getBigUint64(at, true));
    const count = u64(0);
    assert.equal(written, 64 + 64 * count + (count === zones ? 1 : 0));
    return Array.from({ length: count }, (_, i) => {
      const at = 64 * (i + 1);
      assert.equal(uniform(data.subarray(at + 26, at + 64)), 0);
      const [type, state] = [view.getUint8(at + 24), view.getUint8(at + 25)];
      return { capacity: u64(at), start: u64(at + 8), wp: u64(at + 16), type, state };
    });
  }

  state(zone: number): number {
    return this.report(zone * ZONE, 1)[0]?.state ?? -1;
  }

  wp(zone: number): number {
    return (this.report(zone * ZONE, 1)[0]?.wp ?? 0) - zone * ZONE;
  }
}
