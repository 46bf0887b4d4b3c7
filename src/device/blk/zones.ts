import {
  VIRTIO_BLK_S_OK,
  VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE,
  VIRTIO_BLK_S_ZONE_INVALID_CMD,
  VIRTIO_BLK_S_ZONE_OPEN_RESOURCE,
  VIRTIO_BLK_S_ZONE_UNALIGNED_WP,
  VIRTIO_BLK_SECTOR_SIZE,
  VIRTIO_BLK_T_ZONE_CLOSE,
  VIRTIO_BLK_T_ZONE_FINISH,
  VIRTIO_BLK_T_ZONE_OPEN,
  VIRTIO_BLK_T_ZONE_RESET,
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
  VIRTIO_BLK_ZS_FULL,
  VIRTIO_BLK_ZS_IOPEN,
  VIRTIO_BLK_ZS_NOT_WP,
  VIRTIO_BLK_ZS_OFFLINE,
  VIRTIO_BLK_ZS_RDONLY,
  VIRTIO_BLK_ZT_CONV,
  VIRTIO_BLK_ZT_SWR,
} from "../../spec/blk.ts";

/** How a disk is divided into zones. Sectors of 512 bytes. */
export interface ZoneLayout {
  readonly capacity: number;
  readonly zoneSectors: number;
  /** Sectors of a zone that can be written. */
  readonly zoneCapacity: number;
  /** Zones at the start of the disk that are conventional; the others are sequential. */
  readonly conventional: number;
  /** 0 for no limit. */
  readonly maxOpen: number;
  /** 0 for no limit. */
  readonly maxActive: number;
  /** Writes to a sequential zone end at a multiple of so many bytes. */
  readonly writeGranularity: number;
}

/** Descriptors of one report at most, whatever room the driver gives. */
const MAX_REPORTED = 4096;

/**
 * The zones of a host-managed disk (VIRTIO 1.4 §5.2.6): their states, write pointers and resources, and what each request may do.
 * Every `sector` and count comes from the driver; the caller has checked that the range is on the disk. The methods return a
 * status, and change nothing unless it is VIRTIO_BLK_S_OK.
 *
 * A write pointer moves when a write is accepted and not when it is done: the next one may already be behind it in the queue. A write
 * that fails later leaves it where it is; the driver learns that from a report, as with any other zoned disk.
 */
export class ZoneMap {
  readonly layout: ZoneLayout;
  readonly count: number;
  /** Zones that are open, implicitly or explicitly. */
  open = 0;
  /** Zones that are open or closed. */
  active = 0;
  readonly #state: Uint8Array;
  /** Sectors from the zone's start up to the end of its data. */
  readonly #written: Uint32Array;

  constructor(layout: ZoneLayout) {
    this.layout = layout;
    this.count = Math.ceil(layout.capacity / layout.zoneSectors);
    this.#state = new Uint8Array(this.count).fill(VIRTIO_BLK_ZS_EMPTY);
    this.#state.fill(VIRTIO_BLK_ZS_NOT_WP, 0, layout.conventional);
    this.#written = new Uint32Array(this.count);
  }

  state(zone: number): number {
    return this.#state[zone] ?? VIRTIO_BLK_ZS_OFFLINE;
  }

