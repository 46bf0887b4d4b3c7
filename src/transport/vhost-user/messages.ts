import { VirtkitError } from "../../common/error.ts";
import {
  VHOST_USER_HEADER_SIZE,
  VHOST_USER_NEED_REPLY_MASK,
  VHOST_USER_PROTOCOL_F_BACKEND_REQ,
  VHOST_USER_PROTOCOL_F_CONFIG,
  VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  VHOST_USER_PROTOCOL_F_CROSS_ENDIAN,
  VHOST_USER_PROTOCOL_F_CRYPTO_SESSION,
  VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  VHOST_USER_PROTOCOL_F_HOST_NOTIFIER,
  VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS,
  VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  VHOST_USER_PROTOCOL_F_LOG_SHMFD,
  VHOST_USER_PROTOCOL_F_MQ,
  VHOST_USER_PROTOCOL_F_MTU,
  VHOST_USER_PROTOCOL_F_PAGEFAULT,
  VHOST_USER_PROTOCOL_F_RARP,
  VHOST_USER_PROTOCOL_F_RESET_DEVICE,
  VHOST_USER_PROTOCOL_F_SHARED_OBJECT,
  VHOST_USER_PROTOCOL_F_STATUS,
  VHOST_USER_REPLY_MASK,
  VHOST_USER_VERSION,
  VHOST_USER_VERSION_MASK,
} from "../../spec/vhost-user.ts";
import {
  isMessageFault,
  MAX_PAYLOAD,
  type MessageFault,
  messageFault,
  PAYLOADS,
  type PayloadKind,
  type Payloads,
} from "./payloads.ts";

/** One line of the protocol's tables. */
export interface MessageDefinition {
  readonly id: number;
  readonly payload: PayloadKind;
  /** What always answers it. Without one, a request that needs a reply gets an acknowledgement: a u64, zero for success. */
  readonly reply?: PayloadKind;
  /** Descriptors that come with it, from and to; where the payload says how many, that holds. Default none. */
  readonly descriptors?: readonly [number, number];
  readonly replyDescriptors?: readonly [number, number];
  /** The protocol feature bit without which it must not be sent. */
  readonly feature?: number;
}

export type MessageTable = Readonly<Record<string, MessageDefinition>>;

