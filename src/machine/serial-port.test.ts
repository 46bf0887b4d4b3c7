import assert from "node:assert/strict";
import { test } from "node:test";
import type { CharBackend, CharSink } from "../backend/char/types.ts";
import { SerialPort } from "./serial-port.ts";

const limit = { timeout: 5000 };

/** A back end that takes `room` bytes, and what it saw. */
function line() {
  const seen = { written: [] as number[], drained: 0, room: 0 };
  let sink: CharSink | undefined;
  const backend: CharBackend = {
    name: "line",
    attach: (given) => {
      sink = given;
    },
    write: (bytes) => {
      const taken = Math.min(seen.room, bytes.length);
      seen.room -= taken;
      seen.written.push(...bytes.subarray(0, taken));
      return taken;
    },
    drained: () => {
      seen.drained++;
    },
    guestOpen: () => undefined,
    close: async () => undefined,
  };
  const queued: number[] = [];
  const port = new SerialPort(backend, { send: (bytes) => queued.push(...bytes), waiting: () => queued.length });
  if (sink === undefined) throw new Error("not attached");
  return { seen, port, queued, sink };
}

test("what a slow back end does not take waits, in order, and nothing is lost", limit, () => {
  const { seen, port, sink } = line();
  seen.room = 3;
  port.transmit(Uint8Array.of(1, 2, 3, 4));
  port.transmit(Uint8Array.of(5, 6));
  assert.deepEqual(seen.written, [1, 2, 3]);
  seen.room = 2;
  sink.writable();
  assert.deepEqual(seen.written, [1, 2, 3, 4, 5]);
  seen.room = 100;
  sink.writable();
  port.transmit(Uint8Array.of(7));
  assert.deepEqual(seen.written, [1, 2, 3, 4, 5, 6, 7]);
  assert.equal(port.lost, 0);
});

test("a back end that takes nothing costs 1 MiB, then bytes are lost and counted", limit, () => {
  const { port } = line();
  for (let i = 0; i < 20; i++) port.transmit(new Uint8Array(65536));
  assert.equal(port.lost, 4 * 65536);
});

test("input is bounded: the back end keeps the rest and is told once there is room", limit, () => {
  const { seen, port, queued, sink } = line();
  assert.equal(sink.receive(new Uint8Array(60_000)), 60_000);
  port.drained();
  assert.equal(seen.drained, 0, "nothing was refused");
  assert.equal(sink.receive(new Uint8Array(60_000)), 5536);
  assert.equal(sink.receive(Uint8Array.of(1)), 0);
  queued.length = 0;
  port.drained();
  port.drained();
  assert.equal(seen.drained, 1);
  assert.equal(sink.receive(Uint8Array.of(1)), 1);
});
