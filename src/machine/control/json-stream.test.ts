import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { type JsonItem, JsonStream, MESSAGE_MAX, NESTING_MAX } from "./json-stream.ts";

const limit = { timeout: 30_000 };
const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text);

function read(...pieces: readonly (string | Uint8Array)[]): JsonItem[] {
  const items: JsonItem[] = [];
  const stream = new JsonStream((item) => items.push(item));
  for (const piece of pieces) stream.push(typeof piece === "string" ? bytesOf(piece) : piece);
  return items;
}

const values = (items: readonly JsonItem[]): unknown[] => items.map((item) => ("value" in item ? item.value : "error"));

test("values stand in any layout", limit, () => {
  assert.deepEqual(values(read('{"a":1}\r\n{"b":[2,{"c":"}"}]}\n')), [{ a: 1 }, { b: [2, { c: "}" }] }]);
  assert.deepEqual(values(read('{"a":1}{"b":2} {"c":3}')), [{ a: 1 }, { b: 2 }, { c: 3 }]);
  assert.deepEqual(values(read('{\n  "a": "\\"{[\\\\"\n}')), [{ a: '"{[\\' }]);
  assert.deepEqual(values(read("42 true\n")), [42, true]);
  assert.deepEqual(values(read('"text"')), ["text"]);
});

test("however JSON is cut into pieces, the same comes out", limit, () => {
  const json = fc.array(fc.dictionary(fc.string({ unit: "grapheme" }), fc.jsonValue(), { maxKeys: 4 }), {
    maxLength: 5,
  });
  fc.assert(
    fc.property(json, fc.array(fc.nat(200), { maxLength: 20 }), (objects, cuts) => {
      const bytes = bytesOf(objects.map((object) => JSON.stringify(object)).join("\n"));
      const ends = [...cuts.map((cut) => cut % (bytes.length + 1)).sort((a, b) => a - b), bytes.length];
      const pieces = ends.map((end, index) => bytes.slice(ends[index - 1] ?? 0, end));
      assert.deepEqual(values(read(...pieces)), JSON.parse(JSON.stringify(objects)));
    }),
  );
});

test("a line of what is no JSON is one error, and the next line is read", limit, () => {
  for (const garbage of [
    "hello world {",
    "GET / HTTP/1.1",
    "}",
    "]]]]",
    '{"execute": "stop"]',
    '{"execute": stop}',
    "\u0000\u0001\u0002",
    '{"a": "\u0007"}',
    '{"a": "unfinished',
    "{'single': 'quotes'}",
    '{"a":1,}',
    "1e",
  ]) {
    const items = read(`${garbage}\n{"next":1}\n`);
    assert.deepEqual(values(items), ["error", { next: 1 }], garbage);
    const [first] = items;
    assert(first !== undefined && "error" in first);
    assert.match(first.error, /^JSON parse error, /);
  }
});

test("text that is no UTF-8 is an error", limit, () => {
  assert.deepEqual(read(Uint8Array.of(0x22, 0xc3, 0x28, 0x22), '{"a":1}'), [
    { error: "JSON parse error, the text is no UTF-8" },
    { value: { a: 1 } },
  ]);
});

test("a byte 0xff ends what was begun", limit, () => {
  const items = read('{"half": ', Uint8Array.of(0xff), '{"a":1}', Uint8Array.of(0xff, 0xff), '{"b":1}');
  assert.deepEqual(values(items), ["error", { a: 1 }, { b: 1 }]);
});

test("size and nesting are bounded, the memory for both as well", limit, () => {
  const long = `"${"x".repeat(MESSAGE_MAX)}"`;
  assert.deepEqual(read(long, "\n1\n"), [
    { error: `JSON parse error, a message has at most ${MESSAGE_MAX} bytes` },
    { value: 1 },
  ]);
  assert.equal(read(`"${"x".repeat(MESSAGE_MAX - 2)}"`).length, 1);
  const deep = (depth: number): string => `${"[".repeat(depth)}${"]".repeat(depth)}\n`;
  assert.deepEqual(values(read(deep(NESTING_MAX + 1), "1\n")), ["error", 1]);
  assert.deepEqual(values(read("[".repeat(5_000_000), "\n1\n")), ["error", 1]);
  assert.equal("value" in (read(deep(NESTING_MAX))[0] ?? {}), true);
});

test("any bytes whatever leave it able to read", limit, () => {
  fc.assert(
    fc.property(fc.array(fc.uint8Array({ maxLength: 300 }), { maxLength: 5 }), (chunks) => {
      const items = read(...chunks, Uint8Array.of(0xff, 0x0a), '{"alive":true}\n');
      assert.deepEqual(items.at(-1), { value: { alive: true } });
    }),
    { numRuns: 500 },
  );
});
