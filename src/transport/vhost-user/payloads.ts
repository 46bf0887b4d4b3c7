import { VHOST_USER_VRING_IDX_MASK, VHOST_USER_VRING_NOFD_MASK } from "../../spec/vhost-user.ts";

/** What is wrong with a message: the peer's fault, so a value. */
export interface MessageFault {
  readonly fault: "unknown" | "header" | "size" | "value" | "descriptors";
  readonly message: string;
}

export const messageFault = (fault: MessageFault["fault"], message: string): MessageFault => ({ fault, message });

export const isMessageFault = (value: unknown): value is MessageFault =>
  typeof value === "object" && value !== null && "fault" in value;

/** A queue and a number: its size, its base, on or off. */
export interface VringState {
  readonly index: number;
  readonly num: number;
}

/** Where a queue's parts are, in the front end's own addresses. */
export interface VringAddress {
  readonly index: number;
  readonly flags: number;
  readonly descriptor: bigint;
  readonly used: bigint;
  readonly available: bigint;
  /** Guest address for the dirty log of the used ring. */
  readonly log: bigint;
}

/** The queue that an event descriptor is for. Without a descriptor the peer polls. */
export interface VringDescriptor {
  readonly index: number;
  readonly hasDescriptor: boolean;
}

/** A region of guest memory; the addresses in it run from both bases in step. */
export interface MemoryRegionDescription {
  readonly guestAddress: number;
  /** Bytes, more than 0. */
  readonly size: number;
  /** The same place in the front end's own address space. */
  readonly userAddress: bigint;
  /** Where the region begins in what the descriptor maps. */
  readonly mmapOffset: number;
}

/** An area of a shared file. */
export interface SharedArea {
  readonly size: number;
  readonly offset: number;
}

export interface ConfigAccess {
  readonly offset: number;
  /** VHOST_SET_CONFIG_TYPE_*. */
  readonly flags: number;
  readonly bytes: Uint8Array;
}

export interface IotlbMessage {
  readonly iova: bigint;
  readonly size: bigint;
  readonly userAddress: bigint;
  /** Bit 0: read, bit 1: write. */
  readonly permissions: number;
  /** 1 miss, 2 update, 3 invalidate, 4 access fail. */
  readonly type: number;
}

/** The shared area that remembers the requests in flight. */
export interface InflightDescription extends SharedArea {
  readonly queues: number;
  readonly queueSize: number;
}

/** The area of a host notifier. */
export interface VringArea extends SharedArea {
  readonly index: number;
  readonly hasDescriptor: boolean;
}

export interface DeviceStateTransfer {
  /** VHOST_TRANSFER_STATE_DIRECTION_*. */
  readonly direction: number;
  readonly phase: number;
}

/** What each kind of payload is in JavaScript. */
export interface Payloads {
  none: undefined;
  u64: bigint;
  vringState: VringState;
  vringAddress: VringAddress;
  vringDescriptor: VringDescriptor;
  memoryTable: readonly MemoryRegionDescription[];
  memoryRegion: MemoryRegionDescription;
  log: SharedArea;
  config: ConfigAccess;
  /** Nothing stands for the back end's refusal. */
  configReply: ConfigAccess | undefined;
  iotlb: IotlbMessage;
  inflight: InflightDescription;
  vringArea: VringArea;
  uuid: Uint8Array;
  deviceState: DeviceStateTransfer;
  /** Not taken apart. */
  bytes: Uint8Array;
}

export type PayloadKind = keyof Payloads;

interface PayloadCodec<T> {
  /** Bytes. */
  readonly min: number;
  readonly max: number;
  encode(value: T): Uint8Array;
  /** `view` has from min to max bytes. */
  decode(view: DataView): T | MessageFault;
  /** Descriptors that come with it, where the payload says so. */
  descriptors?(value: T): number;
}

/** Regions that one message can describe. The protocol's own struct has 8; some front ends send more. */
export const MAX_MEMORY_REGIONS = 32;
/** Bytes of configuration in one message; QEMU's limit is 256. */
export const MAX_CONFIG_SIZE = 1024;
const MAX_BYTES = 4096;
const MAX_SAFE = BigInt(Number.MAX_SAFE_INTEGER);
const REGION_SIZE = 32;
const CONFIG_HEADER = 12;

function build(size: number, write: (view: DataView) => void): Uint8Array {
  const bytes = new Uint8Array(size);
  write(new DataView(bytes.buffer));
  return bytes;
}

const u32 = (view: DataView, offset: number): number => view.getUint32(offset, true);
const u64 = (view: DataView, offset: number): bigint => view.getBigUint64(offset, true);
const putU32 = (view: DataView, offset: number, value: number): void => view.setUint32(offset, value, true);
const putU64 = (view: DataView, offset: number, value: number | bigint): void =>
  view.setBigUint64(offset, BigInt(value), true);

