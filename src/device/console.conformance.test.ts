import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { MemoryCharBackend } from "../backend/char/memory.ts";
import { FeatureSet } from "../common/feature-set.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import {
  VIRTIO_CONSOLE_CFG_EMERG_WR,
  VIRTIO_CONSOLE_CFG_MAX_NR_PORTS,
  VIRTIO_CONSOLE_CONTROL_RX,
  VIRTIO_CONSOLE_CONTROL_TX,
  VIRTIO_CONSOLE_DEVICE_ADD,
  VIRTIO_CONSOLE_DEVICE_READY,
  VIRTIO_CONSOLE_DEVICE_REMOVE,
  VIRTIO_CONSOLE_F_MULTIPORT,
} from "../spec/console.ts";
import { VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { turn } from "../testing/peer.ts";
import { RAW_DATA, RawDevice } from "../testing/raw-device.ts";
import { testEnvironment } from "../testing/rig.ts";
import { statements } from "../testing/statements.ts";
import { LoopbackTransport } from "../transport/loopback/index.ts";
import { ConsoleDevice } from "./console.ts";

const CONSOLE = "device: Device Types / Console Device";
const MULTIPORT = `${CONSOLE} / Device Operation / Multiport Device Operation`;
const limit = { timeout: 20_000 };
const PORTS = 4;
const SLOT = 64;

/** A multiport console whose control queues are worked by hand. */
class RawConsole {
  readonly device = new ConsoleDevice({ environment: testEnvironment, maxPorts: PORTS });
  readonly bench = new RawDevice(this.device, FeatureSet.of(VIRTIO_F_VERSION_1, VIRTIO_CONSOLE_F_MULTIPORT));
  #offered = 0;
  #read = 0;

  /** Gives the device room for so many control messages. */
  receive(count: number, kick = true): void {
    for (let i = 0; i < count; i++)
      this.bench.offer(
        VIRTIO_CONSOLE_CONTROL_RX,
        [],
        [{ address: RAW_DATA + 4096 + (this.#offered++ % 64) * SLOT, length: SLOT }],
      );
    if (kick) this.bench.kick(VIRTIO_CONSOLE_CONTROL_RX);
  }

  ready(): void {
    const message = new Uint8Array(8);
    message[4] = VIRTIO_CONSOLE_DEVICE_READY;
    message[6] = 1;
    this.bench.memory.write(RAW_DATA, message);
    this.bench.offer(VIRTIO_CONSOLE_CONTROL_TX, [{ address: RAW_DATA, length: 8 }], []);
    this.bench.kick(VIRTIO_CONSOLE_CONTROL_TX);
  }

  /** Messages since the last call. */
  messages(): { id: number; event: number }[] {
    const found: { id: number; event: number }[] = [];
    const view = this.bench.memory.regions[1]?.view as DataView;
    for (const end = this.bench.used(VIRTIO_CONSOLE_CONTROL_RX).length; this.#read < end; this.#read++) {
      const at = 4096 + (this.#read % 64) * SLOT;
      found.push({ id: view.getUint32(at, true), event: view.getUint16(at + 4, true) });
    }
    return found;
  }
}

const step = fc.oneof(
  { weight: 3, arbitrary: fc.record({ what: fc.constant("add" as const), id: fc.nat(PORTS - 1) }) },
  { weight: 2, arbitrary: fc.record({ what: fc.constant("remove" as const), id: fc.nat(PORTS - 1) }) },
  { weight: 1, arbitrary: fc.constant({ what: "ready" as const, id: 0 }) },
  { weight: 3, arbitrary: fc.record({ what: fc.constant("receive" as const), id: fc.nat(5) }) },
);

test(
  statements(
    "console: whatever comes and goes, added ports are new ones and removed ports were added",
    `${MULTIPORT} #1`,
    `${MULTIPORT} #2`,
  ),
  limit,
  () => {
    let added = 0;
    let removed = 0;
    fc.assert(
      fc.property(fc.array(step, { minLength: 10, maxLength: 60 }), (steps) => {
        const console = new RawConsole();
        const { device } = console;
        const most = device.config.read(VIRTIO_CONSOLE_CFG_MAX_NR_PORTS, 4);
        const told = new Set<number>();
        const look = (): void => {
          for (const { id, event } of console.messages()) {
            if (event === VIRTIO_CONSOLE_DEVICE_ADD) {
              assert.deepEqual([told.has(id), id < most], [false, true]);
              told.add(id);
              added++;
            } else if (event === VIRTIO_CONSOLE_DEVICE_REMOVE) {
              assert.equal(told.delete(id), true);
              removed++;
            }
          }
        };
        for (const { what, id } of [...steps, { what: "receive" as const, id: 20 }]) {
          if (what === "ready") console.ready();
          else if (what === "receive") console.receive(id);
          else if (what === "remove") {
            if (device.port(id) !== undefined) device.removePort(id);
          } else if (device.port(id) === undefined)
            device.addPort({ kind: id === 0 ? "console" : "serial", id, backend: new MemoryCharBackend() });
          look();
        }
      }),
      { numRuns: 300 },
    );
    assert.equal(added > 100 && removed > 20, true);
  },
);

test("console: a driver that gives no buffers hears of every port in the end", limit, () => {
  const console = new RawConsole();
  console.ready();
  const told = new Set<number>();
  for (let round = 0; round < 1100; round++) {
    console.device.addPort({ kind: "serial", id: 1 + (round % 3), backend: new MemoryCharBackend() });
    if (round < 1099) console.device.removePort(1 + (round % 3));
  }
  for (let i = 0; i < 80; i++) {
    console.receive(32);
    for (const { id, event } of console.messages())
      if (event === VIRTIO_CONSOLE_DEVICE_ADD) assert.equal(told.size, told.add(id).size - 1);
      else if (event === VIRTIO_CONSOLE_DEVICE_REMOVE) assert.equal(told.delete(id), true);
  }
  assert.deepEqual([...told], [2]);
  // It heard only of the last one: of the others there was nothing left to say.
  assert.equal(console.bench.used(VIRTIO_CONSOLE_CONTROL_RX).length, 1);
});

test("console: other messages that wait do not crowd out a new port", limit, () => {
  const console = new RawConsole();
  console.device.addPort({ kind: "console", backend: new MemoryCharBackend() });
  console.ready();
  for (let i = 0; i < 1100; i++) console.device.resize(80, 25 + i);
  console.device.addPort({ kind: "serial", id: 1, backend: new MemoryCharBackend() });
  const added: number[] = [];
  for (let i = 0; i < 80; i++) {
    console.receive(32);
    for (const { id, event } of console.messages()) if (event === VIRTIO_CONSOLE_DEVICE_ADD) added.push(id);
  }
  assert.deepEqual(added, [0, 1]);
});

test(
  statements(
    "console: an emergency write to a device that nobody has configured",
    `${CONSOLE} / Device Initialization #1`,
  ),
  limit,
  () => {
    const device = new ConsoleDevice({ environment: testEnvironment });
    const terminal = new MemoryCharBackend();
    device.addPort({ kind: "console", backend: terminal });
    const memory = GuestMemory.allocate(65536);
    const transport = new LoopbackTransport(device, { memory, environment: testEnvironment });
    assert.equal(transport.getStatus(), 0);
    for (const character of "Oops") transport.writeConfig(VIRTIO_CONSOLE_CFG_EMERG_WR, 4, character.charCodeAt(0));
    assert.equal(Buffer.from(terminal.stream.read()).toString(), "Oops");
  },
);

test("console: a driver that always has one more buffer, without room, does not keep the thread", limit, async () => {
  const device = new ConsoleDevice({ environment: testEnvironment, maxPorts: 1 });
  const terminal = new MemoryCharBackend();
  device.addPort({ kind: "console", backend: terminal });
  const bench = new RawDevice(device, FeatureSet.of(VIRTIO_F_VERSION_1));
  const queue = device.queue(0)?.queue;
  assert.ok(queue);
  await turn();
  const pop = queue.pop.bind(queue);
  let pops = 0;
  let hostile = true;
  queue.pop = (batch, most) => {
    pops++;
    // As a vCPU on another thread would, in between.
    if (hostile) bench.offer(0, [{ address: RAW_DATA, length: 1 }], []);
    return pop(batch, most);
  };
  terminal.stream.write(Buffer.from("typed"));
  assert.equal(pops < 5000, true);
  hostile = false;
  // Without a kick: the device said that it would look again.
  bench.offer(0, [], [{ address: RAW_DATA + 4096, length: 64 }]);
  for (let i = 0; i < 5; i++) await turn();
  const bytes = new Uint8Array(5);
  bench.memory.read(RAW_DATA + 4096, bytes);
  assert.equal(Buffer.from(bytes).toString(), "typed");
});

test("console: a driver whose buffers for control messages come and go does not keep the thread", limit, async () => {
  const console = new RawConsole();
  console.ready();
  const queue = console.device.queue(VIRTIO_CONSOLE_CONTROL_RX)?.queue;
  assert.ok(queue);
  await turn();
  const { pop, enableKicks } = queue;
  let looks = 0;
  queue.pop = () => 0;
  queue.enableKicks = () => ++looks > 0;
  console.device.addPort({ kind: "serial", id: 1, backend: new MemoryCharBackend() });
  assert.equal(looks < 100, true);
  Object.assign(queue, { pop, enableKicks });
  console.receive(1, false);
  await turn();
  assert.deepEqual(console.messages(), [{ id: 1, event: VIRTIO_CONSOLE_DEVICE_ADD }]);
});
