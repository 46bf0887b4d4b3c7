import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { EventEmitter, once } from "node:events";
import * as fs from "node:fs";
import * as net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { PassThrough } from "node:stream";
import { after, test } from "node:test";
import { CharClient, charBackendContract, someBytes, turns } from "../../testing/char-backend.ts";
import { testEnvironment } from "../../testing/rig.ts";
import { openFileChar, openPipeChar } from "./file-char.ts";
import { enterRawMode, type ProcessLike } from "./raw-mode.ts";
import { openSocketChar } from "./socket-char.ts";
import { Terminal, type TerminalOptions } from "./terminal.ts";

const limit = { timeout: 20_000 };
const environment = testEnvironment;
const folder = fs.mkdtempSync(join(tmpdir(), "virtkit-char-"));
after(() => fs.rmSync(folder, { recursive: true, force: true }));
let names = 0;
const newPath = (): string => join(folder, `c${names++}`);

/** The other end of a socket: everything that came. */
function listening(socket: net.Socket): () => Uint8Array {
  const parts: Uint8Array[] = [];
  socket.on("data", (part) => parts.push(part));
  socket.on("error", () => undefined);
  return () => Buffer.concat(parts);
}

const sender = (socket: net.Socket) => (bytes: Uint8Array) =>
  new Promise<void>((resolve) => socket.write(bytes, () => resolve()));

charBackendContract("file", async () => {
  const path = newPath();
  const inputPath = newPath();
  fs.writeFileSync(inputPath, someBytes(50_000));
  const backend = await openFileChar({ path, inputPath, environment });
  return { backend, written: () => fs.readFileSync(path), send: () => undefined };
});

charBackendContract("unix server", async () => {
  const path = newPath();
  const backend = await openSocketChar({ address: { path }, server: true, wait: false, environment });
  const socket = net.connect(path);
  await turns(() => backend.connected);
  return { backend, written: listening(socket), send: sender(socket), undo: () => void socket.destroy() };
});

charBackendContract("tcp client", async () => {
  const server = net.createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const accepted = once(server, "connection");
  const { port } = server.address() as net.AddressInfo;
  const backend = await openSocketChar({ address: { host: "127.0.0.1", port }, environment });
  const [socket] = (await accepted) as [net.Socket];
  return { backend, written: listening(socket), send: sender(socket), undo: () => void server.close() };
});

charBackendContract("pipe", async () => {
  const path = newPath();
  execFileSync("mkfifo", [`${path}.in`, `${path}.out`]);
  const backend = await openPipeChar(path);
  const flags = fs.constants.O_RDWR | fs.constants.O_NONBLOCK;
  const out = new net.Socket({ fd: fs.openSync(`${path}.out`, flags), readable: true, writable: false });
  const into = new net.Socket({ fd: fs.openSync(`${path}.in`, flags), readable: false, writable: true });
  return {
    backend,
    written: listening(out),
    send: sender(into),
    undo: () => {
      out.destroy();
      into.destroy();
    },
  };
});

class FakeInput extends PassThrough {
  isTTY = true;
  readonly modes: boolean[] = [];
  setRawMode(raw: boolean): this {
    this.modes.push(raw);
    return this;
  }
}

function terminal(options: Partial<TerminalOptions> = {}) {
  const input = new FakeInput();
  const output = Object.assign(new PassThrough({ highWaterMark: 1024 }), { columns: 100, rows: 40 });
  let quits = 0;
  const made = new Terminal({ input, output, onQuit: () => quits++, ...options });
  return { input, output, terminal: made, quits: () => quits };
}

charBackendContract("terminal", async () => {
  const { input, output, terminal: made } = terminal({ mux: false });
  const parts: Uint8Array[] = [];
  output.on("data", (part) => parts.push(part));
  return {
    backend: made.channel(),
    written: () => Buffer.concat(parts),
    send: (bytes) => void input.write(bytes),
  };
});

test("terminal: Ctrl-A X quits also when the guest does not read, Ctrl-C reaches the guest", limit, async () => {
  const { input, terminal: made, quits } = terminal();
  const client = new CharClient(made.channel());
  client.room = 0;
  input.write("ls\n\x03");
  for (let i = 0; i < 100; i++) input.write("x".repeat(10_000));
  input.write("\x01x");
  await turns(() => quits() === 1);
  client.take(4);
  assert.equal(Buffer.from(client.received).toString(), "ls\n\x03");
  made.close();
  assert.deepEqual(input.modes, [true, false]);
});

