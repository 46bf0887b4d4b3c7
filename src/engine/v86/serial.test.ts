import assert from "node:assert/strict";
import { test } from "node:test";
import type { V86Instance } from "./internals.ts";
import { Serial } from "./serial.ts";

const LIMIT = { timeout: 10_000 };

test("input goes in bursts, each when the one before was read", LIMIT, () => {
  const input: number[] = [];
  const instance = {
    add_listener: () => {},
    bus: { send: (_event: string, byte: number) => input.push(byte) },
    v86: { cpu: { devices: { uart0: { input } } } },
  } as unknown as V86Instance;
  const serial = new Serial(1);
  const bytes = Uint8Array.from({ length: 600 }, (_, i) => i & 0xff);
  assert.ok(serial.send(0, bytes));
  assert.ok(!serial.send(1, bytes));
  assert.equal(serial.hungry, false, "nothing to feed yet");
  serial.follow(instance);
  const read: number[] = [];
  const emptied: number[] = [];
  assert.equal(serial.waiting(0), 600);
  while (serial.hungry) {
    assert.equal(emptied.length, 0);
    serial.feed((port) => emptied.push(port));
    serial.feed((port) => emptied.push(port));
    assert.ok(input.length > 0 && input.length <= 256);
    assert.equal(serial.hungry, false, "until the guest has read it");
    read.push(...input.splice(0));
  }
  assert.deepEqual(read, [...bytes]);
  assert.deepEqual(emptied, [0], "told once, when the last burst went");
  assert.equal(serial.waiting(0), 0);
});

test("input of any size is queued", { timeout: 20_000 }, () => {
  assert.equal(new Serial(1).send(0, new Uint8Array(64 << 20)), true);
});
