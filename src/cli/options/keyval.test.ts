import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { escapeCommas, Keyval, splitKeyval } from "./keyval.ts";

const OPTIONS = { timeout: 20_000 };

const SPLIT: readonly [text: string, implied: string | undefined, expected: readonly (readonly string[])[]][] = [
  [
    "a=b,c=d",
    undefined,
    [
      ["a", "b"],
      ["c", "d"],
    ],
  ],
  [
    "virtio-blk-pci,drive=d0",
    "driver",
    [
      ["driver", "virtio-blk-pci"],
      ["drive", "d0"],
    ],
  ],
  ["driver=virtio-blk-pci", "driver", [["driver", "virtio-blk-pci"]]],
  ["file=a,,b.img", undefined, [["file", "a,b.img"]]],
  [
    "file=a,,,id=x",
    undefined,
    [
      ["file", "a,"],
      ["id", "x"],
    ],
  ],
  ["a=b=c", undefined, [["a", "b=c"]]],
  [
    "a=,b=1",
    undefined,
    [
      ["a", ""],
      ["b", "1"],
    ],
  ],
  [
    "x,packed,nofoo",
    "driver",
    [
      ["driver", "x"],
      ["packed", "on", "bare"],
      ["nofoo", "on", "bare"],
    ],
  ],
  ["packed", undefined, [["packed", "on", "bare"]]],
  ["a=1,", undefined, [["a", "1"]]],
  ["", "driver", []],
  [
    ",id=x",
    "driver",
    [
      ["driver", ""],
      ["id", "x"],
    ],
  ],
  ["512M", "size", [["size", "512M"]]],
];

for (const [text, implied, expected] of SPLIT)
  test(`'${text}' splits`, OPTIONS, () => {
    const entries = splitKeyval(text, implied).map(({ key, value, bare }) => [key, value, ...(bare ? ["bare"] : [])]);
    assert.deepEqual(entries, expected);
  });

test("any values come back from their escaped form", OPTIONS, () => {
  const value = fc.string({ maxLength: 12, unit: fc.constantFrom(",", "=", "a", " ", "é", "no") });
  fc.assert(
    fc.property(fc.array(value, { minLength: 1, maxLength: 6 }), (values) => {
      const text = values.map((one, i) => `k${i}=${escapeCommas(one)}`).join(",");
      assert.deepEqual(
        splitKeyval(text),
        values.map((one, i) => ({ key: `k${i}`, value: one, bare: false })),
      );
    }),
  );
});

test("of equal keys the last counts, and old names are the same key", OPTIONS, () => {
  const keys = new Keyval("-x", "a=1,a=2,b,noc,old=off");
  assert.equal(keys.integer("a", 0, 9), 2);
  assert.deepEqual(
    [keys.flag("b"), keys.flag("c"), keys.flag("d"), keys.flag("new", "old")],
    [true, false, undefined, false],
  );
  keys.finish();
});

test("errors name the option, the key and the nearest valid one", OPTIONS, () => {
  const keys = new Keyval("-x", "speed=9,colour=red,sped=1");
  assert.throws(
    () => keys.integer("speed", 0, 5),
    /^UsageError: -x speed=9,colour=red,sped=1: Parameter 'speed' expects/,
  );
  assert.throws(
    () => keys.word("colour", ["green", "blue"]),
    /'colour' does not accept value 'red'\nValid values: green or blue/,
  );
  assert.throws(() => keys.finish(), /: Invalid parameter 'sped'\nDid you mean 'speed'\? Valid here: colour, speed\./);
});