test("terminal: two consoles, Ctrl-A C switches, both are shown", limit, async () => {
  const { input, output, terminal: made } = terminal();
  const one = new CharClient(made.channel("serial0"));
  const two = new CharClient(made.channel("hvc0"));
  input.write("a\x01cb\x01cc");
  await turns(() => one.received.length === 2);
  assert.equal(Buffer.from(one.received).toString(), "ac");
  assert.equal(Buffer.from(two.received).toString(), "b");
  one.backend.write(Buffer.from("1"));
  two.backend.write(Buffer.from("2"));
  assert.equal(output.read().toString(), "\r\n[hvc0]\r\n\r\n[serial0]\r\n12");
  input.write("\x01h");
  await turns(() => output.readableLength > 0);
  assert.match(output.read().toString(), /Ctrl-A X/);
  await one.backend.close();
  assert.deepEqual(input.modes, [true]);
  await two.backend.close();
  assert.deepEqual(input.modes, [true, false]);
});

test("terminal: with signal, Ctrl-C is ours", limit, async () => {
  let interrupts = 0;
  const { input, terminal: made } = terminal({ signal: true, onInterrupt: () => interrupts++ });
  const client = new CharClient(made.channel());
  input.write("\x03");
  await turns(() => interrupts === 1);
  assert.equal(client.received.length, 0);
  made.close();
});

test("terminal: the window's size and its changes", limit, () => {
  const { output, terminal: made } = terminal();
  new CharClient(made.channel());
  assert.deepEqual(made.size, { cols: 100, rows: 40 });
  const sizes: number[][] = [];
  made.onResize = (cols, rows) => sizes.push([cols, rows]);
  output.columns = 90;
  output.emit("resize");
  assert.deepEqual(sizes, [[90, 40]]);
  made.close();
});

class FakeProcess extends EventEmitter implements ProcessLike {
  readonly pid = 42;
  readonly kills: string[] = [];
  kill(_pid: number, signal: string): void {
    this.kills.push(signal);
  }
}

test("raw mode: put back at exit, before an exception is shown, and at every signal that ends a program", limit, () => {
  for (const event of ["exit", "uncaughtExceptionMonitor", "SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"]) {
    const input = new FakeInput();
    const host = new FakeProcess();
    const leave = enterRawMode(input, host);
    host.emit(event);
    assert.deepEqual(input.modes, [true, false], event);
    assert.deepEqual(host.kills, event.startsWith("SIG") ? [event] : []);
    leave();
    assert.deepEqual(input.modes, [true, false], event);
    assert.deepEqual(host.eventNames(), []);
  }
});

test(
  "raw mode: a signal that the program handles does not end it; after a stop the terminal is raw again",
  limit,
  () => {
    const input = new FakeInput();
    const host = new FakeProcess();
    host.on("SIGTERM", () => undefined);
    const leave = enterRawMode(input, host);
    host.emit("SIGTERM");
    assert.deepEqual(host.kills, []);
    host.emit("SIGCONT");
    leave();
    assert.deepEqual(input.modes, [true, false, true, false]);
    const file = new FakeInput();
    file.isTTY = false;
    enterRawMode(file, host)();
    assert.deepEqual(file.modes, []);
  },
);

test("raw mode: a real process is ended by a signal, with the terminal put back", limit, async () => {
  const module = new URL("./raw-mode.ts", import.meta.url).href;
  const code = `import { enterRawMode } from ${JSON.stringify(module)};
    enterRawMode({ isTTY: true, setRawMode: (raw) => process.stdout.write(raw ? "raw " : "cooked ") });
    setInterval(() => {}, 1000);`;
  for (const signal of ["SIGTERM", "SIGINT", "SIGHUP"] as const) {
    const child = spawn(process.execPath, ["--import", "tsx", "--input-type=module", "-e", code]);
    let out = "";
    child.stdout.on("data", (part: Buffer) => {
      out += part.toString();
      if (out === "raw ") child.kill(signal);
    });
    const [exitCode, by] = (await once(child, "close")) as [number | null, string | null];
    assert.deepEqual([out, exitCode, by], ["raw cooked ", null, signal]);
  }
});

