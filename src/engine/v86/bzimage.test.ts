import assert from "node:assert/strict";
import { test } from "node:test";
import { gunzipSync, gzipSync } from "node:zlib";
import { type Decompress, prepareKernel } from "./bzimage.ts";
import { checkLinuxBoot, placeLinux } from "./linux-boot.ts";
import { Monitor } from "./monitor.test.support.ts";

const LIMIT = { timeout: 20_000 };
const SETUP_SIZE = 3 * 512;
const PREFERRED = 0x400000;
const INIT_SIZE = 0x180000;

/** An ELF file for i386 with one segment of `text` at `address`. */
function elf(address: number, text: Uint8Array, entry = address, kind = 1): Uint8Array {
  const bytes = new Uint8Array(84 + text.length);
  const view = new DataView(bytes.buffer);
  bytes.set([0x7f, 0x45, 0x4c, 0x46, kind, 1, 1]);
  view.setUint16(18, 3, true);
  view.setUint32(24, entry, true);
  view.setUint32(28, 52, true);
  view.setUint16(42, 32, true);
  view.setUint16(44, 1, true);
  view.setUint32(52, 1, true);
  view.setUint32(56, 84, true);
  view.setUint32(64, address, true);
  view.setUint32(68, text.length, true);
  bytes.set(text, 84);
  return bytes;
}

function bzImage(payload: Uint8Array, change: (view: DataView) => void = () => {}): Uint8Array {
  const bytes = new Uint8Array(SETUP_SIZE + 16 + payload.length);
  const view = new DataView(bytes.buffer);
  bytes[0x1f1] = 2;
  view.setUint16(0x1fe, 0xaa55, true);
  view.setUint32(0x202, 0x53726448, true);
  view.setUint16(0x206, 0x20f, true);
  bytes[0x211] = 1;
  view.setUint32(0x22c, 0x7fffffff, true);
  view.setUint32(0x238, 2047, true);
  view.setUint32(0x248, 16, true);
  view.setUint32(0x24c, payload.length, true);
  view.setUint32(0x258, PREFERRED, true);
  view.setUint32(0x260, INIT_SIZE, true);
  bytes.fill(0xcc, SETUP_SIZE, SETUP_SIZE + 16);
  bytes.set(payload, SETUP_SIZE + 16);
  change(view);
  return bytes;
}

const TEXT = Uint8Array.from({ length: 100 }, (_, i) => i);
const gunzip: Decompress = (format, payload) => (format === "gzip" ? gunzipSync(payload) : undefined);

test("a kernel whose payload can be unpacked is taken apart", LIMIT, async () => {
  const kernel = await prepareKernel(bzImage(gzipSync(elf(PREFERRED, TEXT))), "vmlinuz", gunzip);
  assert.equal(kernel.decompressed, true);
  assert.equal(kernel.setup.length, SETUP_SIZE);
  assert.equal(kernel.commandLineSize, 2047);
  assert.equal(kernel.freeAddress, 0x600000);
  const [text, jump] = kernel.segments;
  assert.deepEqual([text?.address, [...(text?.bytes ?? [])]], [PREFERRED, [...TEXT]]);
  assert.deepEqual([jump?.address, [...(jump?.bytes ?? [])]], [0x100000, [0xb8, 0, 0, 0x40, 0, 0xff, 0xe0]]);
});

test("the stream a decompressor gets is without the size that the kernel's build appends", LIMIT, async () => {
  const seen: [string, number][] = [];
  const payload = Uint8Array.of(0xfd, 0x37, 0x7a, 0x58, 0x5a, 0, 9, 9, 9, 9);
  const kernel = await prepareKernel(bzImage(payload), "vmlinuz", (format, stream) => {
    seen.push([format, stream.length]);
    return elf(PREFERRED, TEXT);
  });
  assert.deepEqual(seen, [["xz", 6]]);
  assert.equal(kernel.decompressed, true);
});

test("what cannot be unpacked is left to the guest, and the reason is told", LIMIT, async () => {
  const xz = Uint8Array.of(0xfd, 0x37, 0x7a, 0x58, 0x5a, 0, 9, 9, 9, 9);
  const gzip = gzipSync(elf(PREFERRED, TEXT));
  const cases: [Uint8Array, Decompress | undefined, RegExp][] = [
    [gzip, undefined, /no decompressor was given/],
    [xz, gunzip, /no decompressor for xz/],
    [gzip.subarray(0, 40), gunzip, /^gzip: /],
    [gzipSync(Uint8Array.of(1, 2, 3)), gunzip, /no ELF/],
    [gzipSync(elf(PREFERRED, TEXT).subarray(0, 90)), gunzip, /no ELF/],
    [gzipSync(elf(PREFERRED, TEXT, 0x999999).fill(0xff, 28, 32)), gunzip, /no ELF/],
    [Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8), gunzip, /unknown/],
  ];
  for (const [payload, decompress, reason] of cases) {
    const image = bzImage(payload);
    const kernel = await prepareKernel(image, "vmlinuz", decompress);
    assert.equal(kernel.decompressed, false);
    assert.match(kernel.reason ?? "", reason);
    assert.equal(kernel.segments.length, 1);
    assert.equal(kernel.segments[0]?.address, 0x100000);
    assert.deepEqual(kernel.segments[0]?.bytes, image.slice(SETUP_SIZE));
  }
});