/** Reads numbers that have to fit 2^53 - 1, and so do size and offset together; -1 for one that does not. */
const safe = (view: DataView, offset: number): number => {
  const value = u64(view, offset);
  return value > MAX_SAFE ? -1 : Number(value);
};

const tooLarge = (what: string): MessageFault => messageFault("value", `${what} does not fit 2^53`);

function readArea(view: DataView, at: number, what: string): SharedArea | MessageFault {
  const size = safe(view, at);
  const offset = safe(view, at + 8);
  return size < 0 || offset < 0 || !Number.isSafeInteger(size + offset) ? tooLarge(what) : { size, offset };
}

function readRegion(view: DataView, at: number): MemoryRegionDescription | MessageFault {
  const guestAddress = safe(view, at);
  const size = safe(view, at + 8);
  const userAddress = u64(view, at + 16);
  const mmapOffset = safe(view, at + 24);
  if (size === 0) return messageFault("value", "a memory region without bytes");
  const ends = [guestAddress + size, mmapOffset + size];
  if (guestAddress < 0 || size < 0 || mmapOffset < 0 || !ends.every(Number.isSafeInteger))
    return tooLarge("a memory region");
  if (userAddress + BigInt(size) > 1n << 64n) return messageFault("value", "a memory region's user address wraps");
  return { guestAddress, size, userAddress, mmapOffset };
}

function writeRegion(view: DataView, at: number, region: MemoryRegionDescription): void {
  putU64(view, at, region.guestAddress);
  putU64(view, at + 8, region.size);
  putU64(view, at + 16, region.userAddress);
  putU64(view, at + 24, region.mmapOffset);
}

const vringFlags = (value: { index: number; hasDescriptor: boolean }): number =>
  value.index | (value.hasDescriptor ? 0 : VHOST_USER_VRING_NOFD_MASK);

function readVringFlags(value: bigint): VringDescriptor | MessageFault {
  if (value > BigInt(VHOST_USER_VRING_IDX_MASK | VHOST_USER_VRING_NOFD_MASK))
    return messageFault("value", `unknown bits beside a queue's index: 0x${value.toString(16)}`);
  const bits = Number(value);
  return { index: bits & VHOST_USER_VRING_IDX_MASK, hasDescriptor: (bits & VHOST_USER_VRING_NOFD_MASK) === 0 };
}

function readConfig(view: DataView): ConfigAccess | MessageFault {
  const size = u32(view, 4);
  if (size > MAX_CONFIG_SIZE || size !== view.byteLength - CONFIG_HEADER)
    return messageFault("size", `${size} bytes of configuration in ${view.byteLength - CONFIG_HEADER}`);
  const bytes = new Uint8Array(view.buffer, view.byteOffset + CONFIG_HEADER, size).slice();
  return { offset: u32(view, 0), flags: u32(view, 8), bytes };
}

const writeConfig = (value: ConfigAccess): Uint8Array =>
  build(CONFIG_HEADER + value.bytes.length, (view) => {
    putU32(view, 0, value.offset);
    putU32(view, 4, value.bytes.length);
    putU32(view, 8, value.flags);
    new Uint8Array(view.buffer, CONFIG_HEADER).set(value.bytes);
  });

const copyOf = (view: DataView): Uint8Array => new Uint8Array(view.buffer, view.byteOffset, view.byteLength).slice();

