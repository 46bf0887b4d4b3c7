import assert from "node:assert/strict";
import { test } from "node:test";
import { nearest, oneOf, suggest } from "./nearest.ts";

const OPTIONS = { timeout: 5000 };
const NAMES = ["addr", "disable-legacy", "drive", "num-queues", "packed", "queue-size", "read-only", "readonly"];

test("the nearest name", OPTIONS, () => {
  for (const [wrong, right, likely] of [
    ["drvie", "drive", true],
    ["pakced", "packed", true],
    ["num_queues", "num-queues", true],
    ["NUMQUEUES", "num-queues", true],
    ["readnoly", "readonly", true],
    ["legacy", "disable-legacy", true],
    ["queuesizes", "queue-size", true],
    ["zzz", "addr", false],
    ["x", "addr", false],
  ] as const)
    assert.deepEqual(nearest(wrong, NAMES), { name: right, likely }, wrong);
  assert.equal(nearest("x", []), undefined);
});

test("sentences", OPTIONS, () => {
  assert.equal(suggest("drvie", NAMES), "Did you mean 'drive'?");
  assert.equal(suggest("drvie", NAMES, "See x."), "Did you mean 'drive'? See x.");
  assert.equal(suggest("zzz", NAMES), "The nearest valid name is 'addr'.");
  assert.equal(suggest("zzz", [], "See x."), "See x.");
  assert.equal(oneOf(["a"]), "a");
  assert.equal(oneOf(["a", "b", "c"]), "a, b or c");
});
