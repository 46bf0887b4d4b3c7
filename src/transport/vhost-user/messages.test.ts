import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import {
  BACKEND_MESSAGES,
  decodeHeader,
  decodeReply,
  decodeRequest,
  encodeReply,
  encodeRequest,
  FRONTEND_MESSAGES,
  MAX_MESSAGE_DESCRIPTORS,
  type MessageDefinition,
  type MessageHeader,
  type MessageTable,
} from "./messages.ts";
import { isMessageFault, MAX_MEMORY_REGIONS, MAX_PAYLOAD, type MessageFault, type PayloadKind } from "./payloads.ts";

const limit = { timeout: 60_000 };
const tables: Record<string, MessageTable> = { frontend: FRONTEND_MESSAGES, backend: BACKEND_MESSAGES };

const record = <T>(model: { [K in keyof T]: fc.Arbitrary<T[K]> }) => fc.record<T>(model, { noNullPrototype: true });
const u32 = fc.nat(0xffffffff);
const u64 = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });
const half = fc.integer({ min: 0, max: 2 ** 52 - 1 });
const region = record({
  guestAddress: half,
  size: fc.integer({ min: 1, max: 2 ** 52 }),
  userAddress: fc.bigInt({ min: 0n, max: 2n ** 64n - 2n ** 53n }),
  mmapOffset: half,
});
const index = fc.nat(255);
const u16 = fc.nat(0xffff);
const uuid = fc.uint8Array({ minLength: 16, maxLength: 16 });
const config = record({ offset: u32, flags: u32, bytes: fc.uint8Array({ maxLength: 300 }) });

/** Values of each kind of payload. */
const values: Record<PayloadKind, fc.Arbitrary<unknown>> = {
  none: fc.constant(undefined),
  u64,
  vringState: record({ index: u32, num: u32 }),
  vringAddress: record({ index: u32, flags: u32, descriptor: u64, used: u64, available: u64, log: u64 }),
  vringDescriptor: record({ index, hasDescriptor: fc.boolean() }),
  memoryTable: fc.array(region, { maxLength: MAX_MEMORY_REGIONS }),
  memoryRegion: region,
  log: record({ size: half, offset: half }),
  config,
  configReply: fc.option(config, { nil: undefined }),
  iotlb: record({ iova: u64, size: u64, userAddress: u64, permissions: index, type: index }),
  inflight: record({ size: half, offset: half, queues: u16, queueSize: u16 }),
  vringArea: record({ index, hasDescriptor: fc.boolean(), size: half, offset: half }),
  uuid,
  deviceState: record({ direction: fc.nat(1), phase: fc.constant(0) }),
  bytes: fc.uint8Array({ maxLength: 100 }),
};

/** How many descriptors a value of this message comes with: from and to. */
function descriptorsOf(kind: PayloadKind, value: unknown, allowed: readonly [number, number] | undefined) {
  if (kind === "memoryTable") return [(value as unknown[]).length, (value as unknown[]).length] as const;
  if (kind === "vringDescriptor" || kind === "vringArea") {
    const count = (value as { hasDescriptor: boolean }).hasDescriptor ? 1 : 0;
    return [count, count] as const;
  }
  return allowed ?? ([0, 0] as const);
}

function split(bytes: Uint8Array): { header: MessageHeader; payload: Uint8Array } {
  const header = decodeHeader(bytes.subarray(0, 12));
  assert.ok(!isMessageFault(header), JSON.stringify(header));
  assert.equal(header.size, bytes.length - 12);
  return { header, payload: bytes.subarray(12) };
}

const plain = (value: unknown): unknown => (value instanceof Uint8Array ? [...value] : value);
const faultOf = (value: unknown): string | undefined => (isMessageFault(value) ? value.fault : undefined);

const messages = Object.entries(tables).flatMap(([side, table]) =>
  Object.entries(table).map(([name, definition]) => ({
    side,
    table,
    name,
    definition: definition as MessageDefinition,
  })),
);

test("numbers are the protocol's, without a gap or a double", limit, () => {
  const numbers = (table: MessageTable) => Object.values(table).map(({ id }) => id);
  assert.deepEqual(
    numbers(FRONTEND_MESSAGES),
    Array.from({ length: 43 }, (_, i) => i + 1),
  );
  assert.deepEqual(
    numbers(BACKEND_MESSAGES),
    Array.from({ length: 8 }, (_, i) => i + 1),
  );
});

