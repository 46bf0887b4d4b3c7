import type { FeatureSet } from "../common/feature-set.ts";
import type { DeviceCore } from "../device/core.ts";
import { RAW_DATA, RawDevice, type RawPiece } from "./raw-device.ts";

/** What became of a block request. */
export interface RawBlkAnswer {
  /** The status byte; 0xff when the device did not write it. */
  readonly status: number;
  /** Length of the used element. */
  readonly written: number;
  /** The device-writable data bytes; those that the device left alone are 0xee. */
  readonly data: Uint8Array;
}

export interface RawBlkRequest {
  readonly sector?: number | bigint;
  /** Device-readable data. */
  readonly out?: Uint8Array;
  /** Device-writable data bytes. */
  readonly room?: number;
}

const HEADER = 16;
const UNTOUCHED = 0xee;

/** A block device in front of which every request is written by hand. The back end has to answer inside `submit`. */
export class RawBlk {
  readonly bench: RawDevice;
  #count = 0;

  constructor(device: DeviceCore, features: FeatureSet, options: { forced?: boolean } = {}) {
    this.bench = new RawDevice(device, features, options);
  }

  ask(type: number, { sector = 0, out = new Uint8Array(0), room = 0 }: RawBlkRequest = {}): RawBlkAnswer {
    const { memory } = this.bench;
    const header = new DataView(new ArrayBuffer(HEADER));
    header.setUint32(0, type, true);
    header.setBigUint64(8, BigInt(sector), true);
    memory.write(RAW_DATA, new Uint8Array(header.buffer));
    memory.write(RAW_DATA + HEADER, out);
    const data = RAW_DATA + HEADER + out.length;
    memory.write(data, new Uint8Array(room).fill(UNTOUCHED));
    memory.write(data + room, Uint8Array.of(0xff));
    const pieces: RawPiece[] = [{ address: data + room, length: 1 }];
    if (room > 0) pieces.unshift({ address: data, length: room });
    const readable: RawPiece[] = [{ address: RAW_DATA, length: HEADER }];
    if (out.length > 0) readable.push({ address: RAW_DATA + HEADER, length: out.length });
    this.bench.offer(0, readable, pieces);
    this.bench.kick(0);
    const used = this.bench.used(0)[this.#count];
    if (used === undefined) throw new Error(`no answer: ${this.bench.needsReset ?? "the request waits"}`);
    this.#count++;
    const bytes = new Uint8Array(room + 1);
    if (!memory.read(data, bytes)) throw new Error("too large a request for the test's memory");
    return { status: bytes[room] as number, written: used.length, data: bytes.subarray(0, room) };
  }
}
