import type { DiskSource } from "../backend/block/disk.ts";
import type { BlockBackend } from "../backend/block/types.ts";
import type { CharBackend } from "../backend/char/types.ts";
import type { DeviceDefinition } from "../device/custom/define.ts";
import type { PropertySetting } from "./object-model/values.ts";

/**
 * A machine before anything of it exists: plain data, checked for form and no further. The command line and the library
 * both end here. `option` is what messages call the item: the option as it was typed, for instance.
 */
export interface MachineDescription {
  /** Bytes. */
  readonly memory: number;
  readonly objects: readonly ObjectOptions[];
  readonly chardevs: readonly ChardevOptions[];
  /** COM1, COM2, ...: the chardev at the other end; undefined leaves the port unconnected. At most four. */
  readonly serials: readonly SerialOptions[];
  readonly drives: readonly DriveOptions[];
  readonly devices: readonly DeviceOptions[];
}

/** -object */
export interface ObjectOptions {
  readonly option: string;
  readonly type: string;
  readonly id: string;
  readonly properties: readonly PropertySetting[];
}

/** -device */
export interface DeviceOptions {
  readonly option: string;
  readonly driver: string;
  readonly id?: string;
  readonly bus?: string;
  readonly properties: readonly PropertySetting[];
  /** What `driver` stands for, when a program brings a device of its own. */
  readonly definition?: DeviceDefinition;
}

/** -serial */
export interface SerialOptions {
  readonly option: string;
  /** The chardev's id. */
  readonly chardev?: string;
}

export const CACHE_MODES = ["none", "writeback", "writethrough", "unsafe", "directsync"] as const;
export type CacheMode = (typeof CACHE_MODES)[number];
export const AIO_MODES = ["threads", "native", "io_uring"] as const;

/** -drive */
export interface DriveOptions {
  readonly option: string;
  readonly id: string;
  /** The image, a back end that is open already, or a user's own disk. */
  readonly source: { readonly file: string } | { readonly backend: BlockBackend } | ModuleDrive;
  /** Undefined: found out from the image's first bytes. */
  readonly format: "raw" | undefined;
  /** "virtio" makes a virtio-blk-pci device for it. */
  readonly interface: "none" | "virtio";
  readonly readOnly: boolean;
  readonly cache: DriveCache;
  /** Hint; host I/O goes the way the host's back end has. */
  readonly aio: (typeof AIO_MODES)[number];
  /** Refuse an image that this program has open for writing already. */
  readonly locking: boolean;
  /** "unmap": a guest's discard may free space in the image. */
  readonly discard: "ignore" | "unmap";
  /** Writes go to a temporary file, and nothing of them is left at the end. Default false. */
  readonly snapshot?: boolean;
}

/** A disk of the user's own: a module's file, or what one would export. */
export interface ModuleDrive {
  readonly module: string | DiskSource;
  /** opt.NAME=VALUE */
  readonly options: Readonly<Record<string, string>>;
  /** Milliseconds that a request may take; 0 for as long as it takes. */
  readonly timeout: number;
}

/** What a cache mode stands for. */
export interface DriveCache {
  /** The guest is told of a write cache: a write is durable after the next flush. Else each write is, when it completes. */
  readonly writeback: boolean;
  /** Around the host's page cache (O_DIRECT), where the back end can; files go through the page cache all the same. */
  readonly direct: boolean;
  /** Flushes are answered without being done: the image is lost when the host goes down. */
  readonly noFlush: boolean;
}

export function cacheOf(mode: CacheMode): DriveCache {
  return {
    writeback: mode !== "writethrough" && mode !== "directsync",
    direct: mode === "none" || mode === "directsync",
    noFlush: mode === "unsafe",
  };
}

/** -chardev. */
export interface ChardevOptions {
  readonly option: string;
  readonly id: string;
  readonly backend: ChardevBackend;
}

export type ChardevBackend =
  | { readonly type: "null" }
  | StdioChardev
  | FileChardev
  | { readonly type: "pipe"; readonly path: string }
  | SocketChardev
  | { readonly type: "ringbuf"; readonly size: number }
  | { readonly type: "open"; readonly backend: CharBackend };

export interface StdioChardev {
  readonly type: "stdio";
  /** Ctrl-C ends virtkit, instead of reaching the guest. */
  readonly signal: boolean;
  /** Ctrl-A is the escape character: Ctrl-A X quits. */
  readonly mux: boolean;
}

export interface FileChardev {
  readonly type: "file";
  readonly path: string;
  /** Keep what is in the file. */
  readonly append: boolean;
  /** A file that the guest reads. */
  readonly inputPath: string | undefined;
}

export interface SocketChardev {
  readonly type: "socket";
  readonly address: { readonly path: string } | { readonly host: string; readonly port: number };
  readonly server: boolean;
  /** As a server: the machine starts when somebody has connected. */
  readonly wait: boolean;
  readonly noDelay: boolean;
  /** As a client: seconds between attempts to connect again; 0 for none. */
  readonly reconnect: number;
}
