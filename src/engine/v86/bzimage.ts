import { VirtkitError } from "../../common/error.ts";

/** Compression of a kernel's payload, by the magic it begins with. */
export type PayloadFormat = "gzip" | "xz" | "lz4" | "zstd" | "bzip2" | "lzma" | "lzo";

/**
 * Undoes a compression. `payload` is exactly the compressed stream. Undefined means that the format is not supported here, which
 * leaves the work to the guest; so does an exception.
 */
export type Decompress = (
  format: PayloadFormat,
  payload: Uint8Array,
) => Uint8Array | undefined | Promise<Uint8Array | undefined>;

/** Bytes that go to a guest-physical address before the kernel runs. */
export interface KernelSegment {
  readonly address: number;
  readonly bytes: Uint8Array;
}

/** A kernel taken apart, ready to be put into memory. */
export interface LinuxKernel {
  /** The real-mode part: boot sector, header and set-up code. */
  readonly setup: Uint8Array;
  readonly segments: readonly KernelSegment[];
  /** The kernel was decompressed here, so the guest need not do it. */
  readonly decompressed: boolean;
  /** Why it was not, in words. */
  readonly reason: string | undefined;
  /** Longest command line in bytes, without the closing zero. */
  readonly commandLineSize: number;
  /** First address that the kernel leaves free while it starts. */
  readonly freeAddress: number;
  /** Highest address an initrd's last byte may have. */
  readonly initrdMax: number;
}

// The x86 boot protocol's header, by Documentation/arch/x86/boot.rst of Linux.
const SETUP_SECTS = 0x1f1;
const BOOT_FLAG = 0x1fe;
const HEADER = 0x202;
const VERSION = 0x206;
const LOADFLAGS = 0x211;
const INITRD_ADDR_MAX = 0x22c;
const XLOADFLAGS = 0x236;
const CMDLINE_SIZE = 0x238;
const PAYLOAD_OFFSET = 0x248;
const PAYLOAD_LENGTH = 0x24c;
const PREF_ADDRESS = 0x258;
const INIT_SIZE = 0x260;
const HEADER_END = 0x264;
const LOADED_HIGH = 1;
const XLF_KERNEL_64 = 1;
const SECTOR = 512;
const MEGABYTE = 1 << 20;
/** Where the protocol puts the protected-mode part of a bzImage. */
export const PROTECTED_MODE_ADDRESS = MEGABYTE;
/** 2.10: the first with pref_address and init_size (Linux 2.6.31). */
const OLDEST_VERSION = 0x20a;

const MAGICS: readonly (readonly [PayloadFormat, readonly number[]])[] = [
  ["gzip", [0x1f, 0x8b]],
  ["xz", [0xfd, 0x37, 0x7a, 0x58, 0x5a]],
  ["lz4", [0x02, 0x21, 0x4c, 0x18]],
  ["zstd", [0x28, 0xb5, 0x2f, 0xfd]],
  ["bzip2", [0x42, 0x5a, 0x68]],
  ["lzma", [0x5d, 0x00, 0x00]],
  ["lzo", [0x89, 0x4c, 0x5a, 0x4f]],
];

/**
 * Takes a bzImage apart and, when `decompress` can, unpacks the kernel proper, which saves the guest most of the time to
 * boot. Without `decompress`, or when it cannot, the guest's own loader does it.
 * @param name for messages: the file's name
 * @throws ERR_VIRTKIT_KERNEL when the bytes are no bzImage, or a kernel for 64-bit processors
 */
export async function prepareKernel(bytes: Uint8Array, name: string, decompress?: Decompress): Promise<LinuxKernel> {
  const view = checkHeader(bytes, name);
  const setupSize = ((bytes[SETUP_SECTS] || 4) + 1) * SECTOR;
  const preferred = view.getUint32(PREF_ADDRESS, true);
  const common = {
    setup: bytes.slice(0, setupSize),
    commandLineSize: view.getUint32(CMDLINE_SIZE, true),
    freeAddress: alignUp(preferred + view.getUint32(INIT_SIZE, true), MEGABYTE),
    initrdMax: view.getUint32(INITRD_ADDR_MAX, true),
  };
  const payloadStart = setupSize + view.getUint32(PAYLOAD_OFFSET, true);
  const payload = bytes.subarray(payloadStart, payloadStart + view.getUint32(PAYLOAD_LENGTH, true));
  const unpacked = await unpack(payload, decompress);
  if (typeof unpacked !== "string") {
    if (isElf(unpacked) && unpacked[4] === 2) throw notFor64Bit(name);
    const segments = elfSegments(unpacked, preferred);
    if (segments !== undefined) {
      const end = Math.max(...segments.map(({ address, bytes }) => address + bytes.length));
      const freeAddress = Math.max(common.freeAddress, alignUp(end, MEGABYTE));
      return { ...common, freeAddress, segments, decompressed: true, reason: undefined };
    }
  }
  const reason = typeof unpacked === "string" ? unpacked : "its payload is no ELF file for i386";
  const segments = [{ address: PROTECTED_MODE_ADDRESS, bytes: bytes.slice(setupSize) }];
  return { ...common, segments, decompressed: false, reason };
}

