import { VirtkitError } from "../../common/error.ts";
import type { GuestMemory } from "../../memory/guest-memory.ts";
import type { LinuxKernel } from "./bzimage.ts";

/** What a direct kernel boot needs. */
export interface LinuxBoot {
  readonly kernel: LinuxKernel;
  readonly initrd?: Uint8Array;
  readonly commandLine?: string;
}

/** The option ROM writes here when the firmware is done; the engine then puts the kernel into memory. */
export const BOOT_PORT = 0xf4;

// Low memory is the kernel's alone once the option ROM runs: the firmware does not come back.
const SETUP_SEGMENT = 0x1000;
const SETUP_ADDRESS = SETUP_SEGMENT * 16;
const STACK_TOP = 0xe000;
const COMMAND_LINE_ADDRESS = 0x20000;
/** What the firmware keeps at the top of RAM for its tables. */
const FIRMWARE_RESERVE = 1 << 20;

// Boot protocol fields a loader fills in.
const VID_MODE = 0x1fa;
const TYPE_OF_LOADER = 0x210;
const LOADFLAGS = 0x211;
const RAMDISK_IMAGE = 0x218;
const RAMDISK_SIZE = 0x21c;
const HEAP_END_PTR = 0x224;
const CMD_LINE_PTR = 0x228;
const CAN_USE_HEAP = 0x80;
const QUIET = 0x20;
const LOADER_UNKNOWN = 0xff;
const VID_NORMAL = 0xffff;

/**
 * Checks that a kernel, its initrd and command line fit.
 * @throws ERR_VIRTKIT_APPEND, ERR_VIRTKIT_MEMORY_SIZE
 */
export function checkLinuxBoot(boot: LinuxBoot, memorySize: number): void {
  const { kernel, initrd } = boot;
  const length = encodeCommandLine(boot).length - 1;
  if (length > kernel.commandLineSize) {
    throw new VirtkitError(
      "ERR_VIRTKIT_APPEND",
      `the kernel command line has ${length} bytes and this kernel takes ${kernel.commandLineSize}: shorten it`,
    );
  }
  const initrdSize = initrd?.length ?? 0;
  const end = kernel.freeAddress + initrdSize;
  const last = Math.max(end, ...kernel.segments.map(({ address, bytes }) => address + bytes.length));
  if (last > memorySize - FIRMWARE_RESERVE) {
    const needed = Math.ceil((last + FIRMWARE_RESERVE) / 2 ** 20);
    throw new VirtkitError(
      "ERR_VIRTKIT_MEMORY_SIZE",
      `the kernel and its initrd need a machine of at least ${needed} MiB; this one has ${Math.floor(memorySize / 2 ** 20)} MiB`,
    );
  }
  if (initrdSize > 0 && end - 1 > kernel.initrdMax) {
    throw new VirtkitError("ERR_VIRTKIT_INITRD", `the initrd of ${initrdSize} bytes is too large for this kernel`);
  }
}

/** Puts kernel, initrd and command line into memory and fills in the header; {@link checkLinuxBoot} has passed. */
export function placeLinux(boot: LinuxBoot, memory: GuestMemory): void {
  const { kernel, initrd } = boot;
  const setup = kernel.setup.slice();
  const header = new DataView(setup.buffer);
  header.setUint16(VID_MODE, VID_NORMAL, true);
  header.setUint8(TYPE_OF_LOADER, LOADER_UNKNOWN);
  header.setUint8(LOADFLAGS, (header.getUint8(LOADFLAGS) & ~QUIET) | CAN_USE_HEAP);
  header.setUint16(HEAP_END_PTR, STACK_TOP - 0x200, true);
  header.setUint32(CMD_LINE_PTR, COMMAND_LINE_ADDRESS, true);
  header.setUint32(RAMDISK_IMAGE, initrd === undefined ? 0 : kernel.freeAddress, true);
  header.setUint32(RAMDISK_SIZE, initrd?.length ?? 0, true);
  memory.write(SETUP_ADDRESS, setup);
  memory.write(COMMAND_LINE_ADDRESS, encodeCommandLine(boot));
  for (const { address, bytes } of kernel.segments) memory.write(address, bytes);
  if (initrd !== undefined) memory.write(kernel.freeAddress, initrd);
}

/**
 * An option ROM that the firmware runs when it has set up the board: tells the engine, then enters the kernel's real-mode
 * code.
 */
export function linuxBootRom(): { name: string; data: Uint8Array } {
  const low = SETUP_SEGMENT & 0xff;
  const high = SETUP_SEGMENT >> 8;
  const instructions = [
    [0x55, 0xaa, 1], // signature, one block of 512 bytes
    [0xfa], // cli
    [0xe6, BOOT_PORT], // out BOOT_PORT, al
    [0xb8, low, high], // mov ax, SETUP_SEGMENT
    [0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xe0, 0x8e, 0xe8, 0x8e, 0xd0], // mov ds, es, fs, gs, ss
    [0xbc, STACK_TOP & 0xff, STACK_TOP >> 8], // mov sp, STACK_TOP
    [0xea, 0, 0, low + 0x20, high], // jmp far to the set-up code
  ];
  const data = new Uint8Array(512);
  data.set(instructions.flat());
  data[511] = -data.reduce((sum, byte) => sum + byte, 0);
  return { name: "genroms/kernel.bin", data };
}

function encodeCommandLine(boot: LinuxBoot): Uint8Array {
  return new TextEncoder().encode(`${boot.commandLine ?? ""}\0`);
}