export const PAYLOADS: { readonly [K in PayloadKind]: PayloadCodec<Payloads[K]> } = {
  none: { min: 0, max: 0, encode: () => new Uint8Array(0), decode: () => undefined },
  u64: {
    min: 8,
    max: 8,
    encode: (value) => build(8, (view) => putU64(view, 0, value)),
    decode: (view) => u64(view, 0),
  },
  vringState: {
    min: 8,
    max: 8,
    encode: ({ index, num }) =>
      build(8, (view) => {
        putU32(view, 0, index);
        putU32(view, 4, num);
      }),
    decode: (view) => ({ index: u32(view, 0), num: u32(view, 4) }),
  },
  vringAddress: {
    min: 40,
    max: 40,
    encode: (value) =>
      build(40, (view) => {
        putU32(view, 0, value.index);
        putU32(view, 4, value.flags);
        putU64(view, 8, value.descriptor);
        putU64(view, 16, value.used);
        putU64(view, 24, value.available);
        putU64(view, 32, value.log);
      }),
    decode: (view) => ({
      index: u32(view, 0),
      flags: u32(view, 4),
      descriptor: u64(view, 8),
      used: u64(view, 16),
      available: u64(view, 24),
      log: u64(view, 32),
    }),
  },
  vringDescriptor: {
    min: 8,
    max: 8,
    encode: (value) => build(8, (view) => putU64(view, 0, vringFlags(value))),
    decode: (view) => readVringFlags(u64(view, 0)),
    descriptors: (value) => (value.hasDescriptor ? 1 : 0),
  },
  memoryTable: {
    min: 8,
    max: 8 + MAX_MEMORY_REGIONS * REGION_SIZE,
    encode: (regions) =>
      build(8 + regions.length * REGION_SIZE, (view) => {
        putU32(view, 0, regions.length);
        regions.forEach((region, i) => {
          writeRegion(view, 8 + i * REGION_SIZE, region);
        });
      }),
    decode: (view) => {
      const count = u32(view, 0);
      if (view.byteLength !== 8 + count * REGION_SIZE)
        return messageFault("size", `${count} memory regions in ${view.byteLength} bytes`);
      const regions: MemoryRegionDescription[] = [];
      for (let i = 0; i < count; i++) {
        const region = readRegion(view, 8 + i * REGION_SIZE);
        if (isMessageFault(region)) return region;
        regions.push(region);
      }
      return regions;
    },
    descriptors: (regions) => regions.length,
  },
  memoryRegion: {
    min: 8 + REGION_SIZE,
    max: 8 + REGION_SIZE,
    encode: (region) => build(8 + REGION_SIZE, (view) => writeRegion(view, 8, region)),
    decode: (view) => readRegion(view, 8),
  },
  log: {
    min: 16,
    max: 16,
    encode: ({ size, offset }) =>
      build(16, (view) => {
        putU64(view, 0, size);
        putU64(view, 8, offset);
      }),
    decode: (view) => readArea(view, 0, "the log"),
  },
  config: { min: CONFIG_HEADER, max: CONFIG_HEADER + MAX_CONFIG_SIZE, encode: writeConfig, decode: readConfig },
  configReply: {
    min: 0,
    max: CONFIG_HEADER + MAX_CONFIG_SIZE,
    encode: (value) => (value === undefined ? new Uint8Array(0) : writeConfig(value)),
    decode: (view) => {
      if (view.byteLength === 0) return undefined;
      return view.byteLength < CONFIG_HEADER ? messageFault("size", "a cut configuration") : readConfig(view);
    },
  },
  iotlb: {
    min: 32,
    max: 32,
    encode: (value) =>
      build(32, (view) => {
        putU64(view, 0, value.iova);
        putU64(view, 8, value.size);
        putU64(view, 16, value.userAddress);
        view.setUint8(24, value.permissions);
        view.setUint8(25, value.type);
      }),
    decode: (view) => ({
      iova: u64(view, 0),
      size: u64(view, 8),
      userAddress: u64(view, 16),
      permissions: view.getUint8(24),
      type: view.getUint8(25),
    }),
  },
  inflight: {
    // The fields end at 20; C's padding makes it 24, which is what everybody sends.
    min: 20,
    max: 24,
    encode: (value) =>
      build(24, (view) => {
        putU64(view, 0, value.size);
        putU64(view, 8, value.offset);
        view.setUint16(16, value.queues, true);
        view.setUint16(18, value.queueSize, true);
      }),
    decode: (view) => {
      if (view.byteLength !== 20 && view.byteLength !== 24) return messageFault("size", "a cut in-flight description");
      const area = readArea(view, 0, "the in-flight area");
      if (isMessageFault(area)) return area;
      return { ...area, queues: view.getUint16(16, true), queueSize: view.getUint16(18, true) };
    },
  },
  vringArea: {
    min: 24,
    max: 24,
    encode: (value) =>
      build(24, (view) => {
        putU64(view, 0, vringFlags(value));
        putU64(view, 8, value.size);
        putU64(view, 16, value.offset);
      }),
    decode: (view) => {
      const vring = readVringFlags(u64(view, 0));
      if (isMessageFault(vring)) return vring;
      const area = readArea(view, 8, "the area of a notifier");
      return isMessageFault(area) ? area : { ...vring, ...area };
    },
    descriptors: (value) => (value.hasDescriptor ? 1 : 0),
  },
  uuid: { min: 16, max: 16, encode: (value) => value.slice(), decode: copyOf },
  deviceState: {
    min: 8,
    max: 8,
    encode: ({ direction, phase }) =>
      build(8, (view) => {
        putU32(view, 0, direction);
        putU32(view, 4, phase);
      }),
    decode: (view) => {
      const [direction, phase] = [u32(view, 0), u32(view, 4)];
      if (direction > 1) return messageFault("value", `device state in the unknown direction ${direction}`);
      if (phase > 0) return messageFault("value", `device state in the unknown phase ${phase}`);
      return { direction, phase };
    },
  },
  bytes: { min: 0, max: MAX_BYTES, encode: (value) => value.slice(), decode: copyOf },
};

/** Bytes that a payload may have at most, of any kind. */
export const MAX_PAYLOAD = Math.max(...Object.values(PAYLOADS).map(({ max }) => max));
