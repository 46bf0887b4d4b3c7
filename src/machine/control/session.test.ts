import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { VirtkitError } from "../../common/error.ts";
import { connected, FakeClient, FakeMachine } from "../../testing/control-machine.ts";
import { UsageError } from "../usage-error.ts";
import { MESSAGE_MAX } from "./json-stream.ts";

const limit = { timeout: 30_000 };
const error = (desc: string, errorClass = "GenericError") => ({ error: { class: errorClass, desc } });

// The exchanges of QEMU's "QEMU Machine Protocol Specification", sections 3 and 4, with our own version and values.
test("the greeting, the negotiation, and commands before and after it", limit, async () => {
  const client = new FakeClient(await new FakeMachine().build());
  const version = { qemu: { major: 1, minor: 2, micro: 3 }, package: "virtkit 1.2.3" };
  assert.deepEqual(client.messages, [`${JSON.stringify({ QMP: { version, capabilities: [] } })}\r\n`]);
  const early = error("Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound");
  assert.deepEqual(await client.say('{ "execute": "query-status" }'), [early]);
  client.machine.events.emit("pause");
  assert.deepEqual(client.events, [], "no event before the negotiation");
  assert.deepEqual(await client.say('{ "execute": "qmp_capabilities", "arguments": { "enable": ["oob"] } }'), [
    error("Capability 'oob' is not available"),
  ]);
  assert.deepEqual(await client.say('{ "execute": "qmp_capabilities", "arguments": { "enable": [] } }'), [
    { return: {} },
  ]);
  assert.deepEqual(await client.say('{ "execute": "qmp_capabilities" }'), [
    error("Capabilities negotiation is already complete, command ignored", "CommandNotFound"),
  ]);
  assert.deepEqual(await client.say('{ "execute": "query-version", "id": "example" }'), [
    { return: version, id: "example" },
  ]);
});