test("a file that is no kernel for this machine is refused by name and reason", LIMIT, async () => {
  const good = gzipSync(elf(PREFERRED, TEXT));
  const cases: [Uint8Array, RegExp][] = [
    [new Uint8Array(0), /x is not a Linux bzImage: it has only 0 bytes/],
    [new Uint8Array(5000), /x is not a Linux bzImage: .*magic/],
    [elf(PREFERRED, TEXT), /x is not a Linux bzImage: it is an ELF file/],
    [bzImage(good, (view) => view.setUint16(0x206, 0x204, true)), /boot protocol is 2\.04/],
    [bzImage(good, (view) => view.setUint8(0x211, 0)), /zImage/],
    [bzImage(good, (view) => view.setUint16(0x236, 1, true)), /64-bit processors.*686/],
    [bzImage(gzipSync(elf(PREFERRED, TEXT, PREFERRED, 2))), /64-bit processors/],
    [bzImage(good).subarray(0, SETUP_SIZE), /ends before the kernel/],
  ];
  for (const [bytes, message] of cases)
    await assert.rejects(prepareKernel(bytes, "x", gunzip), { code: "ERR_VIRTKIT_KERNEL", message });
});

test("a command line or an initrd that does not fit is refused with what would", LIMIT, async () => {
  const kernel = await prepareKernel(bzImage(gzipSync(elf(PREFERRED, TEXT))), "vmlinuz", gunzip);
  const size = 16 << 20;
  checkLinuxBoot({ kernel, commandLine: "x".repeat(2047), initrd: new Uint8Array(9 << 20) }, size);
  const refused = (boot: object, code: string, message: RegExp) =>
    assert.throws(() => checkLinuxBoot({ kernel, ...boot }, size), { code, message });
  refused({ commandLine: "x".repeat(2048) }, "ERR_VIRTKIT_APPEND", /2048 bytes and this kernel takes 2047/);
  refused({ commandLine: "é".repeat(1024) }, "ERR_VIRTKIT_APPEND", /2048 bytes/);
  refused({ initrd: new Uint8Array(10 << 20) }, "ERR_VIRTKIT_MEMORY_SIZE", /at least 17 MiB; this one has 16/);
  const low = { ...kernel, initrdMax: 0x6fffff };
  refused({ kernel: low, initrd: new Uint8Array((1 << 20) + 1) }, "ERR_VIRTKIT_INITRD", /too large/);
  const high = { ...kernel, segments: [{ address: 0x7f000000, bytes: TEXT }] };
  refused({ kernel: high }, "ERR_VIRTKIT_MEMORY_SIZE", /at least/);
});

test("the option ROM's signal puts kernel, initrd and command line into memory, after each reset", LIMIT, async () => {
  const kernel = await prepareKernel(bzImage(gzipSync(elf(PREFERRED, TEXT))), "vmlinuz", gunzip);
  let asked = 0;
  const initrd = Uint8Array.of(7, 8, 9, 10);
  const boot = async () => {
    asked++;
    return { kernel, initrd, commandLine: "quiet é" };
  };
  const monitor = await Monitor.create({ boot });
  for (let power = 1; power <= 2; power++) {
    await monitor.start();
    assert.equal(monitor.peek(PREFERRED), 0);
    await monitor.run("out8", 0xf4, 0);
    assert.equal(asked, power);
    assert.equal(monitor.peek(PREFERRED), 0x03020100);
    assert.equal(monitor.peek(0x100000), 0x400000b8);
    assert.equal(monitor.peek(0x600000), 0x0a090807);
    const line = new Uint8Array(9);
    monitor.engine.memory.read(0x20000, line);
    assert.equal(new TextDecoder().decode(line), "quiet é\0");
    assert.equal(monitor.peek(0x10202), 0x53726448);
    assert.equal(monitor.peek(0x10218), 0x600000);
    assert.equal(monitor.peek(0x1021c), 4);
    assert.equal(monitor.peek(0x10228), 0x20000);
    await monitor.engine.reset();
  }
  await monitor.engine.destroy();
});

test("placing a kernel does not change it", LIMIT, async () => {
  const kernel = await prepareKernel(bzImage(gzipSync(elf(PREFERRED, TEXT))), "vmlinuz", gunzip);
  const before = kernel.setup.slice();
  const monitor = await Monitor.create();
  placeLinux({ kernel, commandLine: "a" }, monitor.engine.memory);
  assert.deepEqual(kernel.setup, before);
  await monitor.engine.destroy();
});
