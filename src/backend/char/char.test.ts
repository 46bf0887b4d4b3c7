import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { charBackendContract, someBytes } from "../../testing/char-backend.ts";
import { EscapeFilter, escapeHelp } from "./escape.ts";
import { MemoryCharBackend } from "./memory.ts";
import { NullCharBackend } from "./null.ts";
import { ByteRing } from "./ring.ts";
import { RingCharBackend } from "./ringbuf.ts";

const limit = { timeout: 10_000 };

charBackendContract("memory", async () => {
  const backend = new MemoryCharBackend({ capacity: 1000 });
  const parts: Uint8Array[] = [];
  backend.stream.onReadable = () => setImmediate(() => parts.push(backend.stream.read(333)));
  const more = setInterval(() => parts.push(backend.stream.read()), 1);
  return {
    backend,
    written: () => Buffer.concat(parts),
    send: async (bytes) => {
      for (let done = 0; done < bytes.length; ) {
        done += backend.stream.write(bytes.subarray(done));
        await new Promise((resolve) => setImmediate(resolve));
      }
    },
    undo: () => clearInterval(more),
  };
});
charBackendContract("null", async () => ({ backend: new NullCharBackend() }));
charBackendContract("ringbuf", async () => ({ backend: new RingCharBackend(100) }));

test("ringbuf keeps the last bytes", limit, () => {
  const backend = new RingCharBackend(10);
  backend.write(someBytes(4));
  assert.deepEqual(backend.read(2), someBytes(2));
  backend.write(someBytes(25));
  assert.deepEqual(backend.read(), someBytes(25).slice(15));
  assert.equal(backend.read().length, 0);
});

test("a ring of bytes is a queue, whatever is done with it", limit, () => {
  const step = fc.oneof(
    fc.record({ write: fc.uint8Array({ maxLength: 20 }) }),
    fc.record({ read: fc.nat(20) }),
    fc.record({ skip: fc.nat(20) }),
  );
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 16 }), fc.array(step, { maxLength: 60 }), (capacity, steps) => {
      const ring = new ByteRing(capacity);
      const model: number[] = [];
      for (const one of steps) {
        if ("write" in one) {
          const n = ring.write(one.write);
          assert.equal(n, Math.min(one.write.length, capacity - model.length));
          model.push(...one.write.subarray(0, n));
        } else if ("read" in one) assert.deepEqual([...ring.read(one.read)], model.splice(0, one.read));
        else {
          ring.skip(one.skip);
          model.splice(0, one.skip);
        }
        assert.equal(ring.length, model.length);
        const piece = [...ring.peek()];
        assert.deepEqual(piece, model.slice(0, piece.length));
        assert.equal(piece.length === 0, model.length === 0);
      }
    }),
  );
});

/** What the filter makes of typed pieces: bytes for the guest as text, commands in brackets. */
function filtered(...pieces: string[]): string {
  const filter = new EscapeFilter();
  let out = "";
  for (const piece of pieces)
    filter.feed(Buffer.from(piece, "latin1"), {
      data: (bytes) => {
        out += Buffer.from(bytes).toString("latin1");
      },
      command: (command) => {
        out += `[${command}]`;
      },
    });
  return out;
}

test("escape: commands, the doubled character, what is swallowed, in one piece or in two", limit, () => {
  const cases: [string, string][] = [
    ["plain", "plain"],
    ["a\x01xb", "a[quit]b"],
    ["\x01X", "[quit]"],
    ["\x01h\x01?", "[help][help]"],
    ["\x01c\x01b", "[switch][break]"],
    ["a\x01\x01b", "a\x01b"],
    ["\x01\x01\x01\x01", "\x01\x01"],
    ["\x01\x01x", "\x01x"],
    ["\x01\x01\x01x", "\x01[quit]"],
    ["a\x01qb", "ab"],
    ["end\x01", "end"],
    ["\x03\x04\xff", "\x03\x04\xff"],
  ];
  for (const [typed, expected] of cases) {
    assert.equal(filtered(typed), expected, JSON.stringify(typed));
    assert.equal(filtered(...typed), expected, `${JSON.stringify(typed)} byte by byte`);
    for (let i = 0; i <= typed.length; i++) assert.equal(filtered(typed.slice(0, i), typed.slice(i)), expected);
  }
  assert.match(escapeHelp(), /Ctrl-A X +quit/);
});