test("documented exchanges: replies, errors, events", limit, async () => {
  const client = await connected();
  assert.deepEqual(await client.say('{ "execute": "query-kvm", "id": "example" }'), [
    { return: { enabled: false, present: false }, id: "example" },
  ]);
  assert.match(
    JSON.stringify(await client.say('{ "execute": }\n')),
    /^\[\{"error":\{"class":"GenericError","desc":"JSON parse error, /,
  );
  const stop = await client.say('{ "execute": "stop" }');
  assert.deepEqual(stop, [{ timestamp: { seconds: 1267020223, microseconds: 435656 }, event: "STOP" }, { return: {} }]);
  assert.deepEqual(await client.say('{ "execute": "query-status" }'), [
    { return: { running: false, status: "paused" } },
  ]);
  assert.deepEqual(await client.say('{ "execute": "cont" }'), [
    { timestamp: { seconds: 1267020223, microseconds: 435656 }, event: "RESUME" },
    { return: {} },
  ]);
  assert.deepEqual(await client.say('{ "execute": "query-name" }'), [{ return: { name: "fake" } }]);
  assert.deepEqual(await client.say('{ "execute": "system_powerdown" }'), [
    { timestamp: { seconds: 1267020223, microseconds: 435656 }, event: "POWERDOWN" },
    { return: {} },
  ]);
  assert.deepEqual(await client.say('{ "execute": "system_reset" }'), [
    {
      timestamp: { seconds: 1267020223, microseconds: 435656 },
      event: "RESET",
      data: { guest: false, reason: "host-qmp-system-reset" },
    },
    { return: {} },
  ]);
  const commands = (await client.execute("query-commands")).return as { name: string }[];
  for (const name of ["qmp_capabilities", "query-commands", "block_resize", "device_add", "x-query-virtio"])
    assert(
      commands.some((command) => command.name === name),
      name,
    );
});

test("quit is answered first, and then everything ends", limit, async () => {
  const client = await connected();
  assert.deepEqual(await client.say('{"execute":"quit"}'), [
    { return: {} },
    {
      timestamp: { seconds: 1267020223, microseconds: 435656 },
      event: "SHUTDOWN",
      data: { guest: false, reason: "host-qmp-quit" },
    },
  ]);
});

test("the id comes back as it was, with errors too", limit, async () => {
  const client = await connected();
  for (const id of [0, 1.5, "", "text", null, true, [1, "a"], { deep: { er: [] } }]) {
    assert.deepEqual(await client.say(JSON.stringify({ execute: "query-kvm", id })), [
      { return: { enabled: false, present: false }, id },
    ]);
    assert.deepEqual(await client.say(JSON.stringify({ execute: "no-such", id })), [
      { ...error("The command no-such has not been found", "CommandNotFound"), id },
    ]);
  }
});

test("what is no command is told so precisely", limit, async () => {
  const client = await connected();
  for (const [text, desc] of [
    ["42 ", "QMP input must be a JSON object"],
    ["[]", "QMP input must be a JSON object"],
    ["{}", "QMP input lacks member 'execute'"],
    ['{"execute":1}', "QMP input member 'execute' must be a string"],
    ['{"execute":"stop","arguments":[]}', "QMP input member 'arguments' must be an object"],
    ['{"execute":"stop","argument":{}}', "QMP input member 'argument' is unexpected"],
    ['{"exec-oob":"stop"}', "QMP input member 'exec-oob' is unexpected"],
    ['{"execute":"stop","arguments":{"now":true}}', "Parameter 'now' is unexpected"],
    ['{"execute":"block_resize","arguments":{"device":"d0"}}', "Parameter 'size' is missing"],
    [
      '{"execute":"block_resize","arguments":{"device":5,"size":1}}',
      "Invalid parameter type for 'device', expected: string",
    ],
    ['{"execute":"balloon","arguments":{"value":"1G"}}', "Invalid parameter type for 'value', expected: integer"],
    ['{"execute":"balloon","arguments":{"value":1.5}}', "Invalid parameter type for 'value', expected: integer"],
    [
      '{"execute":"qom-list-types","arguments":{"abstract":1}}',
      "Invalid parameter type for 'abstract', expected: boolean",
    ],
  ] as const)
    assert.deepEqual(await client.say(text), [error(desc)], text);
  for (const name of ["__proto__", "constructor", "toString", ""])
    assert.deepEqual(await client.execute(name), error(`The command ${name} has not been found`, "CommandNotFound"));
  assert.deepEqual(client.machine.calls, []);
});

test("failures become errors; only those of ours that are none of a caller's are logged", limit, async () => {
  const client = await connected();
  client.machine.failure = new UsageError("it is so", { option: "-x", hint: "Do that." });
  assert.deepEqual(await client.execute("stop"), error("it is so. Do that."));
  client.machine.failure = new VirtkitError("ERR_VIRTKIT_X", "some reason");
  assert.deepEqual(await client.execute("stop"), error("some reason"));
  assert.deepEqual(client.log, []);
  client.machine.failure = new TypeError("a bug");
  assert.deepEqual(await client.execute("stop"), error("a bug"));
  assert.match(client.log[0] ?? "", /^error: control socket: stop: TypeError: a bug/);
});

test("commands are carried out one at a time, and a client that sends ahead is held back", limit, async () => {
  const client = await connected();
  let release = (): void => {};
  client.machine.whenUp = new Promise((resolve) => {
    release = resolve;
  });
  const { length } = client.messages;
  const stop = new TextEncoder().encode('{"execute":"stop"}\n');
  assert.equal(client.session.receive(stop), true);
  for (let i = 0; i < 7; i++) assert.equal(client.session.receive(stop), true);
  assert.equal(client.session.receive(stop), false);
  assert.equal(client.messages.length, length);
  assert.equal(client.resumed, 0);
  release();
  await client.session.idle();
  assert.equal(client.machine.calls.length, 9);
  assert.equal(client.resumed, 1);
});

test(
  "a client that goes away is not answered, and what it asked for and was not begun is not done",
  limit,
  async () => {
    const client = await connected();
    let release = (): void => {};
    client.machine.whenUp = new Promise((resolve) => {
      release = resolve;
    });
    client.session.receive(new TextEncoder().encode('{"execute":"stop"}{"execute":"cont"}{"exe'));
    const { length } = client.messages;
    client.server.disconnect(client.session);
    release();
    await client.session.idle();
    assert.deepEqual(client.machine.calls, ["pause"]);
    assert.equal(client.messages.length, length);
    client.machine.events.emit("resume");
    assert.equal(client.messages.length, length);
  },
);

test("any bytes, objects and arguments: each is answered, and the next command works", limit, async () => {
  const client = await connected();
  const names = ((await client.execute("query-commands")).return as { name: string }[])
    .map(({ name }) => name)
    .filter((name) => name !== "quit");
  const argument = fc.oneof(fc.constantFrom("d0", "d1", "disk0", "virtio-rng-pci", "device"), fc.jsonValue());
  const keys = fc.constantFrom(
    "id",
    "driver",
    "device",
    "size",
    "value",
    "path",
    "queue",
    "typename",
    "implements",
    "x",
  );
  const command = fc
    .record({ execute: fc.constantFrom(...names), arguments: fc.dictionary(keys, argument), id: fc.jsonValue() })
    .map((message) => JSON.stringify(message));
  const text = fc.oneof(command, fc.json(), fc.string());
  await fc.assert(
    fc.asyncProperty(fc.array(text, { maxLength: 8 }), async (lines) => {
      for (const one of lines) await client.say(one);
      client.session.receive(Uint8Array.of(0xff, 0x0a));
      await client.session.idle();
      assert.deepEqual(await client.execute("query-kvm"), { return: { enabled: false, present: false } });
    }),
    { numRuns: 300 },
  );
  assert.deepEqual(client.log, [], "no handler failed by a bug");
});

test("a message beyond all bounds is one error", limit, async () => {
  const client = await connected();
  const replies = await client.say(`{"execute":"${"x".repeat(MESSAGE_MAX)}"}\n{"execute":"query-kvm"}`);
  assert.equal(replies.length, 2);
  assert.match(JSON.stringify(replies[0]), /a message has at most 1048576 bytes/);
});
