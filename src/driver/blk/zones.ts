import { VirtkitError } from "../../common/error.ts";
import {
  VIRTIO_BLK_APPEND_SECTOR_SIZE,
  VIRTIO_BLK_CFG_MAX_ACTIVE_ZONES,
  VIRTIO_BLK_CFG_MAX_APPEND_SECTORS,
  VIRTIO_BLK_CFG_MAX_OPEN_ZONES,
  VIRTIO_BLK_CFG_WRITE_GRANULARITY,
  VIRTIO_BLK_CFG_ZONE_SECTORS,
  VIRTIO_BLK_SECTOR_SIZE,
  VIRTIO_BLK_T_ZONE_APPEND,
  VIRTIO_BLK_T_ZONE_CLOSE,
  VIRTIO_BLK_T_ZONE_FINISH,
  VIRTIO_BLK_T_ZONE_OPEN,
  VIRTIO_BLK_T_ZONE_REPORT,
  VIRTIO_BLK_T_ZONE_RESET,
  VIRTIO_BLK_T_ZONE_RESET_ALL,
  VIRTIO_BLK_ZONE_CAP,
  VIRTIO_BLK_ZONE_DESCRIPTOR_SIZE,
  VIRTIO_BLK_ZONE_REPORT_HEADER_SIZE,
  VIRTIO_BLK_ZONE_START,
  VIRTIO_BLK_ZONE_STATE,
  VIRTIO_BLK_ZONE_TYPE,
  VIRTIO_BLK_ZONE_WP,
  VIRTIO_BLK_ZS_CLOSED,
  VIRTIO_BLK_ZS_EMPTY,
  VIRTIO_BLK_ZS_EOPEN,
  VIRTIO_BLK_ZS_IOPEN,
  VIRTIO_BLK_ZT_CONV,
} from "../../spec/blk.ts";
import type { DmaBuffer, DmaSegment } from "../dma.ts";

/** A zone of a zoned disk. Offsets and sizes in bytes. */
export interface BlkZone {
  readonly offset: number;
  /** What of it can be written. */
  readonly capacity: number;
  /** Where the next write goes; undefined where there is none (conventional, full, read-only or offline). */
  readonly writePointer: number | undefined;
  /** VIRTIO_BLK_ZT_* */
  readonly type: number;
  /** VIRTIO_BLK_ZS_* */
  readonly state: number;
}

/** What the device says of its zones; sizes in bytes, 0 for no limit. */
export interface BlkZoneLimits {
  readonly zoneSize: number;
  readonly maxOpen: number;
  readonly maxActive: number;
  /** 0 when the device has no ZONE_APPEND. */
  readonly maxAppendSize: number;
  readonly writeGranularity: number;
}

/** @param read reads a 32-bit field of the configuration */
export const readZoneLimits = (read: (offset: number) => number): BlkZoneLimits => ({
  zoneSize: read(VIRTIO_BLK_CFG_ZONE_SECTORS) * VIRTIO_BLK_SECTOR_SIZE,
  maxOpen: read(VIRTIO_BLK_CFG_MAX_OPEN_ZONES),
  maxActive: read(VIRTIO_BLK_CFG_MAX_ACTIVE_ZONES),
  maxAppendSize: read(VIRTIO_BLK_CFG_MAX_APPEND_SECTORS) * VIRTIO_BLK_SECTOR_SIZE,
  writeGranularity: read(VIRTIO_BLK_CFG_WRITE_GRANULARITY),
});

/** What zones need of their driver. */
export interface ZoneDriver {
  readonly name: string;
  /** Of the disk, in bytes. */
  readonly capacity: number;
  /** Resolves when the device answered with VIRTIO_BLK_S_OK, and throws else. `sector` is in units of 512 bytes. */
  ask(type: number, sector: number, out: readonly DmaSegment[], in_: readonly DmaSegment[]): Promise<void>;
  withBuffer<T>(length: number, use: (buffer: DmaBuffer) => Promise<T>): Promise<T>;
  /** A buffer in pieces that the device takes. */
  split(buffer: DmaBuffer): DmaSegment[];
}

/** A zone that is about to be written, up to `end`. */
interface Written {
  readonly zone: BlkZone;
  readonly end: number;
}

/** Zones of one report. */
const REPORTED = 63;

/**
 * The zones of a host-managed disk (VIRTIO 1.4 §5.2.6), for {@link BlkDriver.zones}. All offsets in bytes; where one names a zone it
 * is the zone's first byte. Every method throws ERR_VIRTKIT_BLK_ZONE for what zones do not allow, and as {@link BlkDriver.write}
 * does.
 *
 * Writes and appends go to the device one after the other, and only when they are at the write pointer and fit the zone.
 */
