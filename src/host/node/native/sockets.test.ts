import assert from "node:assert/strict";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { assertNothingLeft, heldResources } from "../../../testing/resources.ts";
import { loadNative, nativeProblem } from "./load.ts";
import { createMemoryFile } from "./memory.ts";
import { closeDescriptors, DescriptorListener, DescriptorSocket, duplicateDescriptor } from "./sockets.ts";

const limit = { timeout: 60_000, skip: nativeProblem() ?? false };
const folder = fs.mkdtempSync(join(tmpdir(), "virtkit-sockets-"));
after(() => fs.rmSync(folder, { recursive: true, force: true }));

const withCode = (code: string) => (error: { code?: string }) => error.code === code;

/** Accepts one connection. */
function acceptOne(listener: DescriptorListener): Promise<DescriptorSocket> {
  return new Promise((resolve, reject) => listener.accept(resolve, reject));
}

test("bytes and descriptors arrive at the message that they were sent with", limit, async () => {
  const [a, b] = DescriptorSocket.pair();
  const file = createMemoryFile("virtkit-test", 4096);
  fs.writeSync(file, "shared", 0);
  await a.send(Buffer.from("first"));
  await a.send(Buffer.from("second"), [file, file]);
  closeDescriptors([file]);
  const first = new Uint8Array(5);
  assert.deepEqual(await b.receive(first, 8), []);
  assert.equal(Buffer.from(first).toString(), "first");
  const second = new Uint8Array(6);
  const fds = (await b.receive(second, 2)) as number[];
  assert.equal(Buffer.from(second).toString(), "second");
  assert.equal(fds.length, 2);
  const text = Buffer.alloc(6);
  fs.readSync(fds[1] as number, text, 0, 6, 0);
  assert.equal(text.toString(), "shared");
  const flags = fs.readFileSync(`/proc/self/fdinfo/${fds[0]}`, "utf8").match(/flags:\s*(\d+)/)?.[1] ?? "0";
  assert.notEqual(Number.parseInt(flags, 8) & 0o2000000, 0, "closed on exec");
  closeDescriptors(fds);
  a.close();
  b.close();
});

test("a message that comes in pieces is one receive, and the end is told from a cut", limit, async () => {
  const [a, b] = DescriptorSocket.pair();
  const into = new Uint8Array(8);
  const received = b.receive(into);
  await a.send(Buffer.from("pie"));
  await a.send(Buffer.from("ces!!"));
  assert.deepEqual(await received, []);
  assert.equal(Buffer.from(into).toString(), "pieces!!");
  await a.send(Buffer.from("cut"));
  const cut = b.receive(into);
  a.close();
  await assert.rejects(cut, withCode("ERR_VIRTKIT_SOCKET_SHORT"));
  assert.equal(await b.receive(into), undefined);
  b.close();
  await assert.rejects(b.receive(into), withCode("ERR_VIRTKIT_SOCKET_CLOSED"));
});

test("descriptors too many are an error, and none of them stays open", limit, async () => {
  const file = createMemoryFile("virtkit-test", 4096);
  const before = heldResources();
  for (const max of [0, 1, 2]) {
    const [a, b] = DescriptorSocket.pair();
    await a.send(Buffer.from("x"), [file, file, file]);
    await assert.rejects(b.receive(new Uint8Array(1), max), withCode("ERR_VIRTKIT_SOCKET_DESCRIPTORS"));
    a.close();
    b.close();
  }
  // Within the limit for each piece, beyond it for the message.
  const [a, b] = DescriptorSocket.pair();
  const received = b.receive(new Uint8Array(2), 3);
  await a.send(Buffer.from("x"), [file, file]);
  await a.send(Buffer.from("y"), [file, file]);
  await assert.rejects(received, withCode("ERR_VIRTKIT_SOCKET_DESCRIPTORS"));
  a.close();
  b.close();
  assertNothingLeft(before);
  closeDescriptors([file]);
});