  /** Sectors of the disk that read as data, from `sector` on; what follows them in the range is unwritten. */
  readable(sector: number, sectors: number): number {
    const zone = this.#zoneOf(sector);
    if (zone < this.layout.conventional) return sectors;
    return Math.max(0, Math.min(sectors, this.#start(zone) + (this.#written[zone] as number) - sector));
  }

  /** device: Block Device / Device Operation #23, #26 */
  checkRead(sector: number, sectors: number): number {
    if (!this.#isWithinZone(sector, sectors)) return VIRTIO_BLK_S_ZONE_INVALID_CMD;
    return this.state(this.#zoneOf(sector)) === VIRTIO_BLK_ZS_OFFLINE ? VIRTIO_BLK_S_ZONE_INVALID_CMD : VIRTIO_BLK_S_OK;
  }

  /** Accepts a write of `sectors` at `sector` (device: Block Device / Device Operation #17, #19, #23 to #26). */
  write(sector: number, sectors: number): number {
    if (!this.#isWithinZone(sector, sectors)) return VIRTIO_BLK_S_ZONE_INVALID_CMD;
    const zone = this.#zoneOf(sector);
    const state = this.state(zone);
    if (state === VIRTIO_BLK_ZS_NOT_WP) return VIRTIO_BLK_S_OK;
    if (!isWritable(state)) return VIRTIO_BLK_S_ZONE_INVALID_CMD;
    const start = this.#start(zone);
    const end = sector + sectors;
    if (end > start + this.capacityOf(zone)) return VIRTIO_BLK_S_ZONE_INVALID_CMD;
    const { writeGranularity } = this.layout;
    const aligned = (end * VIRTIO_BLK_SECTOR_SIZE) % writeGranularity === 0;
    if (sector !== start + (this.#written[zone] as number) || !aligned) return VIRTIO_BLK_S_ZONE_UNALIGNED_WP;
    if (sectors === 0) return VIRTIO_BLK_S_OK;
    const isOpen = state === VIRTIO_BLK_ZS_IOPEN || state === VIRTIO_BLK_ZS_EOPEN;
    const status = isOpen ? VIRTIO_BLK_S_OK : this.#enter(zone, VIRTIO_BLK_ZS_IOPEN);
    if (status !== VIRTIO_BLK_S_OK) return status;
    this.#written[zone] = end - start;
    if (end === start + this.capacityOf(zone)) this.#set(zone, VIRTIO_BLK_ZS_FULL);
    return VIRTIO_BLK_S_OK;
  }

  /** Where a ZONE_APPEND to the zone at `sector` goes, or -1 when there is no such sequential zone to write to (#11, #18). */
  appendSector(sector: number): number {
    const zone = this.#zoneOf(sector);
    if (sector !== this.#start(zone) || !isWritable(this.state(zone))) return -1;
    return sector + (this.#written[zone] as number);
  }

  /** ZONE_OPEN, _CLOSE, _FINISH and _RESET of the zone that starts at `sector`. */
  manage(type: number, sector: number): number {
    const zone = this.#zoneOf(sector);
    if (zone >= this.count || sector !== this.#start(zone)) return VIRTIO_BLK_S_ZONE_INVALID_CMD;
    const from = this.state(zone);
    // Conventional zones have no transitions; read-only and offline ones come from the host alone.
    if (!isWritable(from) && from !== VIRTIO_BLK_ZS_FULL) return VIRTIO_BLK_S_ZONE_INVALID_CMD;
    switch (type) {
      case VIRTIO_BLK_T_ZONE_OPEN:
        return from === VIRTIO_BLK_ZS_FULL ? VIRTIO_BLK_S_ZONE_INVALID_CMD : this.#enter(zone, VIRTIO_BLK_ZS_EOPEN);
      case VIRTIO_BLK_T_ZONE_CLOSE:
        return this.#close(zone, from);
      case VIRTIO_BLK_T_ZONE_FINISH:
        // The specification knows no way from Empty or Closed to Full, other than ZBC and ZNS.
        if (from === VIRTIO_BLK_ZS_EMPTY || from === VIRTIO_BLK_ZS_CLOSED) return VIRTIO_BLK_S_ZONE_INVALID_CMD;
        this.#set(zone, VIRTIO_BLK_ZS_FULL);
        return VIRTIO_BLK_S_OK;
      case VIRTIO_BLK_T_ZONE_RESET:
        this.#empty(zone);
        return VIRTIO_BLK_S_OK;
      default:
        return VIRTIO_BLK_S_ZONE_INVALID_CMD;
    }
  }

  resetAll(): void {
    for (let zone = 0; zone < this.count; zone++) if (this.#isResettable(zone)) this.#empty(zone);
  }

  /** Whether a range is whole zones of which each can be reset (device: Block Device / Device Operation #30, #31). */
  canReset(sector: number, sectors: number): boolean {
    const { zoneSectors } = this.layout;
    if (sector % zoneSectors !== 0 || sectors % zoneSectors !== 0) return false;
    for (let zone = this.#zoneOf(sector); zone < this.#zoneOf(sector + sectors); zone++)
      if (!this.#isResettable(zone)) return false;
    return true;
  }

  resetRange(sector: number, sectors: number): void {
    for (let zone = this.#zoneOf(sector); zone < this.#zoneOf(sector + sectors); zone++) this.#empty(zone);
  }

  /** What hardware does when it fails: the zone stays read-only, or is gone for good. */
  degrade(zone: number, to: "read-only" | "offline"): void {
    this.#set(zone, to === "offline" ? VIRTIO_BLK_ZS_OFFLINE : VIRTIO_BLK_ZS_RDONLY);
  }

  /** The answer to a ZONE_REPORT from the zone of `sector` on, in at most `room` bytes, which are 64 or more. */
  report(sector: number, room: number): Uint8Array {
    const first = this.#zoneOf(sector);
    const fits = Math.floor((room - VIRTIO_BLK_ZONE_REPORT_HEADER_SIZE) / VIRTIO_BLK_ZONE_DESCRIPTOR_SIZE);
    const count = Math.min(fits, this.count - first, MAX_REPORTED);
    const size = VIRTIO_BLK_ZONE_REPORT_HEADER_SIZE + count * VIRTIO_BLK_ZONE_DESCRIPTOR_SIZE;
    const view = new DataView(new ArrayBuffer(size));
    setU64(view, 0, count);
    for (let i = 0; i < count; i++)
      this.#describe(first + i, view, VIRTIO_BLK_ZONE_REPORT_HEADER_SIZE + i * VIRTIO_BLK_ZONE_DESCRIPTOR_SIZE);
    return new Uint8Array(view.buffer);
  }

  /** Sectors of a zone that can be written; the last zone may be smaller. */
  capacityOf(zone: number): number {
    return Math.min(
      zone < this.layout.conventional ? this.layout.zoneSectors : this.layout.zoneCapacity,
      this.layout.capacity - this.#start(zone),
    );
  }

  #describe(zone: number, view: DataView, at: number): void {
    const start = this.#start(zone);
    const state = this.state(zone);
    const hasPointer = isWritable(state);
    setU64(view, at + VIRTIO_BLK_ZONE_CAP, this.capacityOf(zone));
    setU64(view, at + VIRTIO_BLK_ZONE_START, start);
    // Undefined where there is no write pointer: then the end of the zone, as Linux shows it.
    const wp = hasPointer ? start + (this.#written[zone] as number) : start + this.layout.zoneSectors;
    setU64(view, at + VIRTIO_BLK_ZONE_WP, wp);
    view.setUint8(at + VIRTIO_BLK_ZONE_TYPE, zone < this.layout.conventional ? VIRTIO_BLK_ZT_CONV : VIRTIO_BLK_ZT_SWR);
    view.setUint8(at + VIRTIO_BLK_ZONE_STATE, state);
  }

  #close(zone: number, from: number): number {
    if (from === VIRTIO_BLK_ZS_EMPTY || from === VIRTIO_BLK_ZS_FULL) return VIRTIO_BLK_S_ZONE_INVALID_CMD;
    this.#set(zone, this.#written[zone] === 0 ? VIRTIO_BLK_ZS_EMPTY : VIRTIO_BLK_ZS_CLOSED);
    return VIRTIO_BLK_S_OK;
  }

  #empty(zone: number): void {
    this.#written[zone] = 0;
    this.#set(zone, VIRTIO_BLK_ZS_EMPTY);
  }

  /** Opens a zone if there are resources, for which a zone that is open implicitly may be closed. Active ones come first (§5.2.6). */
  #enter(zone: number, to: number): number {
    const { maxOpen, maxActive } = this.layout;
    const from = this.state(zone);
    if (maxActive > 0 && !isActive(from) && this.active >= maxActive) return VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE;
    if (maxOpen > 0 && !isOpen(from) && this.open >= maxOpen) {
      const other = this.#state.indexOf(VIRTIO_BLK_ZS_IOPEN);
      if (other < 0) return VIRTIO_BLK_S_ZONE_OPEN_RESOURCE;
      this.#set(other, VIRTIO_BLK_ZS_CLOSED);
    }
    this.#set(zone, to);
    return VIRTIO_BLK_S_OK;
  }

  #set(zone: number, to: number): void {
    const from = this.state(zone);
    this.open += Number(isOpen(to)) - Number(isOpen(from));
    this.active += Number(isActive(to)) - Number(isActive(from));
    this.#state[zone] = to;
  }

  #isResettable(zone: number): boolean {
    const state = this.state(zone);
    return isWritable(state) || state === VIRTIO_BLK_ZS_FULL;
  }

  /** A range over several zones is only good where all of them are conventional. */
  #isWithinZone(sector: number, sectors: number): boolean {
    const last = this.#zoneOf(sector + Math.max(sectors, 1) - 1);
    return this.#zoneOf(sector) === last || last < this.layout.conventional;
  }

  #zoneOf(sector: number): number {
    return Math.floor(sector / this.layout.zoneSectors);
  }

  #start(zone: number): number {
    return zone * this.layout.zoneSectors;
  }
}

const isOpen = (state: number): boolean => state === VIRTIO_BLK_ZS_IOPEN || state === VIRTIO_BLK_ZS_EOPEN;
const isActive = (state: number): boolean => isOpen(state) || state === VIRTIO_BLK_ZS_CLOSED;
const isWritable = (state: number): boolean => isActive(state) || state === VIRTIO_BLK_ZS_EMPTY;

function setU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value % 2 ** 32, true);
  view.setUint32(at + 4, Math.floor(value / 2 ** 32), true);
}