for (const { side, table, name, definition } of messages) {
  test(
    `${side} ${name}: what is encoded is decoded, and nothing cut, longer or with other descriptors is`,
    limit,
    () => {
      const property = fc.property(values[definition.payload], fc.boolean(), (value, needReply) => {
        const { header, payload } = split(encodeRequest(table, name, value as never, { needReply }));
        const [low, high] = descriptorsOf(definition.payload, value, definition.descriptors);
        for (let count = 0; count <= high + 1; count++) {
          const decoded = decodeRequest(table, header, payload, count);
          if (count < low || count > high) assert.equal(faultOf(decoded), "descriptors");
          else assert.deepEqual(decoded, { name, payload: value, needReply });
        }
        if (definition.payload === "bytes") return;
        for (const other of [payload.subarray(0, -1), new Uint8Array([...payload, 0])])
          if (other.length !== payload.length) assert.equal(faultOf(decodeRequest(table, header, other, low)), "size");
      });
      fc.assert(property, { numRuns: 60 });
    },
  );

  test(`${side} ${name}: its reply, or its acknowledgement`, limit, () => {
    const kind = definition.reply ?? "u64";
    const property = fc.property(values[kind], (value) => {
      const { header, payload } = split(encodeReply(table, name, value as never));
      const [low, high] = descriptorsOf(kind, value, definition.replyDescriptors);
      const decoded = decodeReply(table, name, header, payload, high);
      assert.deepEqual(plain((decoded as { payload: unknown }).payload), plain(value));
      assert.equal(faultOf(decodeReply(table, name, header, payload, high + 1)), "descriptors");
      assert.equal(faultOf(decodeReply(table, name, { ...header, reply: false }, payload, low)), "header");
      assert.equal(faultOf(decodeReply(table, name, { ...header, request: 99 }, payload, low)), "header");
      assert.equal(faultOf(decodeRequest(table, header, payload, low)), "header");
    });
    fc.assert(property, { numRuns: 20 });
  });
}

test("the layout is the protocol's, byte by byte", limit, () => {
  const is = (bytes: Uint8Array, expected: string) =>
    assert.equal(Buffer.from(bytes).toString("hex"), expected.replaceAll(" ", ""));
  const frontend = FRONTEND_MESSAGES;
  is(
    encodeRequest(frontend, "SET_VRING_KICK", { index: 3, hasDescriptor: false }),
    "0c000000 01000000 08000000 0301000000000000",
  );
  const area = { guestAddress: 0x100000000, size: 0x1000, userAddress: 0x7f0000000000n, mmapOffset: 0xc0000000 };
  const region = "0000000001000000 0010000000000000 00000000007f0000 000000c000000000";
  is(
    encodeRequest(frontend, "SET_MEM_TABLE", [area], { needReply: true }),
    `05000000 09000000 28000000 01000000 00000000 ${region}`,
  );
  is(encodeRequest(frontend, "ADD_MEM_REG", area), `25000000 01000000 28000000 0000000000000000 ${region}`);
  const address = { index: 2, flags: 1, descriptor: 0x10n, used: 0x20n, available: 0x30n, log: 0x40n };
  is(
    encodeRequest(frontend, "SET_VRING_ADDR", address),
    "09000000 01000000 28000000 02000000 01000000 1000000000000000 2000000000000000 3000000000000000 4000000000000000",
  );
  is(encodeReply(frontend, "GET_FEATURES", 1n << 32n), "01000000 05000000 08000000 0000000001000000");
  is(
    encodeReply(frontend, "GET_CONFIG", { offset: 2, flags: 1, bytes: Uint8Array.of(7, 8) }),
    "18000000 05000000 0e000000 02000000 02000000 01000000 0708",
  );
  is(encodeReply(frontend, "GET_CONFIG", undefined), "18000000 05000000 00000000");
  is(
    encodeRequest(frontend, "SET_INFLIGHT_FD", { size: 0x2000, offset: 1, queues: 4, queueSize: 128 }),
    "20000000 01000000 18000000 0020000000000000 0100000000000000 0400 8000 00000000",
  );
  is(
    encodeRequest(frontend, "SET_DEVICE_STATE_FD", { direction: 1, phase: 0 }),
    "2a000000 01000000 08000000 01000000 00000000",
  );
  is(encodeRequest(BACKEND_MESSAGES, "CONFIG_CHANGE_MSG", undefined), "02000000 01000000 00000000");
  const notifier = { index: 1, hasDescriptor: true, size: 4096, offset: 8192 };
  is(
    encodeRequest(BACKEND_MESSAGES, "VRING_HOST_NOTIFIER_MSG", notifier),
    "03000000 01000000 18000000 0100000000000000 0010000000000000 0020000000000000",
  );
});

