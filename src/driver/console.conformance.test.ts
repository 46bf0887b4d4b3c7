import assert from "node:assert/strict";
import { test } from "node:test";
import { FeatureSet } from "../common/feature-set.ts";
import {
  VIRTIO_CONSOLE_CFG_MAX_NR_PORTS,
  VIRTIO_CONSOLE_CFG_SIZE,
  VIRTIO_CONSOLE_CONSOLE_PORT,
  VIRTIO_CONSOLE_CONTROL_RX,
  VIRTIO_CONSOLE_CONTROL_TX,
  VIRTIO_CONSOLE_DEVICE_ADD,
  VIRTIO_CONSOLE_DEVICE_READY,
  VIRTIO_CONSOLE_F_MULTIPORT,
  VIRTIO_CONSOLE_PORT_OPEN,
  VIRTIO_CONSOLE_PORT_READY,
} from "../spec/console.ts";
import { VIRTIO_ID_CONSOLE } from "../spec/ids.ts";
import { PeerDevice, settle, until, withPeer } from "../testing/peer.ts";
import { statements } from "../testing/statements.ts";
import { ConsoleDriver } from "./console.ts";

const OPERATION = "driver: Device Types / Console Device / Device Operation";
const MULTIPORT = `${OPERATION} / Multiport Device Operation`;
const limit = { timeout: 20_000 };
const PORTS = 2;

type Message = [id: number, event: number, value: number];

/** A console of two ports that takes what is sent, and sends what the test says. */
class ConsolePeer extends PeerDevice {
  constructor(multiport: boolean) {
    const config = new DataView(new ArrayBuffer(VIRTIO_CONSOLE_CFG_SIZE));
    config.setUint32(VIRTIO_CONSOLE_CFG_MAX_NR_PORTS, PORTS, true);
    super({
      deviceId: VIRTIO_ID_CONSOLE,
      queues: multiport ? 2 * (PORTS + 1) : 2,
      features: multiport ? FeatureSet.of(VIRTIO_CONSOLE_F_MULTIPORT) : FeatureSet.EMPTY,
      config: new Uint8Array(config.buffer),
    });
    this.answer = ({ queue }) => (queue % 2 === 1 ? new Uint8Array(0) : undefined);
  }

  /** Control messages that the driver sent. */
  get messages(): Message[] {
    return this.of(VIRTIO_CONSOLE_CONTROL_TX).map(({ out }) => {
      const view = new DataView(out.buffer, out.byteOffset, 8);
      return [view.getUint32(0, true), view.getUint16(4, true), view.getUint16(6, true)];
    });
  }

  /** Puts bytes into a buffer that waits in a receiveq. */
  fill(queue: number, bytes: Uint8Array): void {
    const chain = this.waiting.find((waiting) => waiting.queue === queue);
    assert.ok(chain);
    this.use(chain, bytes);
  }

  send(id: number, event: number, value = 1): void {
    const view = new DataView(new ArrayBuffer(8));
    view.setUint32(0, id, true);
    view.setUint16(4, event, true);
    view.setUint16(6, value, true);
    this.fill(VIRTIO_CONSOLE_CONTROL_RX, new Uint8Array(view.buffer));
  }
}

test(
  statements(
    "console driver: receiveqs hold writable buffers only, transmitqs readable ones",
    `${OPERATION} #1`,
    `${OPERATION} #2`,
  ),
  limit,
  async () => {
    for (const multiport of [false, true]) {
      const device = new ConsolePeer(multiport);
      const { driver, close } = await withPeer(device, ConsoleDriver.type);
      if (multiport) {
        await until(() => device.of(VIRTIO_CONSOLE_CONTROL_RX).length > 0);
        for (let id = 0; id < PORTS; id++) device.send(id, VIRTIO_CONSOLE_DEVICE_ADD);
        await until(() => driver.ports.size === PORTS);
        for (let id = 0; id < PORTS; id++) device.send(id, VIRTIO_CONSOLE_PORT_OPEN);
        await settle();
      }
      for (const port of driver.ports.values()) {
        await port.open();
        await port.write(new Uint8Array(10_000).fill(65));
        const receiveq = port.id === 0 ? 0 : 2 * port.id + 2;
        await until(() => device.waiting.some(({ queue }) => queue === receiveq));
        // A buffer that was read goes back.
        for (let i = 0; i < 20; i++) {
          device.fill(receiveq, Uint8Array.of(i));
          assert.equal((await port.read())[0], i);
          await settle();
        }
      }
      for (let queue = 0; queue < device.queueSizes.length; queue++) {
        const pieces = device.of(queue).flatMap((chain) => chain.pieces);
        assert.equal(pieces.length > 0, true, `queue ${queue} was used`);
        assert.deepEqual(new Set(pieces.map(({ writable }) => writable)), new Set([queue % 2 === 0]));
      }
      await close();
    }
  },
);

test(statements("console driver: DEVICE_READY where there is MULTIPORT", `${MULTIPORT} #1`), limit, async () => {
  const device = new ConsolePeer(true);
  const { driver, close } = await withPeer(device, ConsoleDriver.type);
  await until(() => device.messages.length > 0);
  assert.deepEqual(device.messages, [[0xffffffff, VIRTIO_CONSOLE_DEVICE_READY, 1]]);
  await driver.restart();
  await until(() => device.messages.length > 1);
  assert.deepEqual(device.messages[1], [0xffffffff, VIRTIO_CONSOLE_DEVICE_READY, 1]);
  await close();
});

test(
  statements(
    "console driver: CONSOLE_PORT is answered by PORT_OPEN 1, every time",
    `${MULTIPORT} #2`,
    `${MULTIPORT} #3`,
  ),
  limit,
  async () => {
    const device = new ConsolePeer(true);
    const { driver, close } = await withPeer(device, ConsoleDriver.type);
    await until(() => device.of(VIRTIO_CONSOLE_CONTROL_RX).length > 0);
    device.send(1, VIRTIO_CONSOLE_DEVICE_ADD);
    const port = await driver.find(({ id }) => id === 1);
    assert.equal(port.isConsole, false);
    await settle();
    assert.deepEqual(device.messages.slice(1), [[1, VIRTIO_CONSOLE_PORT_READY, 1]], "not opened by itself");
    for (let times = 1; times <= 2; times++) {
      device.send(1, VIRTIO_CONSOLE_CONSOLE_PORT);
      await until(() => device.messages.length === 2 + times);
      assert.deepEqual(device.messages[1 + times], [1, VIRTIO_CONSOLE_PORT_OPEN, 1]);
      assert.deepEqual([port.isConsole, port.isOpen], [true, true]);
    }
    await close();
  },
);
