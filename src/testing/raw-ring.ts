import {
  VIRTQ_AVAIL_FLAGS,
  VIRTQ_AVAIL_IDX,
  VIRTQ_AVAIL_RING,
  VIRTQ_DESC_ADDR,
  VIRTQ_DESC_FLAGS,
  VIRTQ_DESC_LEN,
  VIRTQ_DESC_NEXT,
  VIRTQ_DESC_SIZE,
  VIRTQ_EVENT_SUPPRESS_DESC,
  VIRTQ_EVENT_SUPPRESS_FLAGS,
  VIRTQ_PACKED_DESC_ADDR,
  VIRTQ_PACKED_DESC_F_AVAIL,
  VIRTQ_PACKED_DESC_F_USED,
  VIRTQ_PACKED_DESC_FLAGS,
  VIRTQ_PACKED_DESC_ID,
  VIRTQ_PACKED_DESC_LEN,
  VIRTQ_PACKED_DESC_SIZE,
  VIRTQ_USED_ELEM_SIZE,
  VIRTQ_USED_FLAGS,
  VIRTQ_USED_IDX,
  VIRTQ_USED_RING,
} from "../spec/ring.ts";

/**
 * Rings written and read by hand, field by field, for tests: either side of either format, right or wrong as the test wants
 * it. Nothing is checked and nothing is remembered but where the ring lies. Shares only the spec's constants with virtqueue/.
 */

/** Where the parts of a ring begin, as offsets in the view that a raw ring is given. */
export interface RawPlace {
  readonly size: number;
  readonly desc: number;
  readonly driver: number;
  readonly device: number;
}

export interface RawDescriptor {
  /** A bigint where all 64 bits are wanted. */
  readonly address: number | bigint;
  readonly length: number;
  readonly flags: number;
  /** Split: index of the next descriptor. */
  readonly next?: number;
  /** Packed: buffer id. */
  readonly id?: number;
}

const u64 = (value: number | bigint): bigint => BigInt.asUintN(64, BigInt(value));

/** A split descriptor at any place: an entry of the table or of an indirect table. */
export function writeSplitDescriptor(view: DataView, at: number, d: RawDescriptor): void {
  view.setBigUint64(at + VIRTQ_DESC_ADDR, u64(d.address), true);
  view.setUint32(at + VIRTQ_DESC_LEN, d.length, true);
  view.setUint16(at + VIRTQ_DESC_FLAGS, d.flags, true);
  view.setUint16(at + VIRTQ_DESC_NEXT, d.next ?? 0, true);
}

export function readSplitDescriptor(view: DataView, at: number): Required<Omit<RawDescriptor, "id">> {
  return {
    address: view.getBigUint64(at + VIRTQ_DESC_ADDR, true),
    length: view.getUint32(at + VIRTQ_DESC_LEN, true),
    flags: view.getUint16(at + VIRTQ_DESC_FLAGS, true),
    next: view.getUint16(at + VIRTQ_DESC_NEXT, true),
  };
}

/** A packed descriptor at any place. */
export function writePackedDescriptor(view: DataView, at: number, d: RawDescriptor): void {
  view.setBigUint64(at + VIRTQ_PACKED_DESC_ADDR, u64(d.address), true);
  view.setUint32(at + VIRTQ_PACKED_DESC_LEN, d.length, true);
  view.setUint16(at + VIRTQ_PACKED_DESC_ID, d.id ?? 0, true);
  view.setUint16(at + VIRTQ_PACKED_DESC_FLAGS, d.flags, true);
}

export function readPackedDescriptor(view: DataView, at: number): Required<Omit<RawDescriptor, "next">> {
  return {
    address: view.getBigUint64(at + VIRTQ_PACKED_DESC_ADDR, true),
    length: view.getUint32(at + VIRTQ_PACKED_DESC_LEN, true),
    id: view.getUint16(at + VIRTQ_PACKED_DESC_ID, true),
    flags: view.getUint16(at + VIRTQ_PACKED_DESC_FLAGS, true),
  };
}

export class RawSplitRing {
  readonly view: DataView;
  readonly place: RawPlace;

  constructor(view: DataView, place: RawPlace) {
    this.view = view;
    this.place = place;
  }

  writeDescriptor(index: number, descriptor: RawDescriptor): void {
    writeSplitDescriptor(this.view, this.place.desc + index * VIRTQ_DESC_SIZE, descriptor);
  }

  readDescriptor(index: number): Required<Omit<RawDescriptor, "id">> {
    return readSplitDescriptor(this.view, this.place.desc + index * VIRTQ_DESC_SIZE);
  }

  get availFlags(): number {
    return this.view.getUint16(this.place.driver + VIRTQ_AVAIL_FLAGS, true);
  }
  set availFlags(value: number) {
    this.view.setUint16(this.place.driver + VIRTQ_AVAIL_FLAGS, value, true);
  }
  get availIdx(): number {
    return this.view.getUint16(this.place.driver + VIRTQ_AVAIL_IDX, true);
  }
  set availIdx(value: number) {
    this.view.setUint16(this.place.driver + VIRTQ_AVAIL_IDX, value, true);
  }
  get usedEvent(): number {
    return this.view.getUint16(this.place.driver + VIRTQ_AVAIL_RING + 2 * this.place.size, true);
  }
  set usedEvent(value: number) {
    this.view.setUint16(this.place.driver + VIRTQ_AVAIL_RING + 2 * this.place.size, value, true);
  }