test("values that cannot be are the peer's fault", limit, () => {
  const good = encodeRequest(FRONTEND_MESSAGES, "ADD_MEM_REG", {
    guestAddress: 0,
    size: 4096,
    userAddress: 0n,
    mmapOffset: 0,
  });
  const changed = (offset: number, value: bigint) => {
    const bytes = good.slice();
    new DataView(bytes.buffer).setBigUint64(12 + offset, value, true);
    const { header, payload } = split(bytes);
    return faultOf(decodeRequest(FRONTEND_MESSAGES, header, payload, 1));
  };
  assert.equal(changed(8, 4096n), undefined);
  for (const [offset, value] of [
    [8, 1n << 53n],
    [8, (1n << 53n) - 4096n],
    [16, 0n],
    [16, 1n << 53n],
    [24, (1n << 64n) - 4095n],
    [32, (1n << 53n) - 4096n],
    [32, 1n << 63n],
  ] as const)
    assert.equal(changed(offset, value), "value", `${value} at ${offset}`);
  const raw = (id: number, payload: number[], descriptors = 0) =>
    faultOf(
      decodeRequest(
        FRONTEND_MESSAGES,
        { request: id, reply: false, needReply: false, size: payload.length },
        Uint8Array.from(payload),
        descriptors,
      ),
    );
  assert.equal(raw(12, [1, 2, 0, 0, 0, 0, 0, 0]), "value", "unknown bits of a kick");
  assert.equal(raw(12, [1, 0, 0, 0, 0, 0, 0, 0]), "descriptors", "a kick without its descriptor");
  assert.equal(raw(42, [2, 0, 0, 0, 0, 0, 0, 0], 1), "value");
  assert.equal(raw(42, [0, 0, 0, 0, 1, 0, 0, 0], 1), "value");
  assert.equal(raw(5, [255, 255, 255, 255, 0, 0, 0, 0]), "size", "more regions than bytes");
  assert.equal(raw(24, [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 9]), "size", "a length that lies");
  assert.equal(raw(44, []), "unknown");
  assert.equal(raw(0, []), "unknown");
});

test("headers: version, size, and nothing but twelve bytes", limit, () => {
  const header = (flags: number, size: number) => {
    const words = new Uint32Array([1, flags, size]);
    return decodeHeader(new Uint8Array(words.buffer));
  };
  assert.deepEqual(header(0b1101, 8), { request: 1, reply: true, needReply: true, size: 8 });
  for (const version of [0, 2, 3]) assert.equal((header(version, 8) as MessageFault).fault, "header");
  assert.equal((header(1, MAX_PAYLOAD + 1) as MessageFault).fault, "size");
  assert.equal((header(1, 0xffffffff) as MessageFault).fault, "size");
  assert.equal((decodeHeader(new Uint8Array(11)) as MessageFault).fault, "header");
});

test("what a caller cannot mean is thrown", limit, () => {
  const code = { code: "ERR_VIRTKIT_VHOST_MESSAGE" };
  const state = (index: number, num: number) => () => encodeRequest(FRONTEND_MESSAGES, "SET_VRING_NUM", { index, num });
  for (const [i, n] of [
    [-1, 0],
    [0, 2 ** 32],
    [0.5, 0],
    [0, Number.NaN],
  ] as const)
    assert.throws(state(i, n), code);
  assert.throws(() => encodeRequest(FRONTEND_MESSAGES, "SET_FEATURES", 1n << 64n), code);
  assert.throws(() => encodeRequest(FRONTEND_MESSAGES, "SET_VRING_CALL", { index: 256, hasDescriptor: true }), code);
  assert.throws(() => encodeRequest(FRONTEND_MESSAGES, "SET_LOG_BASE", { size: 1.5, offset: 0 }), code);
  const bytes = new Uint8Array(2000);
  assert.throws(() => encodeRequest(FRONTEND_MESSAGES, "SET_CONFIG", { offset: 0, flags: 0, bytes }), code);
  const one = { guestAddress: 0, size: 4096, userAddress: 0n, mmapOffset: 0 };
  const many = Array.from({ length: MAX_MEMORY_REGIONS + 1 }, () => one);
  assert.throws(() => encodeRequest(FRONTEND_MESSAGES, "SET_MEM_TABLE", many), code);
  assert.throws(() => encodeRequest(BACKEND_MESSAGES, "SHARED_OBJECT_ADD", new Uint8Array(15)), code);
});

test("any bytes at all are a message or a fault, and a message says the same again", limit, () => {
  const size = fc.oneof(fc.constantFrom(0, 8, 16, 24, 32, 40, 72), fc.nat(120));
  const bytes = size.chain((length) => fc.uint8Array({ minLength: length, maxLength: length }));
  const property = fc.property(fc.nat(46), bytes, fc.nat(MAX_MESSAGE_DESCRIPTORS), (id, payload, descriptors) => {
    const header = { request: id, reply: false, needReply: false, size: payload.length };
    for (const table of Object.values(tables)) {
      // A payload that begins behind other bytes, as in a buffer that is used again.
      const shifted = new Uint8Array([9, 9, 9, ...payload]).subarray(3);
      const request = decodeRequest(table, header, shifted, descriptors);
      if (isMessageFault(request)) {
        assert.ok(request.message.length > 0);
        continue;
      }
      const again = split(encodeRequest(table, request.name, request.payload as never));
      assert.deepEqual(decodeRequest(table, again.header, again.payload, descriptors), request);
    }
  });
  fc.assert(property, { numRuns: 5000 });
});