function checkHeader(bytes: Uint8Array, name: string): DataView {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (isElf(bytes)) throw notKernel(name, "it is an ELF file; give the file the distribution calls vmlinuz or bzImage");
  if (bytes.length < HEADER_END) throw notKernel(name, `it has only ${bytes.length} bytes`);
  if (view.getUint16(BOOT_FLAG, true) !== 0xaa55 || view.getUint32(HEADER, true) !== 0x53726448)
    throw notKernel(name, "the header's magic numbers are missing");
  const version = view.getUint16(VERSION, true);
  if (version < OLDEST_VERSION) {
    const shown = `${version >>> 8}.${String(version & 0xff).padStart(2, "0")}`;
    throw notKernel(name, `its boot protocol is ${shown}, and 2.10 (Linux 2.6.31) is the oldest that works`);
  }
  if (((bytes[LOADFLAGS] as number) & LOADED_HIGH) === 0) throw notKernel(name, "it is a zImage that loads low");
  if ((view.getUint16(XLOADFLAGS, true) & XLF_KERNEL_64) !== 0) throw notFor64Bit(name);
  const setupSize = ((bytes[SETUP_SECTS] || 4) + 1) * SECTOR;
  if (bytes.length <= setupSize) throw notKernel(name, "it ends before the kernel proper");
  return view;
}

async function unpack(payload: Uint8Array, decompress: Decompress | undefined): Promise<Uint8Array | string> {
  if (isElf(payload)) return payload;
  const format = MAGICS.find(([, magic]) => magic.every((byte, i) => payload[i] === byte))?.[0];
  if (format === undefined) return "the compression of its payload is unknown";
  if (decompress === undefined) return "no decompressor was given";
  // The kernel's build appends the unpacked size to every format but gzip, which has it already.
  const stream = format === "gzip" ? payload : payload.subarray(0, payload.length - 4);
  try {
    return (await decompress(format, stream)) ?? `no decompressor for ${format}`;
  } catch (error) {
    return `${format}: ${error instanceof Error ? error.message : String(error)}`;
  }
}

/** The loadable segments and, at the bzImage's entry, a jump to the kernel; undefined when this is no i386 ELF. */
function elfSegments(elf: Uint8Array, preferred: number): KernelSegment[] | undefined {
  if (!isElf(elf) || elf.length < 52 || elf[4] !== 1 || elf[5] !== 1) return undefined;
  const view = new DataView(elf.buffer, elf.byteOffset, elf.byteLength);
  if (view.getUint16(18, true) !== 3) return undefined;
  const table = view.getUint32(28, true);
  const entrySize = view.getUint16(42, true);
  const count = view.getUint16(44, true);
  if (entrySize < 32 || table + count * entrySize > elf.length) return undefined;
  const segments: KernelSegment[] = [];
  for (let i = 0; i < count; i++) {
    const at = table + i * entrySize;
    const size = view.getUint32(at + 16, true);
    if (view.getUint32(at, true) !== 1 || size === 0) continue;
    const offset = view.getUint32(at + 4, true);
    if (offset + size > elf.length) return undefined;
    segments.push({ address: view.getUint32(at + 12, true), bytes: elf.subarray(offset, offset + size) });
  }
  const entry = view.getUint32(24, true);
  const starts = (address: number) =>
    segments.some((s) => address >= s.address && address < s.address + s.bytes.length);
  const start = starts(entry) ? entry : preferred;
  if (!starts(start)) return undefined;
  segments.push({ address: PROTECTED_MODE_ADDRESS, bytes: jumpTo(start) });
  return segments;
}

/** mov eax, address; jmp eax */
function jumpTo(address: number): Uint8Array {
  const code = Uint8Array.of(0xb8, 0, 0, 0, 0, 0xff, 0xe0);
  new DataView(code.buffer).setUint32(1, address, true);
  return code;
}

function isElf(bytes: Uint8Array): boolean {
  return bytes[0] === 0x7f && bytes[1] === 0x45 && bytes[2] === 0x4c && bytes[3] === 0x46;
}

function alignUp(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment;
}

function notKernel(name: string, why: string): VirtkitError {
  return new VirtkitError("ERR_VIRTKIT_KERNEL", `${name} is not a Linux bzImage: ${why}`);
}

function notFor64Bit(name: string): VirtkitError {
  return new VirtkitError(
    "ERR_VIRTKIT_KERNEL",
    `${name} is a kernel for 64-bit processors, and this machine has a 32-bit one: give an i386 (686) kernel`,
  );
}