export class BlkZones {
  readonly limits: BlkZoneLimits;
  readonly #driver: ZoneDriver;
  /** Zones as they are known, by offset; their write pointers move with our own writes. */
  readonly #known = new Map<number, BlkZone>();
  #tail: Promise<void> = Promise.resolve();

  constructor(driver: ZoneDriver, limits: BlkZoneLimits) {
    this.#driver = driver;
    this.limits = limits;
  }

  /** The zones of the disk from the one that holds the byte at `offset` on, at most `count` of them. */
  async report(offset = 0, count = Number.POSITIVE_INFINITY): Promise<BlkZone[]> {
    const zones: BlkZone[] = [];
    for (let at = offset; zones.length < count && at < this.#driver.capacity; ) {
      const some = await this.#report(at, Math.min(count - zones.length, REPORTED));
      if (some.length === 0) throw this.#error(`the device reports no zone at ${at}`);
      zones.push(...some);
      at = (some.at(-1) as BlkZone).offset + this.limits.zoneSize;
    }
    return zones;
  }

  open(offset: number): Promise<void> {
    return this.#manage(VIRTIO_BLK_T_ZONE_OPEN, offset);
  }

  close(offset: number): Promise<void> {
    return this.#manage(VIRTIO_BLK_T_ZONE_CLOSE, offset);
  }

  /** Makes it full: nothing can be written to it until it is reset. */
  finish(offset: number): Promise<void> {
    return this.#manage(VIRTIO_BLK_T_ZONE_FINISH, offset);
  }

  /** Makes it empty; its data is gone. */
  reset(offset: number): Promise<void> {
    return this.#manage(VIRTIO_BLK_T_ZONE_RESET, offset);
  }

