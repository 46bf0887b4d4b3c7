import assert from "node:assert/strict";
import { test } from "node:test";
import { GuestDialogue } from "./guest-dialogue.ts";

const encode = (text: string): Uint8Array => new TextEncoder().encode(text);

function setUp() {
  const seen: string[] = [];
  const dialogue = new GuestDialogue({
    ready: () => seen.push("ready"),
    up: () => seen.push("up"),
    said: (line) => seen.push(line),
  });
  return { seen, dialogue };
}

test("init's lines are heard however they are cut, and what follows `up` is the user's", { timeout: 10_000 }, () => {
  const text = "[ 0.1] kernel\r\nvirtkit: ready\r\n[ 0.2] x virtkit: warning: no disk\r\nvirtkit: up\r\nlogin: ";
  for (const size of [1, 7, text.length]) {
    const { seen, dialogue } = setUp();
    let rest = "";
    for (let at = 0; at < text.length; at += size)
      rest += new TextDecoder().decode(dialogue.filter(encode(text.slice(at, at + size))));
    assert.deepEqual(seen, ["ready", "warning: no disk", "up"]);
    assert.equal(rest, "login: ");
    assert.equal(dialogue.tail, text.slice(0, -"login: ".length));
  }
});

test("the last words are kept, and no more of them", { timeout: 10_000 }, () => {
  const { dialogue } = setUp();
  dialogue.filter(encode("a".repeat(5000)));
  dialogue.filter(encode("Kernel panic"));
  assert.equal(dialogue.tail.length, 2048);
  assert.ok(dialogue.tail.endsWith("aKernel panic"));
  dialogue.filter(new Uint8Array(1 << 20).fill(0x62));
  assert.equal(dialogue.tail, "b".repeat(2048));
});
