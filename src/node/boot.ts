import { readFile } from "node:fs/promises";
import { VirtkitError } from "../common/error.ts";
import { type LinuxBoot, prepareKernel, V86_VERSION } from "../engine/v86/index.ts";
import {
  decompress,
  type OnGuestProgress,
  type PreparedGuest,
  prepareGuest,
  stateStore,
} from "../host/node/guest/index.ts";
import { UsageError } from "../machine/usage-error.ts";
import type { MachineBoot } from "../machine/virtual-machine-parts.ts";

/** Which kernel a machine boots. */
export type BootSource =
  /** The guest prepared from the distribution's packages; `append` adds to its command line. */
  | { readonly from: "guest"; readonly append: string | undefined }
  | { readonly from: "kernel"; readonly kernel: string; readonly initrd: string | undefined; readonly append: string }
  | { readonly from: "disk" };

export interface BootOptions {
  readonly source: BootSource;
  /** Bytes of RAM: a saved state is good for one size only. */
  readonly memory: number;
  /** Number of serial ports; likewise. */
  readonly serialPorts: number;
  /** A file with other firmware than SeaBIOS. */
  readonly bios: string | undefined;
  readonly cacheDir: string | undefined;
  readonly useSavedState: boolean;
  /** Disk that init mounts, "vda:/root". */
  readonly data: string | undefined;
  /** TERM of the user's terminal. */
  readonly term: string | undefined;
  readonly onProgress: OnGuestProgress | undefined;
  readonly signal: AbortSignal | undefined;
}

export interface BootFiles {
  readonly boot: MachineBoot;
  readonly bios: Uint8Array;
  readonly vgaBios: Uint8Array;
}

/**
 * What makes a stock kernel boot quickly in an emulator: no mitigations against a CPU that is not there, no self-tests, and none of
 * three init calls that take seconds. `noisapnp` spares a search on a bus that is not there either.
 */
const GUEST_COMMAND_LINE = [
  "console=ttyS0",
  "quiet",
  "mitigations=off",
  "cryptomgr.notests",
  "noisapnp",
  "panic=-1",
  "initcall_blacklist=init_kprobe_trace,load_system_certificate_list,crypto_kdf108_init",
].join(" ");

/**
 * Finds or prepares the files that a machine boots from.
 * @throws UsageError for a file that cannot be read or is no kernel; what `prepareGuest` throws
 */
export async function prepareBoot(options: BootOptions): Promise<BootFiles> {
  const { source, bios } = options;
  // Checked before anything is downloaded.
  const own = source.from === "kernel" ? await ownKernel(source, options.signal) : undefined;
  const ownBios = bios === undefined ? undefined : await readOption("-bios", bios);
  const guest = await prepareGuest({
    ...(options.cacheDir === undefined ? {} : { cacheDir: options.cacheDir }),
    ...(options.onProgress === undefined ? {} : { onProgress: options.onProgress }),
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  });
  return {
    boot: own ?? (source.from === "guest" ? guestBoot(guest, source.append, options) : { from: "disk" }),
    bios: ownBios ?? (await read(guest.bios)),
    vgaBios: await read(guest.vgaBios),
  };
}

async function ownKernel(
  source: Extract<BootSource, { from: "kernel" }>,
  signal: AbortSignal | undefined,
): Promise<MachineBoot> {
  const bytes = await readOption("-kernel", source.kernel);
  const initrd = source.initrd === undefined ? undefined : await readOption("-initrd", source.initrd);
  const kernel = await prepareKernel(bytes, source.kernel, (format, payload) =>
    decompress(format, payload, signal),
  ).catch((error: unknown) => {
    throw UsageError.of(`-kernel ${source.kernel}`, error);
  });
  const linux: LinuxBoot = { kernel, commandLine: source.append, ...(initrd === undefined ? {} : { initrd }) };
  return { from: "kernel", linux: async () => linux };
}

function guestBoot(guest: PreparedGuest, append: string | undefined, options: BootOptions): MachineBoot {
  const commandLine = append === undefined ? GUEST_COMMAND_LINE : `${GUEST_COMMAND_LINE} ${append}`;
  // Its init then takes its orders from there and asks nobody.
  if (append?.includes("virtkit.go=")) return { from: "kernel", linux: () => guestKernel(guest, commandLine) };
  const store = stateStore(options.cacheDir);
  const key = {
    guestId: guest.id,
    memoryBytes: options.memory,
    engineVersion: V86_VERSION,
    extra: JSON.stringify([commandLine, options.serialPorts]),
  };
  return {
    from: "guest",
    linux: () => guestKernel(guest, commandLine),
    loadState: async () => (options.useSavedState ? store.get(key) : undefined),
    saveState: async (state) => {
      if (options.useSavedState) await store.put(key, state);
    },
    data: options.data,
    term: options.term,
  };
}

/** Read anew at each power-on, so that a machine that was restored, or has booted, does not hold a kernel. */
async function guestKernel(guest: PreparedGuest, commandLine: string): Promise<LinuxBoot> {
  const unpacked = guest.vmlinux;
  const kernel = await prepareKernel(await read(guest.kernel), guest.kernel, (format, payload) =>
    unpacked === undefined ? decompress(format, payload) : read(unpacked),
  );
  return { kernel, initrd: await read(guest.initrd), commandLine };
}

async function read(path: string): Promise<Uint8Array> {
  try {
    return await readFile(path);
  } catch (cause) {
    throw new VirtkitError(
      "ERR_VIRTKIT_GUEST_FILES",
      `${path} cannot be read (${reasonOf(cause)}); run \`virtkit guest --refresh\``,
      { cause },
    );
  }
}

async function readOption(option: string, path: string): Promise<Uint8Array> {
  try {
    return await readFile(path);
  } catch (cause) {
    throw new UsageError(`could not open '${path}': ${reasonOf(cause)}`, { option: `${option} ${path}`, cause });
  }
}

function reasonOf(cause: unknown): string {
  const code = (cause as NodeJS.ErrnoException).code;
  if (code === "ENOENT") return "no such file";
  if (code === "EISDIR") return "it is a directory";
  if (code === "EACCES") return "permission denied";
  return cause instanceof Error ? cause.message : String(cause);
}
