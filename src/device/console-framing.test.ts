import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { MemoryCharBackend } from "../backend/char/memory.ts";
import { FeatureSet } from "../common/feature-set.ts";
import {
  VIRTIO_CONSOLE_CONSOLE_PORT,
  VIRTIO_CONSOLE_DEVICE_ADD,
  VIRTIO_CONSOLE_DEVICE_READY,
  VIRTIO_CONSOLE_DEVICE_REMOVE,
  VIRTIO_CONSOLE_F_MULTIPORT,
  VIRTIO_CONSOLE_PORT_NAME,
  VIRTIO_CONSOLE_PORT_OPEN,
  VIRTIO_CONSOLE_PORT_READY,
  VIRTIO_CONSOLE_RESIZE,
} from "../spec/console.ts";
import { VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { cut, RAW_DATA, RawDevice } from "../testing/raw-device.ts";
import { testEnvironment } from "../testing/rig.ts";
import { statements } from "../testing/statements.ts";
import { ConsoleDevice, type ConsoleDeviceOptions } from "./console.ts";

const limit = { timeout: 30_000 };
const FEATURES = FeatureSet.of(VIRTIO_F_VERSION_1, VIRTIO_F_INDIRECT_DESC, VIRTIO_CONSOLE_F_MULTIPORT);
const CONTROL_RX = 2;
const CONTROL_TX = 3;
const RX1 = 4;

/** Buffers of 64 bytes for what the device sends, from here on. */
const INBOX = RAW_DATA + 0x8000;
const OUTBOX = RAW_DATA + 0x1000;

interface Message {
  readonly id: number;
  readonly event: number;
  readonly value: number;
  readonly extra: Buffer;
}

function bench(options: Partial<ConsoleDeviceOptions> = {}) {
  const device = new ConsoleDevice({ environment: testEnvironment, maxPorts: 3, ...options });
  const terminal = new MemoryCharBackend({ capacity: 4096 });
  const agent = new MemoryCharBackend({ capacity: 4096 });
  device.addPort({ kind: "console", backend: terminal });
  device.addPort({ kind: "serial", backend: agent, name: "agent" });
  const raw = new RawDevice(device, FEATURES);
  let posted = 0;
  let seen = 0;
  const post = (count = 1) => {
    for (let i = 0; i < count; i++) raw.offer(CONTROL_RX, [], [{ address: INBOX + 64 * posted++, length: 64 }]);
    raw.kick(CONTROL_RX);
  };
  /** Control messages that arrived since the last look. */
  const messages = (): Message[] => {
    const all = raw.used(CONTROL_RX);
    const fresh = all.slice(seen).map(({ length }, i) => {
      const bytes = Buffer.alloc(length);
      raw.memory.read(INBOX + 64 * (seen + i), bytes);
      return {
        id: bytes.readUInt32LE(0),
        event: bytes.readUInt16LE(4),
        value: bytes.readUInt16LE(6),
        extra: bytes.subarray(8),
      };
    });
    seen = all.length;
    return fresh;
  };
  const send = (id: number, event: number, value: number, length = 8, cuts: readonly number[] = []) => {
    const bytes = Buffer.alloc(16);
    bytes.writeUInt32LE(id, 0);
    bytes.writeUInt16LE(event, 4);
    bytes.writeUInt16LE(value, 6);
    raw.memory.write(OUTBOX, bytes);
    raw.offer(CONTROL_TX, cut(OUTBOX, length, cuts), []);
    raw.kick(CONTROL_TX);
  };
  return { device, raw, terminal, agent, post, messages, send };
}

const brief = (messages: readonly Message[]) => messages.map(({ id, event, value }) => [id, event, value]);

test("console control: the whole conversation, in the order that Linux has it", limit, () => {
  const { device, raw, agent, post, messages, send } = bench({ cols: 80, rows: 25 });
  post(20);
  assert.deepEqual(messages(), []);
  send(0xffffffff, VIRTIO_CONSOLE_DEVICE_READY, 1);
  assert.deepEqual(brief(messages()), [
    [0, VIRTIO_CONSOLE_DEVICE_ADD, 1],
    [1, VIRTIO_CONSOLE_DEVICE_ADD, 1],
  ]);
  send(0, VIRTIO_CONSOLE_PORT_READY, 1, 8, [1, 2, 5, 7]);
  const console0 = messages();
  assert.deepEqual(brief(console0), [
    [0, VIRTIO_CONSOLE_CONSOLE_PORT, 1],
    [0, VIRTIO_CONSOLE_RESIZE, 0],
    [0, VIRTIO_CONSOLE_PORT_OPEN, 1],
  ]);
  assert.deepEqual([...(console0[1]?.extra ?? [])], [80, 0, 25, 0]);
  send(1, VIRTIO_CONSOLE_PORT_READY, 1);
  const port1 = messages();
  assert.deepEqual(brief(port1), [
    [1, VIRTIO_CONSOLE_PORT_NAME, 1],
    [1, VIRTIO_CONSOLE_PORT_OPEN, 1],
  ]);
  assert.equal(port1[0]?.extra.toString(), "agent");
  send(1, VIRTIO_CONSOLE_PORT_OPEN, 1);
  assert.equal(agent.stream.guestOpen, true);
  agent.stream.setOpen(false);
  device.resize(1, 2);
  send(0xffffffff, VIRTIO_CONSOLE_DEVICE_READY, 1);
  device.removePort(1);
  assert.deepEqual(brief(messages()), [
    [1, VIRTIO_CONSOLE_PORT_OPEN, 0],
    [0, VIRTIO_CONSOLE_RESIZE, 0],
    [1, VIRTIO_CONSOLE_DEVICE_REMOVE, 1],
  ]);
  assert.equal(device.faults, 0);
  assert.ok(raw.used(CONTROL_TX).every(({ length }) => length === 0));
});

test("console control: sizes for a Linux that wants rows first", limit, () => {
  const { post, messages, send } = bench({ cols: 80, rows: 25, resizeOrder: "rows-cols" });
  post(20);
  send(0, VIRTIO_CONSOLE_DEVICE_READY, 1);
  send(0, VIRTIO_CONSOLE_PORT_READY, 1);
  assert.deepEqual([...(messages().find(({ event }) => event === VIRTIO_CONSOLE_RESIZE)?.extra ?? [])], [25, 0, 80, 0]);
});

test("console control: messages wait for buffers in order, within bounds", limit, () => {
  const { device, post, messages, send } = bench();
  send(0, VIRTIO_CONSOLE_DEVICE_READY, 1);
  for (let i = 0; i < 2000; i++) send(1, VIRTIO_CONSOLE_PORT_READY, 1);
  assert.equal(device.lostMessages, 2 + 4000 - 1024);
  post(1);
  assert.deepEqual(brief(messages()), [[0, VIRTIO_CONSOLE_DEVICE_ADD, 1]]);
  post(2);
  assert.deepEqual(brief(messages()), [
    [1, VIRTIO_CONSOLE_DEVICE_ADD, 1],
    [1, VIRTIO_CONSOLE_PORT_NAME, 1],
  ]);
});

test("console control: what makes no sense is ignored and counted", limit, () => {
  const { device, raw, post, messages, send } = bench();
  post(20);
  send(1, VIRTIO_CONSOLE_PORT_READY, 1);
  send(0, VIRTIO_CONSOLE_DEVICE_READY, 0);
  send(0, VIRTIO_CONSOLE_DEVICE_READY, 1);
  messages();
  const before = device.faults;
  assert.equal(before, 2);
  const nonsense: [number, number, number, number?][] = [
    [2, VIRTIO_CONSOLE_PORT_READY, 1],
    [0xffffffff, VIRTIO_CONSOLE_PORT_OPEN, 1],
    [1, VIRTIO_CONSOLE_PORT_READY, 0],
    [1, 99, 0],
    [1, VIRTIO_CONSOLE_DEVICE_ADD, 0],
    [1, VIRTIO_CONSOLE_PORT_OPEN, 1, 7],
    [1, VIRTIO_CONSOLE_PORT_OPEN, 1, 1],
  ];
  for (const [id, event, value, length] of nonsense) send(id, event, value, length);
  assert.equal(device.faults, before + nonsense.length);
  assert.deepEqual(messages(), []);
  assert.equal(device.broken, undefined);
  assert.equal(raw.used(CONTROL_TX).length, nonsense.length + 3);
});

test("console: random chains on every queue: each comes back or waits, no stray byte, nothing thrown", limit, () => {
  const chain = fc.record({
    queue: fc.nat(4).map((i) => [0, 1, CONTROL_RX, CONTROL_TX, RX1][i] as number),
    out: fc.nat(300),
    in: fc.nat(300),
    cuts: fc.array(fc.nat(300), { maxLength: 6 }),
    indirect: fc.boolean(),
    bytes: fc.uint8Array({ minLength: 8, maxLength: 8 }),
    host: fc.nat(40),
  });
  fc.assert(
    fc.property(fc.array(chain, { maxLength: 40 }), (chains) => {
      const { device, raw, terminal, agent, send } = bench();
      send(0, VIRTIO_CONSOLE_DEVICE_READY, 1);
      send(0, VIRTIO_CONSOLE_PORT_OPEN, 1);
      for (const { queue, out, in: in_, cuts, indirect, bytes, host } of chains) {
        if (out + in_ === 0) continue;
        raw.memory.write(OUTBOX, bytes);
        const untouched = raw.bytes();
        const pieces = (at: number, length: number) => (length === 0 ? [] : cut(at, length, cuts));
        raw.offer(queue, pieces(OUTBOX, out), pieces(INBOX, in_), indirect);
        raw.kick(queue);
        terminal.stream.write(new Uint8Array(host).fill(7));
        agent.stream.write(new Uint8Array(host).fill(8));
        terminal.stream.read(host * 3);
        const after = raw.bytes();
        // Earlier chains may be filled now: all writable buffers lie in this window.
        untouched.set(after.subarray(INBOX - RAW_DATA, INBOX - RAW_DATA + 300), INBOX - RAW_DATA);
        assert.deepEqual(after, untouched);
        assert.equal(device.broken, undefined);
      }
      device.reset();
    }),
    { numRuns: 100 },
  );
});

test(
  statements(
    "console: bytes go into buffers of any cut, and an empty one comes back at once",
    "device: Basic Facilities of a Virtio Device / Message Framing #1",
  ),
  limit,
  () => {
    const { device, raw, agent, send } = bench();
    send(0, VIRTIO_CONSOLE_DEVICE_READY, 1);
    send(1, VIRTIO_CONSOLE_PORT_OPEN, 1);
    raw.offer(RX1, [], cut(INBOX, 10, [1, 2, 9]));
    raw.offer(RX1, [{ address: OUTBOX, length: 4 }], []);
    raw.offer(RX1, [], [{ address: INBOX + 100, length: 50 }]);
    raw.kick(RX1);
    assert.equal(agent.stream.write(Buffer.from("0123456789abcdef")), 16);
    assert.deepEqual(
      raw.used(RX1).map(({ length }) => length),
      [10, 0, 6],
    );
    const bytes = Buffer.alloc(106);
    raw.memory.read(INBOX, bytes);
    assert.equal(bytes.subarray(0, 10).toString() + bytes.subarray(100).toString(), "0123456789abcdef");
    assert.equal(device.faults, 1);
  },
);

test("console: a guest that gives new buffers from inside the notification gets each byte once", limit, () => {
  const { raw, agent, send } = bench();
  send(0, VIRTIO_CONSOLE_DEVICE_READY, 1);
  send(1, VIRTIO_CONSOLE_PORT_OPEN, 1);
  let posted = 0;
  const post = () => {
    if (posted < 10) raw.offer(RX1, [], [{ address: INBOX + 4 * posted++, length: 4 }]);
    raw.kick(RX1);
  };
  raw.onNotify = (index) => {
    if (index === RX1) post();
  };
  post();
  assert.equal(agent.stream.write(Buffer.from("abcdefghijklmnopqrstuvwx")), 24);
  const bytes = Buffer.alloc(24);
  raw.memory.read(INBOX, bytes);
  assert.equal(bytes.toString(), "abcdefghijklmnopqrstuvwx");
  assert.equal(raw.used(RX1).length, 6);
});

test(
  "console: chains behind one that the back end does not take stay in the ring, and follow in order",
  limit,
  async () => {
    const backend = new MemoryCharBackend({ capacity: 5 });
    const device = new ConsoleDevice({ environment: testEnvironment, maxPorts: 1 });
    device.addPort({ kind: "console", backend });
    const raw = new RawDevice(device, FeatureSet.of(VIRTIO_F_VERSION_1));
    raw.memory.write(OUTBOX, Buffer.from("0123456789abcdefghijklmnop"));
    for (let i = 0; i < 6; i++) raw.offer(1, [{ address: OUTBOX + 4 * i, length: 4 }], []);
    raw.kick(1);
    let text = "";
    for (let round = 0; text.length < 24 && round < 20; round++) text += Buffer.from(backend.stream.read(5)).toString();
    assert.equal(text, "0123456789abcdefghijklmn");
    assert.deepEqual(
      raw.used(1).map(({ id, length }) => [id, length]),
      [0, 1, 2, 3, 4, 5].map((id) => [id, 0]),
    );
  },
);
