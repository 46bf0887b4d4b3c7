import assert from "node:assert/strict";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { BLOCK_OK, BLOCK_READ, BLOCK_WRITE } from "../../backend/block/types.ts";
import { RingCharBackend } from "../../backend/char/ringbuf.ts";
import { VirtkitError } from "../../common/error.ts";
import { type ChardevBackend, cacheOf, type DriveOptions } from "../../machine/description.ts";
import { BlockClient } from "../../testing/block-client.ts";
import { notedParts } from "../../testing/machine-parts.ts";
import { NodeBackends } from "./backend-factory.ts";
import { formatOf } from "./image-format.ts";

const OPTIONS = { timeout: 20_000 };
let folder = "";

before(async () => {
  folder = await mkdtemp(join(tmpdir(), "virtkit-backends-"));
  await writeFile(join(folder, "raw.img"), new Uint8Array(4096));
  await writeFile(join(folder, "other.img"), Buffer.from("QFI\xfb\0\0\0\x03".padEnd(4096, "\0"), "latin1"));
});
after(() => rm(folder, { recursive: true, force: true }));

function factory(): { backends: NodeBackends; messages: string[] } {
  const { environment, messages } = notedParts();
  return { backends: new NodeBackends({ environment, onQuit: () => undefined }), messages };
}

const drive = (name: string, more: Partial<DriveOptions> = {}): DriveOptions => ({
  option: "-drive",
  id: "d",
  source: { file: join(folder, name) },
  format: "raw",
  interface: "none",
  readOnly: false,
  cache: cacheOf("writeback"),
  aio: "threads",
  locking: true,
  discard: "ignore",
  ...more,
});

const chardev = (backend: ChardevBackend) => ({ option: "-chardev", id: "c", backend });

const isError = (code: string, message: RegExp) => (error: unknown) =>
  error instanceof VirtkitError && error.code === code && message.test(error.message);

test("a raw image, with and without its format", OPTIONS, async () => {
  const { backends, messages } = factory();
  const named = await backends.openDrive(drive("raw.img"));
  assert.deepEqual([named.capacity, named.readOnly, messages], [4096, false, []]);
  await named.close();
  const guessed = await backends.openDrive(drive("raw.img", { format: undefined, readOnly: true }));
  assert.equal(guessed.readOnly, true);
  assert.match(messages.join("\n"), /warn: .*raw\.img: no format was given/);
  await guessed.close();
});

test("snapshot=on: the image stays as it is, and the temporary file has no name", OPTIONS, async () => {
  const { backends } = factory();
  const tmp = await mkdtemp(join(folder, "tmp-"));
  const before = process.env["TMPDIR"];
  process.env["TMPDIR"] = tmp;
  try {
    const one = await backends.openDrive(drive("raw.img", { snapshot: true }));
    const two = await backends.openDrive(drive("raw.img", { snapshot: true }));
    assert.deepEqual([one.readOnly, one.capacity, await readdir(tmp)], [false, 4096, []]);
    const client = new BlockClient(one);
    const data = new Uint8Array(512).fill(5);
    const into = new Uint8Array(512);
    const pieces = (buffer: Uint8Array) => [{ buffer, offset: 0, length: 512 }];
    assert.deepEqual(await client.run({ op: BLOCK_WRITE, offset: 512, pieces: pieces(data) }), [BLOCK_OK]);
    assert.deepEqual(await client.run({ op: BLOCK_READ, offset: 512, pieces: pieces(into) }), [BLOCK_OK]);
    assert.deepEqual(into, data);
    await one.close();
    await two.close();
    assert.ok((await readFile(join(folder, "raw.img"))).every((byte) => byte === 0));
    process.env["TMPDIR"] = join(tmp, "missing");
    const failed = backends.openDrive(drive("raw.img", { snapshot: true }));
    await assert.rejects(failed, isError("ERR_VIRTKIT_SCRATCH", /set TMPDIR/));
    await (await backends.openDrive(drive("raw.img"))).close();
  } finally {
    if (before === undefined) delete process.env["TMPDIR"];
    else process.env["TMPDIR"] = before;
  }
});

test("an image of another format is refused, unless it is said to be raw", OPTIONS, async () => {
  const { backends } = factory();
  await assert.rejects(
    backends.openDrive(drive("other.img", { format: undefined })),
    isError("ERR_VIRTKIT_IMAGE_FORMAT", /is a qcow2 image.*qemu-img convert -O raw .*other\.img .*other\.raw$/),
  );
  await (await backends.openDrive(drive("other.img"))).close();
});

test("an image is locked against other drives, if it is to be", OPTIONS, async () => {
  const { backends } = factory();
  const first = await backends.openDrive(drive("raw.img"));
  await assert.rejects(backends.openDrive(drive("raw.img")), isError("ERR_VIRTKIT_IMAGE_LOCKED", /in use/));
  await (await backends.openDrive(drive("raw.img", { locking: false }))).close();
  await first.close();
});

test("a missing image and a directory", OPTIONS, async () => {
  const { backends } = factory();
  await assert.rejects(backends.openDrive(drive("no.img")), isError("ERR_VIRTKIT_IMAGE_MISSING", /no\.img/));
  await assert.rejects(backends.openDrive(drive(".")), isError("ERR_VIRTKIT_IMAGE_DIRECTORY", /directory/));
});

test("formats by their first bytes", OPTIONS, () => {
  const bytes = (text: string) => Buffer.from(text, "latin1");
  assert.equal(formatOf(bytes("KDMV....")), "vmdk");
  assert.equal(formatOf(bytes(`${"x".repeat(64)}\x7f\x10\xda\xbe`)), "vdi");
  assert.equal(formatOf(bytes("LUKS\xba\xbe\0\x01")), "luks");
  assert.equal(formatOf(bytes("QFI")), "raw");
  assert.equal(formatOf(bytes("")), "raw");
});

test("chardevs", OPTIONS, async () => {
  const { backends } = factory();
  const path = join(folder, "out.log");
  const file = await backends.openChardev(chardev({ type: "file", path, append: false, inputPath: undefined }));
  assert.equal(file.write(Buffer.from("hello")), 5);
  await file.close();
  assert.equal(await readFile(path, "utf8"), "hello");
  assert.equal((await backends.openChardev(chardev({ type: "null" }))).write(new Uint8Array(3)), 3);
  assert.ok((await backends.openChardev(chardev({ type: "ringbuf", size: 16 }))) instanceof RingCharBackend);
  await assert.rejects(
    backends.openChardev(chardev({ type: "file", path: join(folder, "no", "x"), append: false, inputPath: undefined })),
    isError("ERR_VIRTKIT_CHARDEV_OPEN", /path=/),
  );
});

test("random numbers of the host, and of a device", OPTIONS, async () => {
  const { backends } = factory();
  for (const options of [{ type: "builtin" }, { type: "file", path: "/dev/urandom", id: "r" }] as const) {
    const source = await backends.openEntropy(options);
    const bytes = new Uint8Array(100_000);
    source.fill(bytes);
    assert.ok(new Set(bytes.subarray(-1000)).size > 200, options.type);
  }
  // A device without any: what is missing comes from the host.
  const bytes = new Uint8Array(1000);
  (await backends.openEntropy({ type: "file", path: "/dev/null", id: "r" })).fill(bytes);
  assert.ok(new Set(bytes).size > 200);
  for (const [path, why] of [
    [join(folder, "no"), /no such file/],
    [join(folder, "raw.img"), /it is no device/],
  ] as const)
    await assert.rejects(backends.openEntropy({ type: "file", path, id: "r" }), isError("ERR_VIRTKIT_RNG_OPEN", why));
});
