import assert from "node:assert/strict";
import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { VirtkitError } from "../../common/error.ts";
import { ControlServer } from "../../machine/control/server.ts";
import { FakeMachine } from "../../testing/control-machine.ts";
import { scratchFolder } from "../../testing/guest-files.ts";
import { startProgram } from "../../testing/guest-program.ts";
import { notedParts } from "../../testing/machine-parts.ts";
import { QmpClient } from "../../testing/qmp-client.ts";
import { ControlSocket } from "./control-socket.ts";
import type { SocketAddress } from "./socket-char.ts";

const limit = { timeout: 30_000 };

async function open(t: TestContext, address: SocketAddress) {
  const machine = await new FakeMachine().build();
  const { environment, messages } = notedParts();
  const server = new ControlServer({ machine, environment, version: "1.2.3" });
  const socket = await ControlSocket.open({ server, address, environment });
  t.after(() => socket.close());
  return { machine, server, socket, messages };
}

const unix = (t: TestContext): { path: string } => ({ path: join(scratchFolder(t), "qmp.sock") });
const descriptors = (): number => readdirSync("/proc/self/fd").length;

test("commands and events over a Unix socket, whose file goes at the end", limit, async (t) => {
  const address = unix(t);
  const before = descriptors();
  const { machine, socket, server } = await open(t, address);
  const client = await QmpClient.open(address.path);
  assert.deepEqual(await client.execute("query-status"), { running: true, status: "running" });
  await client.execute("stop");
  await client.event("STOP");
  assert.deepEqual(machine.calls, ["pause"]);
  await machine.kill();
  const closed = socket.close();
  assert.equal((await client.event("SHUTDOWN")).data?.["reason"], "host-signal");
  await client.closed;
  await closed;
  server.close();
  assert.equal(existsSync(address.path), false);
  assert.equal(descriptors(), before);
});

test("TCP on the loopback interface; a web page is let go at its first line", limit, async (t) => {
  const { socket, machine } = await open(t, { host: "127.0.0.1", port: 0 });
  const { port = 0 } = socket;
  const page = await QmpClient.reach({ host: "127.0.0.1", port });
  page.send('POST / HTTP/1.1\r\nHost: localhost\r\n\r\n{"execute":"qmp_capabilities"}{"execute":"quit"}');
  await page.closed;
  const client = await QmpClient.open({ host: "127.0.0.1", port });
  await client.execute("query-kvm");
  assert.deepEqual(machine.calls, []);
  client.close();
});

test("one client at a time: the next one is greeted when the first has gone", limit, async (t) => {
  const address = unix(t);
  const { machine } = await open(t, address);
  const first = await QmpClient.open(address.path);
  const second = await QmpClient.reach(address.path);
  const third = await QmpClient.reach(address.path);
  second.send('{"execute":"qmp_capabilities"}');
  await first.execute("stop");
  await first.execute("cont");
  assert.equal(second.messages.length, 0);
  third.close();
  first.send('{"execute":"stop"}{"exec');
  first.socket.end();
  assert.notEqual((await second.next()).QMP, undefined);
  await second.next();
  assert.deepEqual(await second.execute("query-status"), { running: false, status: "paused" });
  assert.deepEqual(machine.calls, ["pause", "resume", "pause"]);
  assert.equal(first.messages.at(-1)?.return !== undefined, true, "it got its last reply");
  second.close();
});

test("a hundred clients that come and go at any point leave nothing behind", limit, async (t) => {
  const address = unix(t);
  const { socket } = await open(t, address);
  const before = descriptors();
  for (let i = 0; i < 100; i++) {
    const client = await QmpClient.reach(address.path);
    if (i % 3 > 0) client.send('{"execute":"qmp_capabilities"}{"execute":"query-commands"}'.slice(0, i));
    if (i % 5 === 0) await client.next();
    client.close();
    await client.closed;
  }
  const last = await QmpClient.open(address.path);
  await last.execute("query-kvm");
  last.close();
  await last.closed;
  await socket.close();
  assert(descriptors() <= before);
});

test("a client that floods without reading is let go", limit, async (t) => {
  const address = unix(t);
  const { machine, messages } = await open(t, address);
  const client = await QmpClient.open(address.path);
  client.socket.pause();
  for (let i = 0; i < 60_000; i++) machine.events.emit(i % 2 === 0 ? "pause" : "resume");
  client.socket.resume();
  await client.closed;
  assert.match(messages.join(), /the client does not read; let go/);
  const next = await QmpClient.open(address.path);
  await next.execute("query-kvm");
  next.close();
});

test("a client that sends faster than it is answered is held back, and gets every answer", limit, async (t) => {
  const address = unix(t);
  await open(t, address);
  const client = await QmpClient.open(address.path);
  const count = 20_000;
  client.send('{"execute":"query-kvm"}\n'.repeat(count));
  for (let i = 0; i < count; i++) assert.notEqual((await client.next()).return, undefined);
  client.close();
});

test("what is in the way: a socket left behind is replaced, all else is refused", limit, async (t) => {
  const folder = scratchFolder(t);
  const refused = (path: string, message: RegExp): Promise<void> =>
    assert.rejects(
      open(t, { path }),
      (error: unknown) =>
        error instanceof VirtkitError && error.code === "ERR_VIRTKIT_CONTROL_SOCKET" && message.test(error.message),
    );
  const file = join(folder, "file");
  writeFileSync(file, "precious");
  await refused(file, /unix:.*file cannot be listened on: there is a file of that name that is no socket/);
  mkdirSync(join(folder, "folder"));
  await refused(join(folder, "folder"), /is no socket/);
  await refused(join(folder, "no", "such"), /cannot be listened on: no such directory/);
  await refused(join(folder, "x".repeat(200)), /cannot be listened on/);

  const busy = join(folder, "busy");
  const other = createServer();
  await new Promise<void>((resolve) => other.listen(busy, resolve));
  t.after(() => other.close());
  await refused(busy, /another program listens there/);

  const stale = join(folder, "stale");
  const script = `require("net").createServer().listen(${JSON.stringify(stale)}, () => process.kill(process.pid, "SIGKILL"))`;
  await startProgram([process.execPath, "-e", script]).ended;
  assert(existsSync(stale));
  await open(t, { path: stale });
  const client = await QmpClient.open(stale);
  await client.execute("query-kvm");
  client.close();
});

test("`firstClient` waits for one, or for the end", limit, async (t) => {
  const address = unix(t);
  const { socket } = await open(t, address);
  const client = await QmpClient.reach(address.path);
  await socket.firstClient;
  client.close();
  const other = await open(t, unix(t));
  await other.socket.close();
  await other.socket.firstClient;
});