/** Requests of the front end. */
export const FRONTEND_MESSAGES = {
  GET_FEATURES: { id: 1, payload: "none", reply: "u64" },
  SET_FEATURES: { id: 2, payload: "u64" },
  SET_OWNER: { id: 3, payload: "none" },
  RESET_OWNER: { id: 4, payload: "none" },
  SET_MEM_TABLE: { id: 5, payload: "memoryTable" },
  SET_LOG_BASE: { id: 6, payload: "log", descriptors: [0, 1], feature: VHOST_USER_PROTOCOL_F_LOG_SHMFD },
  SET_LOG_FD: { id: 7, payload: "none", descriptors: [1, 1] },
  SET_VRING_NUM: { id: 8, payload: "vringState" },
  SET_VRING_ADDR: { id: 9, payload: "vringAddress" },
  SET_VRING_BASE: { id: 10, payload: "vringState" },
  GET_VRING_BASE: { id: 11, payload: "vringState", reply: "vringState" },
  SET_VRING_KICK: { id: 12, payload: "vringDescriptor" },
  SET_VRING_CALL: { id: 13, payload: "vringDescriptor" },
  SET_VRING_ERR: { id: 14, payload: "vringDescriptor" },
  GET_PROTOCOL_FEATURES: { id: 15, payload: "none", reply: "u64" },
  SET_PROTOCOL_FEATURES: { id: 16, payload: "u64" },
  GET_QUEUE_NUM: { id: 17, payload: "none", reply: "u64", feature: VHOST_USER_PROTOCOL_F_MQ },
  SET_VRING_ENABLE: { id: 18, payload: "vringState" },
  SEND_RARP: { id: 19, payload: "u64", feature: VHOST_USER_PROTOCOL_F_RARP },
  NET_SET_MTU: { id: 20, payload: "u64", feature: VHOST_USER_PROTOCOL_F_MTU },
  SET_BACKEND_REQ_FD: { id: 21, payload: "none", descriptors: [1, 1], feature: VHOST_USER_PROTOCOL_F_BACKEND_REQ },
  IOTLB_MSG: { id: 22, payload: "iotlb", reply: "u64" },
  SET_VRING_ENDIAN: { id: 23, payload: "vringState", feature: VHOST_USER_PROTOCOL_F_CROSS_ENDIAN },
  GET_CONFIG: { id: 24, payload: "config", reply: "configReply", feature: VHOST_USER_PROTOCOL_F_CONFIG },
  SET_CONFIG: { id: 25, payload: "config", feature: VHOST_USER_PROTOCOL_F_CONFIG },
  CREATE_CRYPTO_SESSION: { id: 26, payload: "bytes", reply: "bytes", feature: VHOST_USER_PROTOCOL_F_CRYPTO_SESSION },
  CLOSE_CRYPTO_SESSION: { id: 27, payload: "u64", feature: VHOST_USER_PROTOCOL_F_CRYPTO_SESSION },
  POSTCOPY_ADVISE: {
    id: 28,
    payload: "none",
    reply: "none",
    replyDescriptors: [0, 1],
    feature: VHOST_USER_PROTOCOL_F_PAGEFAULT,
  },
  POSTCOPY_LISTEN: { id: 29, payload: "none", feature: VHOST_USER_PROTOCOL_F_PAGEFAULT },
  POSTCOPY_END: { id: 30, payload: "none", reply: "u64", feature: VHOST_USER_PROTOCOL_F_PAGEFAULT },
  GET_INFLIGHT_FD: {
    id: 31,
    payload: "inflight",
    reply: "inflight",
    replyDescriptors: [0, 1],
    feature: VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  },
  SET_INFLIGHT_FD: {
    id: 32,
    payload: "inflight",
    descriptors: [1, 1],
    feature: VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD,
  },
  GPU_SET_SOCKET: { id: 33, payload: "none", descriptors: [1, 1] },
  RESET_DEVICE: { id: 34, payload: "none", feature: VHOST_USER_PROTOCOL_F_RESET_DEVICE },
  VRING_KICK: { id: 35, payload: "vringState", feature: VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS },
  GET_MAX_MEM_SLOTS: {
    id: 36,
    payload: "none",
    reply: "u64",
    feature: VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  },
  ADD_MEM_REG: {
    id: 37,
    payload: "memoryRegion",
    descriptors: [1, 1],
    feature: VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  },
  // Some front ends send the region's descriptor along; a back end takes it and closes it.
  REM_MEM_REG: {
    id: 38,
    payload: "memoryRegion",
    descriptors: [0, 1],
    feature: VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  },
  SET_STATUS: { id: 39, payload: "u64", feature: VHOST_USER_PROTOCOL_F_STATUS },
  GET_STATUS: { id: 40, payload: "none", reply: "u64", feature: VHOST_USER_PROTOCOL_F_STATUS },
  GET_SHARED_OBJECT: {
    id: 41,
    payload: "uuid",
    reply: "bytes",
    replyDescriptors: [0, 1],
    feature: VHOST_USER_PROTOCOL_F_SHARED_OBJECT,
  },
  SET_DEVICE_STATE_FD: {
    id: 42,
    payload: "deviceState",
    reply: "u64",
    descriptors: [1, 1],
    replyDescriptors: [0, 1],
    feature: VHOST_USER_PROTOCOL_F_DEVICE_STATE,
  },
  CHECK_DEVICE_STATE: { id: 43, payload: "none", reply: "u64", feature: VHOST_USER_PROTOCOL_F_DEVICE_STATE },
} as const satisfies MessageTable;

/** Requests of the back end, over the socket of SET_BACKEND_REQ_FD. */
export const BACKEND_MESSAGES = {
  IOTLB_MSG: { id: 1, payload: "iotlb" },
  CONFIG_CHANGE_MSG: { id: 2, payload: "none", feature: VHOST_USER_PROTOCOL_F_CONFIG },
  VRING_HOST_NOTIFIER_MSG: { id: 3, payload: "vringArea", feature: VHOST_USER_PROTOCOL_F_HOST_NOTIFIER },
  VRING_CALL: { id: 4, payload: "vringState", feature: VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS },
  VRING_ERR: { id: 5, payload: "vringState", feature: VHOST_USER_PROTOCOL_F_INBAND_NOTIFICATIONS },
  SHARED_OBJECT_ADD: { id: 6, payload: "uuid", feature: VHOST_USER_PROTOCOL_F_SHARED_OBJECT },
  SHARED_OBJECT_REMOVE: { id: 7, payload: "uuid", feature: VHOST_USER_PROTOCOL_F_SHARED_OBJECT },
  SHARED_OBJECT_LOOKUP: {
    id: 8,
    payload: "uuid",
    reply: "u64",
    replyDescriptors: [0, 1],
    feature: VHOST_USER_PROTOCOL_F_SHARED_OBJECT,
  },
} as const satisfies MessageTable;

