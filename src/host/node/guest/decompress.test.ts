import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { fakeBzImage, zstdHello } from "../../../testing/guest-packages.ts";
import { type CompressionFormat, compressionOf, decompress, unpackKernel } from "./decompress.ts";

const limit = { timeout: 10_000 };
const hello = Buffer.from("hello");
const withSize = (bytes: Uint8Array): Uint8Array => Buffer.concat([bytes, Uint8Array.of(hello.length, 0, 0, 0)]);

test("gzip and zstd need no tool", limit, async () => {
  assert.deepEqual(Buffer.from(await decompress("gzip", gzipSync(hello))), hello);
  assert.deepEqual(Buffer.from(await decompress("zstd", zstdHello)), hello);
  assert.deepEqual(Buffer.from(await decompress("zstd", withSize(zstdHello))), hello);
});

const tools: readonly (readonly [CompressionFormat, string, readonly string[]])[] = [
  ["xz", "xz", ["-c", "--x86", "--lzma2", "--check=crc32"]],
  ["lzma", "xz", ["-c", "--format=lzma"]],
  ["lz4", "lz4", ["-c", "-l"]],
  ["bzip2", "bzip2", ["-c"]],
  ["lzo", "lzop", ["-c"]],
];
for (const [format, tool, args] of tools) {
  test(
    `${format}, as a tool writes it and as a kernel carries it, or the tool's name where it is missing`,
    limit,
    async () => {
      const packed = spawnSync(tool, args, { input: hello });
      if (packed.status !== 0) {
        const expected = { code: "ERR_VIRTKIT_TOOL_MISSING", message: new RegExp(`needs the tool ${tool}`) };
        await assert.rejects(decompress(format, new Uint8Array(100)), expected);
        return;
      }
      assert.equal(compressionOf(packed.stdout), format);
      assert.deepEqual(Buffer.from(await decompress(format, packed.stdout)), hello);
      assert.deepEqual(Buffer.from(await decompress(format, withSize(packed.stdout))), hello);
    },
  );
}

test("a missing tool is named with its package", limit, async () => {
  const path = process.env["PATH"];
  process.env["PATH"] = "/nonexistent";
  try {
    await assert.rejects(decompress("xz", new Uint8Array(100)), {
      code: "ERR_VIRTKIT_TOOL_MISSING",
      message: /apt install xz-utils/,
    });
  } finally {
    process.env["PATH"] = path;
  }
});

test("damaged data is an error of ours", limit, async () => {
  await assert.rejects(decompress("gzip", new Uint8Array(100)), { code: "ERR_VIRTKIT_BAD_COMPRESSION" });
  await assert.rejects(decompress("zstd", new Uint8Array(100)), { code: "ERR_VIRTKIT_BAD_COMPRESSION" });
});

test("the kernel proper comes out of a bzImage; what is none is refused", limit, async () => {
  assert.deepEqual(Buffer.from(await unpackKernel(fakeBzImage(hello))), hello);
  await assert.rejects(unpackKernel(new Uint8Array(4096)), { code: "ERR_VIRTKIT_NO_KERNEL" });
  await assert.rejects(unpackKernel(new Uint8Array(3)), { code: "ERR_VIRTKIT_NO_KERNEL" });
});
