import { VirtkitError } from "../../common/error.ts";
import type { LinuxBoot } from "./linux-boot.ts";
import type { Scheduler } from "./scheduler.ts";

/** The PC to build. Bytes are handed in, so the engine reads no file. */
export interface V86EngineOptions {
  /** RAM in bytes, 16 MiB up to just below 2 GiB; rounded up to a multiple of 128 KiB. */
  readonly memorySize: number;
  /** The firmware, SeaBIOS: 128 or 256 KiB. */
  readonly bios: Uint8Array;
  readonly vgaBios?: Uint8Array;
  /** v86's `build/v86.wasm`. Machines given the same array share the compiled module. */
  readonly wasm: Uint8Array;
  /** The v86 module's namespace; left out, it is imported. */
  readonly library?: unknown;
  /**
   * Boots a Linux kernel directly. A function is asked at each power-on, and with `state` not before the first reset, so that a
   * restored machine need not load a kernel. Left out, the firmware boots from a disk.
   */
  readonly boot?: LinuxBoot | (() => LinuxBoot | Promise<LinuxBoot>);
  /**
   * What saveState() of a machine with the same memorySize, acpi and serialPorts gave, as it is or compressed with zstd. The
   * board's clock is right at once; the guest's own stands where it was until it reads that (`hwclock -s`).
   */
  readonly state?: Uint8Array;
  /** ACPI and the APICs; MSI needs them. True when left out. */
  readonly acpi?: boolean;
  /** SeaBIOS's order of boot devices, a nibble each; 0x312 is the disk first. */
  readonly bootOrder?: number;
  /** COM1.. in number, 1..4; 1 when left out. */
  readonly serialPorts?: number;
  /** Turns from the event loop; left out, those of the platform. */
  readonly scheduler?: Scheduler;
}

/** {@link V86EngineOptions} with nothing left open. */
export interface PcOptions {
  readonly memorySize: number;
  readonly bios: Uint8Array;
  readonly vgaBios: Uint8Array | undefined;
  readonly wasm: Uint8Array;
  readonly library: unknown;
  readonly boot: V86EngineOptions["boot"];
  readonly acpi: boolean;
  readonly bootOrder: number;
  readonly serialPorts: number;
  readonly videoMemory: number;
}

const BLOCK = 128 << 10;
const SMALLEST = 16 << 20;
const LARGEST = 2 ** 31 - BLOCK;
const LARGEST_BIOS = 1 << 18;
const DISK_FIRST = 0x312;
const VIDEO_MEMORY = 8 << 20;

/** @throws ERR_VIRTKIT_MEMORY_SIZE */
export function checkMemorySize(bytes: number): void {
  if (bytes >= SMALLEST && bytes <= LARGEST) return;
  throw new VirtkitError(
    "ERR_VIRTKIT_MEMORY_SIZE",
    `a v86 machine has 16 to 2047 MiB of memory, and ${bytes} bytes were asked for`,
  );
}

/** @throws ERR_VIRTKIT_MEMORY_SIZE, ERR_VIRTKIT_OPTION */
export function checkOptions(options: V86EngineOptions): PcOptions {
  const { memorySize, bios, serialPorts = 1, bootOrder = DISK_FIRST } = options;
  checkMemorySize(memorySize);
  if (bios.length === 0 || bios.length > LARGEST_BIOS || bios.length % 1024 !== 0)
    throw optionError(`bios: ${bios.length} bytes are no firmware image of up to 256 KiB`);
  if (!Number.isInteger(serialPorts) || serialPorts < 1 || serialPorts > 4)
    throw optionError(`serialPorts: ${serialPorts} is not 1..4`);
  if (!Number.isInteger(bootOrder) || bootOrder < 0 || bootOrder > 0xfff)
    throw optionError(`bootOrder: ${bootOrder} is not three nibbles, such as 0x312`);
  return {
    memorySize: Math.ceil(memorySize / BLOCK) * BLOCK,
    bios,
    vgaBios: options.vgaBios,
    wasm: options.wasm,
    library: options.library,
    boot: options.boot,
    acpi: options.acpi ?? true,
    bootOrder,
    serialPorts,
    videoMemory: VIDEO_MEMORY,
  };
}

function optionError(message: string): VirtkitError {
  return new VirtkitError("ERR_VIRTKIT_OPTION", message);
}
