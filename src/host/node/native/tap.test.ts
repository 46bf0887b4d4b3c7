import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { assertNothingLeft, heldResources } from "../../../testing/resources.ts";
import { nativeProblem } from "./load.ts";
import { TapInterface, TUN_F_CSUM, TUN_F_TSO4 } from "./tap.ts";

/** Why this process can make no tap, or false. */
function refusal(): string | false {
  const problem = nativeProblem();
  if (problem !== undefined) return problem;
  try {
    TapInterface.open().close();
    return false;
  } catch (error) {
    return (error as Error).message;
  }
}

const limit = { timeout: 60_000, skip: refusal() };
const interfaces = () => readFileSync("/proc/net/dev", "utf8");

test("a tap is made, takes offloads, and goes with its descriptor", limit, () => {
  const before = heldResources();
  const tap = TapInterface.open({ name: "virtkit%d", headerSize: 12 });
  assert.match(tap.name, /^virtkit\d+$/);
  assert.ok(interfaces().includes(`${tap.name}:`));
  assert.equal(tap.setOffloads(TUN_F_CSUM | TUN_F_TSO4), true);
  assert.equal(tap.setOffloads(0x8000), false);
  tap.close();
  assert.ok(!interfaces().includes(`${tap.name}:`));
  assertNothingLeft(before);
});

test("several queues of one interface", limit, () => {
  const first = TapInterface.open({ name: "virtkit%d", multiQueue: true });
  const second = TapInterface.open({ name: first.name, multiQueue: true });
  assert.equal(second.name, first.name);
  first.close();
  second.close();
});

test("names that do not fit are refused", { timeout: 60_000, skip: nativeProblem() ?? false }, () => {
  assert.throws(() => TapInterface.open({ name: "x".repeat(16) }), { code: "ERR_VIRTKIT_TAP" });
});
