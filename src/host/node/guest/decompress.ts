import { promisify } from "node:util";
import { gunzip } from "node:zlib";
import { decompress as unzstd } from "fzstd";
import { VirtkitError } from "../../../common/error.ts";
import { type RunResult, run } from "./process.ts";

/** The forms in which a Linux kernel may be packed into its bzImage. */
export type CompressionFormat = "gzip" | "xz" | "lz4" | "zstd" | "bzip2" | "lzma" | "lzo";

interface Tool {
  readonly name: string;
  readonly args: readonly string[];
  /** The Debian package that carries the tool. */
  readonly package: string;
}

const TOOLS: Readonly<Record<Exclude<CompressionFormat, "gzip" | "zstd">, Tool>> = {
  xz: { name: "xz", args: ["--decompress", "--stdout", "--format=xz"], package: "xz-utils" },
  lzma: { name: "xz", args: ["--decompress", "--stdout", "--format=lzma"], package: "xz-utils" },
  lz4: { name: "lz4", args: ["-d", "-c"], package: "lz4" },
  bzip2: { name: "bzip2", args: ["-d", "-c"], package: "bzip2" },
  lzo: { name: "lzop", args: ["-d", "-c"], package: "lzop" },
};

const byTool = async (tool: Tool, format: string, bytes: Uint8Array, signal?: AbortSignal): Promise<Uint8Array> => {
  let result: RunResult;
  try {
    result = await run(tool.name, tool.args, { input: bytes, signal });
  } catch (cause) {
    if (!(cause instanceof VirtkitError) || cause.code !== "ERR_VIRTKIT_TOOL_MISSING") throw cause;
    throw new VirtkitError(
      "ERR_VIRTKIT_TOOL_MISSING",
      `this kernel is packed as ${format}, which needs the tool ${tool.name}; install it (Debian: apt install ${tool.package})`,
      { cause },
    );
  }
  if (result.code !== 0) throw new Error(`${tool.name}: ${result.stderr.trim() || `status ${result.code}`}`);
  return result.stdout;
};

const decode = async (format: CompressionFormat, bytes: Uint8Array, signal?: AbortSignal): Promise<Uint8Array> => {
  switch (format) {
    case "gzip":
      return promisify(gunzip)(bytes);
    case "zstd":
      return unzstd(bytes);
    default:
      return byTool(TOOLS[format], format, bytes, signal);
  }
};

/**
 * Unpacks `bytes`, plain or as they lie in a bzImage, where all forms but gzip are followed by four bytes with the
 * unpacked size, which no tool takes.
 * @throws VirtkitError ERR_VIRTKIT_TOOL_MISSING naming the tool to install, ERR_VIRTKIT_BAD_COMPRESSION when damaged
 */
export const decompress = async (
  format: CompressionFormat,
  bytes: Uint8Array,
  signal?: AbortSignal,
): Promise<Uint8Array> => {
  if (format !== "gzip" && bytes.length > 8) {
    const cut = bytes.length - 4;
    const size = new DataView(bytes.buffer, bytes.byteOffset + cut, 4).getUint32(0, true);
    try {
      const out = await decode(format, bytes.subarray(0, cut), signal);
      if (out.length === size) return out;
    } catch (cause) {
      if (cause instanceof VirtkitError) throw cause;
    }
  }
  try {
    return await decode(format, bytes, signal);
  } catch (cause) {
    if (cause instanceof VirtkitError) throw cause;
    throw new VirtkitError("ERR_VIRTKIT_BAD_COMPRESSION", `the data is not valid ${format}; is the file damaged?`, {
      cause,
    });
  }
};

const MAGICS: readonly (readonly [CompressionFormat, readonly number[]])[] = [
  ["gzip", [0x1f, 0x8b]],
  ["xz", [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]],
  ["zstd", [0x28, 0xb5, 0x2f, 0xfd]],
  ["lz4", [0x02, 0x21, 0x4c, 0x18]],
  ["lz4", [0x04, 0x22, 0x4d, 0x18]],
  ["bzip2", [0x42, 0x5a, 0x68]],
  ["lzo", [0x89, 0x4c, 0x5a]],
  ["lzma", [0x5d, 0x00, 0x00]],
];

/** The form of packed data by its first bytes, or nothing when it is none of them. */
export const compressionOf = (bytes: Uint8Array): CompressionFormat | undefined =>
  MAGICS.find(([, magic]) => magic.every((byte, index) => bytes[index] === byte))?.[0];

/**
 * The kernel proper (an ELF file) out of a bzImage, found by the header's payload_offset and payload_length (boot
 * protocol 2.08 and later).
 * @throws VirtkitError ERR_VIRTKIT_NO_KERNEL when the bytes are no such kernel
 */
export const unpackKernel = async (bzImage: Uint8Array, signal?: AbortSignal): Promise<Uint8Array> => {
  const view = new DataView(bzImage.buffer, bzImage.byteOffset, bzImage.byteLength);
  if (bzImage.length < 0x260 || view.getUint32(0x202, true) !== 0x53726448 || view.getUint16(0x206, true) < 0x208) {
    throw new VirtkitError(
      "ERR_VIRTKIT_NO_KERNEL",
      "this is not an x86 Linux kernel (bzImage, boot protocol 2.08 or later)",
    );
  }
  const setupSectors = bzImage[0x1f1] || 4;
  const start = (setupSectors + 1) * 512 + view.getUint32(0x248, true);
  const payload = bzImage.subarray(start, start + view.getUint32(0x24c, true));
  const format = compressionOf(payload);
  if (payload[0] === 0x7f && payload[1] === 0x45) return payload;
  if (format === undefined) {
    throw new VirtkitError("ERR_VIRTKIT_NO_KERNEL", "the kernel is packed in a form that is not known here");
  }
  return decompress(format, payload, signal);
};
