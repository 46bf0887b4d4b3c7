import assert from "node:assert/strict";
import { test } from "node:test";
import { UsageError } from "../../machine/usage-error.ts";
import { parseControl } from "./control.ts";

const limit = { timeout: 5000 };

test("QEMU's forms of an address", limit, () => {
  const unix = { path: "/run/vm.sock" };
  for (const [text, address, wait] of [
    ["unix:/run/vm.sock,server", unix, false],
    ["unix:/run/vm.sock,server=on,wait=off", unix, false],
    ["unix:/run/vm.sock,server,nowait", unix, false],
    ["unix:/run/vm.sock,server=on,wait=on", unix, true],
    ["unix:a,,b.sock,server=on", { path: "a,b.sock" }, false],
    ["tcp:localhost:4444,server=on,wait=off", { host: "localhost", port: 4444 }, false],
    ["tcp::4444,server", { host: "localhost", port: 4444 }, false],
    ["tcp:127.0.0.1:0,server", { host: "127.0.0.1", port: 0 }, false],
    ["tcp:[::1]:4444,server", { host: "::1", port: 4444 }, false],
  ] as const)
    assert.deepEqual(parseControl(text), { option: `-qmp ${text}`, address, wait });
});

for (const [text, message] of [
  ["stdio", /no address of a socket\nWrite -qmp unix:PATH,server=on/],
  ["unix:,server", /no address/],
  ["unix:/a.sock", /does not connect to a client by itself\nAdd server=on/],
  ["tcp:localhost,server", /'localhost' is no address/],
  ["tcp:localhost:99999,server", /is no address/],
  ["tcp:0.0.0.0:4444,server", /'0\.0\.0\.0' is not on this machine's loopback interface/],
  ["unix:/a.sock,server=maybe", /Parameter 'server' expects 'on' or 'off'/],
  ["unix:/a.sock,server,telnet=on", /'telnet' is not supported/],
  ["unix:/a.sock,server,wiat=off", /Invalid parameter 'wiat'\nDid you mean 'wait'/],
  ["unix:/a.sock,sever", /Invalid parameter 'sever'\nDid you mean 'server'/],
  ["unix:/a.sock,serve=on", /Invalid parameter 'serve'\nDid you mean 'server'/],
] as const)
  test(`refused: -qmp ${text}`, limit, () => {
    assert.throws(
      () => parseControl(text),
      (error: unknown) => error instanceof UsageError && message.test(error.message),
    );
  });