/** The name of a table's message. */
export type MessageName<T extends MessageTable> = keyof T & string;
/** What a request carries. */
export type RequestPayload<T extends MessageTable, N extends MessageName<T>> = Payloads[T[N]["payload"]];
/** What answers it: its reply, or an acknowledgement. */
export type ReplyPayload<T extends MessageTable, N extends MessageName<T>> = T[N] extends {
  readonly reply: infer K extends PayloadKind;
}
  ? Payloads[K]
  : bigint;

/** A request as it came, told apart by its name. */
export type Request<T extends MessageTable> = {
  readonly [N in MessageName<T>]: {
    readonly name: N;
    readonly payload: RequestPayload<T, N>;
    /** The sender waits for a reply, or an acknowledgement where there is none. */
    readonly needReply: boolean;
  };
}[MessageName<T>];

export interface MessageHeader {
  readonly request: number;
  readonly reply: boolean;
  readonly needReply: boolean;
  /** Bytes of the payload, which follow. */
  readonly size: number;
}

/**
 * Takes the first twelve bytes of a message apart. The payload is read after it, of exactly `size` bytes, so that descriptors stay with
 * their message.
 */
export function decodeHeader(bytes: Uint8Array): MessageHeader | MessageFault {
  if (bytes.length !== VHOST_USER_HEADER_SIZE) return messageFault("header", `a header of ${bytes.length} bytes`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const flags = view.getUint32(4, true);
  const size = view.getUint32(8, true);
  if ((flags & VHOST_USER_VERSION_MASK) !== VHOST_USER_VERSION)
    return messageFault("header", `version ${flags & VHOST_USER_VERSION_MASK} of the protocol`);
  if (size > MAX_PAYLOAD) return messageFault("size", `a payload of ${size} bytes`);
  return {
    request: view.getUint32(0, true),
    reply: (flags & VHOST_USER_REPLY_MASK) !== 0,
    needReply: (flags & VHOST_USER_NEED_REPLY_MASK) !== 0,
    size,
  };
}

/** The most descriptors that any message of a table may carry, to be given as the limit before one is known. */
export const MAX_MESSAGE_DESCRIPTORS = 32;

/**
 * Checks a request against its table.
 * @param payload exactly `header.size` bytes
 * @param descriptors how many came with it
 * @returns the request, or what is wrong with it ("unknown" for a number that the table does not have)
 */
export function decodeRequest<T extends MessageTable>(
  table: T,
  header: MessageHeader,
  payload: Uint8Array,
  descriptors: number,
): Request<T> | MessageFault {
  const name = nameOf(table, header.request);
  if (name === undefined) return messageFault("unknown", `unknown request ${header.request}`);
  if (header.reply) return messageFault("header", `${name} is a reply where a request should be`);
  const definition = table[name] as MessageDefinition;
  const value = decodePayload(name, definition.payload, definition.descriptors, payload, descriptors);
  // Which payload belongs to which name is what the table says.
  return isMessageFault(value) ? value : ({ name, payload: value, needReply: header.needReply } as Request<T>);
}

/** Checks the reply to a request `name`, or its acknowledgement. Parameters as for {@link decodeRequest}. */
export function decodeReply<T extends MessageTable, N extends MessageName<T>>(
  table: T,
  name: N,
  header: MessageHeader,
  payload: Uint8Array,
  descriptors: number,
): { readonly payload: ReplyPayload<T, N> } | MessageFault {
  const definition = table[name] as MessageDefinition;
  if (!header.reply || header.request !== definition.id)
    return messageFault("header", `message ${header.request} where the reply to ${name} should be`);
  const kind = definition.reply ?? "u64";
  const value = decodePayload(name, kind, definition.replyDescriptors, payload, descriptors);
  return isMessageFault(value) ? value : { payload: value as ReplyPayload<T, N> };
}

/**
 * A request as bytes.
 * @throws ERR_VIRTKIT_VHOST_MESSAGE when a value does not fit its field
 */
export function encodeRequest<T extends MessageTable, N extends MessageName<T>>(
  table: T,
  name: N,
  payload: RequestPayload<T, N>,
  options: { needReply?: boolean } = {},
): Uint8Array {
  const definition = table[name] as MessageDefinition;
  const flags = options.needReply === true ? VHOST_USER_NEED_REPLY_MASK : 0;
  return encode(name, definition.id, flags, definition.payload, payload);
}

/**
 * The reply to a request as bytes; for a request that has none, an acknowledgement: zero for success.
 * @throws ERR_VIRTKIT_VHOST_MESSAGE when a value does not fit its field
 */
export function encodeReply<T extends MessageTable, N extends MessageName<T>>(
  table: T,
  name: N,
  payload: ReplyPayload<T, N>,
): Uint8Array {
  const definition = table[name] as MessageDefinition;
  return encode(name, definition.id, VHOST_USER_REPLY_MASK, definition.reply ?? "u64", payload);
}

const names = new WeakMap<MessageTable, ReadonlyMap<number, string>>();

function nameOf(table: MessageTable, id: number): string | undefined {
  let map = names.get(table);
  if (map === undefined) {
    map = new Map(Object.entries(table).map(([name, definition]) => [definition.id, name]));
    names.set(table, map);
  }
  return map.get(id);
}

/** A codec whose values are what its own kind says: the table pairs the two. */
interface AnyCodec {
  readonly min: number;
  readonly max: number;
  encode(value: unknown): Uint8Array;
  decode(view: DataView): unknown;
  descriptors?(value: unknown): number;
}

function decodePayload(
  name: string,
  kind: PayloadKind,
  allowed: readonly [number, number] | undefined,
  bytes: Uint8Array,
  descriptors: number,
): unknown {
  const codec = PAYLOADS[kind] as AnyCodec;
  if (bytes.length < codec.min || bytes.length > codec.max)
    return messageFault("size", `${name} with ${bytes.length} bytes`);
  const value = codec.decode(new DataView(bytes.buffer, bytes.byteOffset, bytes.length));
  if (isMessageFault(value)) return messageFault(value.fault, `${name}: ${value.message}`);
  const exact = codec.descriptors?.(value);
  const [low, high] = exact === undefined ? (allowed ?? [0, 0]) : [exact, exact];
  if (descriptors < low || descriptors > high)
    return messageFault("descriptors", `${name} with ${descriptors} descriptors instead of ${high}`);
  return value;
}

function encode(name: string, id: number, flags: number, kind: PayloadKind, value: unknown): Uint8Array {
  const payload = encodePayload(PAYLOADS[kind] as AnyCodec, value);
  if (payload === undefined)
    throw new VirtkitError("ERR_VIRTKIT_VHOST_MESSAGE", `${name}: a value does not fit its field; see its type`);
  const bytes = new Uint8Array(VHOST_USER_HEADER_SIZE + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, id, true);
  view.setUint32(4, VHOST_USER_VERSION | flags, true);
  view.setUint32(8, payload.length, true);
  bytes.set(payload, VHOST_USER_HEADER_SIZE);
  return bytes;
}

/** The bytes, unless the peer would not read them as what was meant. */
function encodePayload(codec: AnyCodec, value: unknown): Uint8Array | undefined {
  let payload: Uint8Array;
  try {
    payload = codec.encode(value);
  } catch {
    return undefined;
  }
  if (payload.length > codec.max || payload.length < codec.min) return undefined;
  const read = codec.decode(new DataView(payload.buffer, payload.byteOffset, payload.length));
  return isMessageFault(read) || !same(read, value) ? undefined : payload;
}

/** Whether two payloads are the same: numbers, and plain objects and arrays of them. */
function same(a: unknown, b: unknown): boolean {
  if (typeof a !== "object" || typeof b !== "object" || a === null || b === null) return a === b;
  const keys = Object.keys(a);
  if (ArrayBuffer.isView(a) && keys.length !== Object.keys(b).length) return false;
  return keys.every((key) => same((a as Record<string, unknown>)[key], (b as Record<string, unknown>)[key]));
}