  /** The entry for the free-running index `position`. */
  readAvail(position: number): number {
    return this.view.getUint16(this.#availEntry(position), true);
  }
  writeAvail(position: number, head: number): void {
    this.view.setUint16(this.#availEntry(position), head, true);
  }

  get usedFlags(): number {
    return this.view.getUint16(this.place.device + VIRTQ_USED_FLAGS, true);
  }
  set usedFlags(value: number) {
    this.view.setUint16(this.place.device + VIRTQ_USED_FLAGS, value, true);
  }
  get usedIdx(): number {
    return this.view.getUint16(this.place.device + VIRTQ_USED_IDX, true);
  }
  set usedIdx(value: number) {
    this.view.setUint16(this.place.device + VIRTQ_USED_IDX, value, true);
  }
  get availEvent(): number {
    return this.view.getUint16(this.#availEventAt, true);
  }
  set availEvent(value: number) {
    this.view.setUint16(this.#availEventAt, value, true);
  }

  readUsed(position: number): { id: number; length: number } {
    const at = this.#usedEntry(position);
    return { id: this.view.getUint32(at, true), length: this.view.getUint32(at + 4, true) };
  }
  writeUsed(position: number, id: number, length: number): void {
    const at = this.#usedEntry(position);
    this.view.setUint32(at, id, true);
    this.view.setUint32(at + 4, length, true);
  }

  /** Offers `head` as the next available chain. */
  offer(head: number): void {
    const position = this.availIdx;
    this.writeAvail(position, head);
    this.availIdx = position + 1;
  }

  /** Returns a chain as a device does. */
  use(id: number, length: number): void {
    const position = this.usedIdx;
    this.writeUsed(position, id, length);
    this.usedIdx = position + 1;
  }

  get #availEventAt(): number {
    return this.place.device + VIRTQ_USED_RING + VIRTQ_USED_ELEM_SIZE * this.place.size;
  }
  #availEntry(position: number): number {
    return this.place.driver + VIRTQ_AVAIL_RING + 2 * (position % this.place.size);
  }
  #usedEntry(position: number): number {
    return this.place.device + VIRTQ_USED_RING + VIRTQ_USED_ELEM_SIZE * (position % this.place.size);
  }
}

export class RawPackedRing {
  readonly view: DataView;
  readonly place: RawPlace;

  constructor(view: DataView, place: RawPlace) {
    this.view = view;
    this.place = place;
  }

  /** The two wrap bits of an available descriptor under wrap counter `wrap`. */
  static available(wrap: boolean): number {
    return wrap ? VIRTQ_PACKED_DESC_F_AVAIL : VIRTQ_PACKED_DESC_F_USED;
  }

  /** The two wrap bits of a used descriptor under wrap counter `wrap`. */
  static used(wrap: boolean): number {
    return wrap ? VIRTQ_PACKED_DESC_F_AVAIL | VIRTQ_PACKED_DESC_F_USED : 0;
  }

  /** `flags` are written as they are, wrap bits included. */
  writeDescriptor(index: number, descriptor: RawDescriptor): void {
    writePackedDescriptor(this.view, this.place.desc + index * VIRTQ_PACKED_DESC_SIZE, descriptor);
  }

  readDescriptor(index: number): Required<Omit<RawDescriptor, "next">> {
    return readPackedDescriptor(this.view, this.place.desc + index * VIRTQ_PACKED_DESC_SIZE);
  }

  /** Writes what a device writes: id, length and flags; the address stays. */
  writeUsed(index: number, id: number, length: number, flags: number): void {
    const { address } = this.readDescriptor(index);
    this.writeDescriptor(index, { address, length, id, flags });
  }

  get driverEvent(): RawEvent {
    return this.#readEvent(this.place.driver);
  }
  set driverEvent(event: RawEvent) {
    this.#writeEvent(this.place.driver, event);
  }
  get deviceEvent(): RawEvent {
    return this.#readEvent(this.place.device);
  }
  set deviceEvent(event: RawEvent) {
    this.#writeEvent(this.place.device, event);
  }

  #readEvent(at: number): RawEvent {
    const desc = this.view.getUint16(at + VIRTQ_EVENT_SUPPRESS_DESC, true);
    const flags = this.view.getUint16(at + VIRTQ_EVENT_SUPPRESS_FLAGS, true);
    return { offset: desc & 0x7fff, wrap: desc >= 0x8000, flags };
  }
  #writeEvent(at: number, { offset, wrap, flags }: RawEvent): void {
    this.view.setUint16(at + VIRTQ_EVENT_SUPPRESS_DESC, offset + (wrap ? 0x8000 : 0), true);
    this.view.setUint16(at + VIRTQ_EVENT_SUPPRESS_FLAGS, flags, true);
  }
}

/** An event suppression structure. */
export interface RawEvent {
  readonly offset: number;
  readonly wrap: boolean;
  readonly flags: number;
}