test("file: emptied, or appended to", limit, async () => {
  const path = newPath();
  fs.writeFileSync(path, "old ");
  const appended = await openFileChar({ path, append: true, environment });
  await new CharClient(appended).write(Buffer.from("new"));
  await appended.close();
  assert.equal(fs.readFileSync(path, "utf8"), "old new");
  await (await openFileChar({ path, environment })).close();
  assert.equal(fs.readFileSync(path, "utf8"), "");
});

test("socket: a server waits for its first client, has one at a time, and tells the guest of each", limit, async () => {
  const path = newPath();
  const opening = openSocketChar({ address: { path }, server: true, environment });
  await turns(() => fs.existsSync(path));
  const first = net.connect(path);
  const backend = await opening;
  const client = new CharClient(backend);
  const second = net.connect(path);
  const heard = listening(second);
  second.write("hello");
  first.write("bye");
  await turns(() => client.received.length === 3);
  first.destroy();
  await turns(() => client.received.length === 8);
  assert.equal(Buffer.from(client.received).toString(), "byehello");
  assert.deepEqual(client.opens, [true, false, true]);
  await client.write(Buffer.from("to the second"));
  await turns(() => heard().length === 13);
  second.destroy();
  await turns(() => client.opens.length === 4);
  assert.equal(backend.write(someBytes(10)), 10, "nobody is there: dropped");
  await backend.close();
  assert.equal(fs.existsSync(path), false);
});

test("socket: a stale socket file is replaced, one in use is not", limit, async () => {
  const path = newPath();
  const options = { address: { path }, server: true, wait: false, environment };
  const backend = await openSocketChar(options);
  await assert.rejects(openSocketChar(options), { code: "ERR_VIRTKIT_CHARDEV_OPEN", message: /^path=.*EADDRINUSE/ });
  await backend.close();
  const server = `require("net").createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, "SIGKILL"))`;
  await once(spawn(process.execPath, ["-e", server]), "close");
  assert.equal(fs.existsSync(path), true);
  await (await openSocketChar(options)).close();
});

test("socket: a client connects again after the connection was lost", limit, async () => {
  const timers: (() => void)[] = [];
  const patient = {
    ...environment,
    after: (_milliseconds: number, task: () => void) => {
      timers.push(task);
      return () => undefined;
    },
  };
  const path = newPath();
  const backend = await openSocketChar({ address: { path }, reconnect: 1, environment: patient });
  assert.equal(backend.connected, false);
  const server = net.createServer((socket) => socket.end("x")).listen(path);
  await once(server, "listening");
  timers.shift()?.();
  await turns(() => timers.length === 1);
  timers.shift()?.();
  await turns(() => timers.length === 1);
  await backend.close();
  server.close();
});

test("closing does not wait for ever for a reader that does not read", limit, async () => {
  const path = newPath();
  const fifo = newPath();
  execFileSync("mkfifo", [`${fifo}.in`, `${fifo}.out`]);
  const server = await openSocketChar({ address: { path }, server: true, wait: false, environment });
  const socket = net.connect(path);
  socket.on("error", () => undefined);
  await turns(() => server.connected);
  for (const backend of [server, await openPipeChar(fifo)]) {
    new CharClient(backend);
    // More than any buffer of the system's holds: what it has not taken stays in the stream.
    assert.equal(backend.write(new Uint8Array(64 * 1024 * 1024)), 64 * 1024 * 1024);
    await backend.close();
  }
  socket.destroy();
});

test("what cannot be opened is refused by its option", limit, async () => {
  const missing = join(folder, "no", "such");
  await assert.rejects(openFileChar({ path: missing, environment }), {
    code: "ERR_VIRTKIT_CHARDEV_OPEN",
    message: /^path=/,
  });
  await assert.rejects(openFileChar({ path: newPath(), inputPath: missing, environment }), { message: /^input-path=/ });
  await assert.rejects(openPipeChar(missing), { code: "ERR_VIRTKIT_CHARDEV_OPEN", message: /mkfifo/ });
  await assert.rejects(openSocketChar({ address: { path: missing }, environment }), {
    code: "ERR_VIRTKIT_CHARDEV_OPEN",
  });
  const file = newPath();
  fs.writeFileSync(`${file}.in`, "");
  await assert.rejects(openPipeChar(file), { message: /it is no FIFO/ });
});