  /** Makes every sequential zone empty. */
  resetAll(): Promise<void> {
    return this.#serially(async () => {
      this.#known.clear();
      await this.#driver.ask(VIRTIO_BLK_T_ZONE_RESET_ALL, 0, [], []);
    });
  }

  /** Writes to where the zone's write pointer is; resolves with where that was. */
  append(zone: number, bytes: Uint8Array): Promise<number> {
    return this.#serially(async () => {
      const { writeGranularity, maxAppendSize } = this.limits;
      this.#checkStart(zone);
      if (bytes.length === 0 || bytes.length % writeGranularity !== 0 || bytes.length > maxAppendSize)
        throw this.#error(
          `cannot append ${bytes.length} bytes; give a multiple of ${writeGranularity}, at most ${maxAppendSize}`,
        );
      const known = await this.#zone(zone);
      const at = known.writePointer ?? Number.NaN;
      if (known.type === VIRTIO_BLK_ZT_CONV || !(at + bytes.length <= zone + known.capacity))
        throw this.#error(`${bytes.length} bytes do not fit the zone at ${zone}`);
      return this.#writing([{ zone: known, end: at + bytes.length }], () => this.#append(zone, bytes));
    });
  }

  /** For the driver: calls `write`, which writes this range, once it may be written. */
  write(offset: number, length: number, write: () => Promise<void>): Promise<void> {
    return this.#serially(async () => {
      const changed: Written[] = [];
      for (const [at, n] of this.parts(offset, length)) {
        const zone = await this.#zone(at - (at % this.limits.zoneSize));
        this.#checkWrite(zone, at, n);
        changed.push({ zone, end: at + n });
      }
      await this.#writing(changed, write);
    });
  }

  /** Cuts a range where zones begin. */
  *parts(offset: number, length: number): Generator<[offset: number, length: number]> {
    const { zoneSize } = this.limits;
    for (let at = offset; at < offset + length; at += zoneSize - (at % zoneSize))
      yield [at, Math.min(offset + length - at, zoneSize - (at % zoneSize))];
  }

  #checkWrite(zone: BlkZone, at: number, length: number): void {
    if (zone.type === VIRTIO_BLK_ZT_CONV) return;
    const { writeGranularity } = this.limits;
    if (at % writeGranularity !== 0 || length % writeGranularity !== 0)
      throw this.#error(`${length} bytes at ${at} are not made of ${writeGranularity}`);
    if (at !== zone.writePointer)
      throw this.#error(
        `the zone at ${zone.offset} is written at ${zone.writePointer ?? "no place (reset it first)"}, not at ${at}`,
      );
    if (at + length > zone.offset + zone.capacity)
      throw this.#error(`${length} bytes at ${at} do not fit the zone at ${zone.offset}`);
  }

  /** After an error only the device knows how far it came: what was known of the zones is forgotten until it succeeded. */
  async #writing<T>(changed: readonly Written[], write: () => Promise<T>): Promise<T> {
    for (const { zone } of changed) this.#known.delete(zone.offset);
    const result = await write();
    for (const { zone, end } of changed) {
      const isFull = end >= zone.offset + zone.capacity;
      if (zone.type === VIRTIO_BLK_ZT_CONV) this.#known.set(zone.offset, zone);
      else if (!isFull) this.#known.set(zone.offset, { ...zone, writePointer: end });
    }
    return result;
  }

  async #append(zone: number, bytes: Uint8Array): Promise<number> {
    const { withBuffer, split, ask } = this.#driver;
    return withBuffer(bytes.length, (data) =>
      withBuffer(VIRTIO_BLK_APPEND_SECTOR_SIZE, async (place) => {
        data.write(bytes);
        await ask(VIRTIO_BLK_T_ZONE_APPEND, zone / VIRTIO_BLK_SECTOR_SIZE, split(data), [place]);
        return u64(place.read(), 0) * VIRTIO_BLK_SECTOR_SIZE;
      }),
    );
  }

  #manage(type: number, offset: number): Promise<void> {
    return this.#serially(async () => {
      this.#checkStart(offset);
      this.#known.delete(offset);
      await this.#driver.ask(type, offset / VIRTIO_BLK_SECTOR_SIZE, [], []);
    });
  }

  #checkStart(offset: number): void {
    if (!(offset >= 0 && offset < this.#driver.capacity) || offset % this.limits.zoneSize !== 0)
      throw this.#error(`no zone begins at ${offset}; zones have ${this.limits.zoneSize} bytes`);
  }

  async #zone(offset: number): Promise<BlkZone> {
    const zone = this.#known.get(offset) ?? (await this.#report(offset, 1))[0];
    if (zone === undefined) throw this.#error(`the device reports no zone at ${offset}`);
    this.#known.set(zone.offset, zone);
    return zone;
  }

  #report(offset: number, count: number): Promise<BlkZone[]> {
    if (!(offset >= 0 && offset < this.#driver.capacity)) throw this.#error(`there is no zone at ${offset}`);
    const room = VIRTIO_BLK_ZONE_REPORT_HEADER_SIZE + count * VIRTIO_BLK_ZONE_DESCRIPTOR_SIZE;
    return this.#driver.withBuffer(room, async (buffer) => {
      const sector = Math.floor(offset / VIRTIO_BLK_SECTOR_SIZE);
      await this.#driver.ask(VIRTIO_BLK_T_ZONE_REPORT, sector, [], this.#driver.split(buffer));
      const bytes = buffer.read();
      const zones = Math.min(u64(bytes, 0), count);
      return Array.from({ length: zones }, (_, i) =>
        readZone(bytes, VIRTIO_BLK_ZONE_REPORT_HEADER_SIZE + i * VIRTIO_BLK_ZONE_DESCRIPTOR_SIZE),
      );
    });
  }

  #serially<T>(task: () => Promise<T>): Promise<T> {
    const result = this.#tail.then(task);
    this.#tail = result.then(
      () => undefined,
      () => undefined,
    );
    return result;
  }

  #error(what: string): VirtkitError {
    return new VirtkitError("ERR_VIRTKIT_BLK_ZONE", `${this.#driver.name}: ${what}`);
  }
}

const WRITABLE: ReadonlySet<number> = new Set([
  VIRTIO_BLK_ZS_EMPTY,
  VIRTIO_BLK_ZS_IOPEN,
  VIRTIO_BLK_ZS_EOPEN,
  VIRTIO_BLK_ZS_CLOSED,
]);

function readZone(bytes: Uint8Array, at: number): BlkZone {
  const state = bytes[at + VIRTIO_BLK_ZONE_STATE] as number;
  const writePointer = u64(bytes, at + VIRTIO_BLK_ZONE_WP) * VIRTIO_BLK_SECTOR_SIZE;
  return {
    offset: u64(bytes, at + VIRTIO_BLK_ZONE_START) * VIRTIO_BLK_SECTOR_SIZE,
    capacity: u64(bytes, at + VIRTIO_BLK_ZONE_CAP) * VIRTIO_BLK_SECTOR_SIZE,
    writePointer: WRITABLE.has(state) ? writePointer : undefined,
    type: bytes[at + VIRTIO_BLK_ZONE_TYPE] as number,
    state,
  };
}

function u64(bytes: Uint8Array, at: number): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset + at, 8);
  return view.getUint32(0, true) + view.getUint32(4, true) * 2 ** 32;
}