test("what is sent faster than it is read waits, in order", limit, async () => {
  const [a, b] = DescriptorSocket.pair();
  const big = Buffer.alloc(1 << 20, 1);
  const sends = [a.send(big), a.send(Buffer.from("end"))];
  const into = new Uint8Array((1 << 20) + 3);
  assert.deepEqual(await b.receive(into), []);
  await Promise.all(sends);
  assert.equal(into[(1 << 20) - 1], 1);
  assert.equal(Buffer.from(into.subarray(1 << 20)).toString(), "end");
  // The peer goes away under a send that waits.
  const stuck = a.send(Buffer.alloc(8 << 20));
  b.close();
  await assert.rejects(stuck, withCode("ERR_VIRTKIT_SOCKET"));
  a.close();
});

test("two receives at once, and what waits at close", limit, async () => {
  const [a, b] = DescriptorSocket.pair();
  const first = b.receive(new Uint8Array(1));
  await assert.rejects(b.receive(new Uint8Array(1)), withCode("ERR_VIRTKIT_SOCKET_BUSY"));
  b.close();
  await assert.rejects(first, withCode("ERR_VIRTKIT_SOCKET_CLOSED"));
  assert.equal(b.closed, true);
  a.close();
});

test("listening and connecting by path, and by an abstract name", limit, async () => {
  for (const path of [join(folder, "s"), `\0virtkit-test-${process.pid}`]) {
    assert.throws(() => DescriptorSocket.connect(path), withCode("ERR_VIRTKIT_SOCKET"));
    const listener = DescriptorListener.listen(path);
    assert.throws(() => DescriptorListener.listen(path), withCode("ERR_VIRTKIT_SOCKET"));
    const accepted = acceptOne(listener);
    const client = DescriptorSocket.connect(path);
    const server = await accepted;
    await client.send(Buffer.from("hi"));
    const into = new Uint8Array(2);
    await server.receive(into);
    assert.equal(Buffer.from(into).toString(), "hi");
    for (const open of [client, server, listener]) open.close();
  }
  assert.throws(() => DescriptorSocket.connect("x".repeat(108)), /shorter/);
});

test("1,000 sessions leave no descriptor behind", limit, async () => {
  const path = join(folder, "many");
  const listener = DescriptorListener.listen(path, 64);
  const file = createMemoryFile("virtkit-test", 4096);
  let next: (socket: DescriptorSocket) => void = () => undefined;
  listener.accept(
    (socket) => next(socket),
    (error) => assert.fail(error),
  );
  const before = heldResources();
  for (let i = 0; i < 1000; i++) {
    const accepted = new Promise<DescriptorSocket>((resolve) => {
      next = resolve;
    });
    const client = DescriptorSocket.connect(path);
    const server = await accepted;
    await client.send(Buffer.from("abc"), [file]);
    if (i % 2 === 0) closeDescriptors((await server.receive(new Uint8Array(3), 1)) as number[]);
    else client.close();
    server.close();
    client.close();
  }
  assertNothingLeft(before);
  listener.close();
  closeDescriptors([file]);
});

test("arguments that lie are refused by the add-on itself", limit, () => {
  const native = loadNative();
  const fds = new Int32Array(2);
  const code = withCode("ERR_VIRTKIT_NATIVE_ARGUMENT");
  const bytes = new Uint8Array(4);
  assert.throws(() => native.socketReceive(0, bytes, 2, 3, fds), code);
  assert.throws(() => native.socketReceive(0, bytes, -1, 3, fds), code);
  assert.throws(() => native.socketReceive(0, bytes, Number.NaN, 1, fds), code);
  assert.throws(() => native.socketReceive(0, bytes, 0, 1, new Int32Array(0)), code);
  assert.throws(() => native.socketSend(0, bytes, 0, 4, fds, 3), code);
  assert.throws(() => (native.socketAccept as (...args: unknown[]) => number)(), code);
  assert.throws(() => native.duplicate(1.5), code);
  const copy = duplicateDescriptor(2);
  assert.ok(copy > 2);
  closeDescriptors([copy]);
});
