import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { connected } from "../../testing/control-machine.ts";
import { blocksOf } from "../../testing/readme.ts";
import { COMMANDS } from "./commands/index.ts";
import { CONTROL_EVENTS } from "./events.ts";

const limit = { timeout: 20_000 };
const document = readFileSync(new URL("../../../docs/control-socket.md", import.meta.url), "utf8");

const between = (start: string): string =>
  new RegExp(`<!-- ${start} -->\n([^]*?)<!-- end -->`).exec(document)?.[1] ?? "";

test("docs/control-socket.md lists every command with its arguments", limit, () => {
  const rows = COMMANDS.map(({ name, arguments: specs, open, help }) => {
    const known = Object.entries(specs).map(([key, { type, optional, help: what }]) => {
      return `\`${key}\` (${type}${optional === true ? ", optional" : ""}): ${what}`;
    });
    const all = open ? [...known, "others: properties of the device"] : known;
    return `| \`${name}\` | ${help} | ${all.join("; ")} |`;
  });
  const table = ["| command | what it does | arguments |", "| --- | --- | --- |", ...rows, ""].join("\n");
  assert.equal(between("commands"), table);
});

test("docs/control-socket.md lists every event", limit, () => {
  const rows = Object.entries(CONTROL_EVENTS).map(([name, help]) => `| \`${name}\` | ${help} |`);
  assert.equal(between("events"), ["| event | when |", "| --- | --- |", ...rows, ""].join("\n"));
});

/** Times are another each time, and the version is that of the program. */
const comparable = (message: Record<string, unknown>): object =>
  "QMP" in message ? {} : { ...message, ...("timestamp" in message ? { timestamp: {} } : {}) };

test("the conversation in docs/control-socket.md takes place as it stands there", limit, async () => {
  const [block] = blocksOf("docs/control-socket.md").filter(({ language }) => language === "json");
  const lines = block?.code.split("\n") ?? [];
  assert(lines.length > 10);
  const client = await connected(undefined, false);
  client.machine.rename("d1", "spare");
  const said: string[] = [];
  for (const line of lines.filter((one) => one.startsWith("-> "))) {
    said.push(line);
    await client.say(line.slice(3));
  }
  const heard = lines.filter((line) => line.startsWith("<- ")).map((line) => JSON.parse(line.slice(3)));
  assert.deepEqual(
    client.messages.map((message) => comparable(JSON.parse(message))).sort(byText),
    heard.map(comparable).sort(byText),
  );
});

/** A reply may come before or after an event of the same command. */
const byText = (a: object, b: object): number => (JSON.stringify(a) < JSON.stringify(b) ? -1 : 1);
