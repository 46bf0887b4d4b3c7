import type { DiskSource } from "../backend/block/disk.ts";
import { DISK_TIMEOUT } from "../backend/block/open-disk.ts";
import type { BlockBackend } from "../backend/block/types.ts";
import { VirtkitError } from "../common/error.ts";
import { cacheOf, type DriveOptions } from "../machine/description.ts";

/** A disk: an image file, a back end of the program's own, or a disk of its own in a simpler form. */
export type DriveSettings = (
  | { readonly file: string; readonly backend?: undefined; readonly module?: undefined }
  | { readonly backend: BlockBackend; readonly file?: undefined; readonly module?: undefined }
  | ModuleSettings
) & {
  /** Default "drive0", "drive1", ... */
  readonly id?: string;
  readonly readOnly?: boolean;
  /** Writes of the guest go to a temporary file (or memory, over a back end) and are gone at the end. Default false. */
  readonly snapshot?: boolean;
  /** "virtio" (default) plugs it in as the next virtio-blk-pci; "none" leaves that to `devices`. */
  readonly interface?: "virtio" | "none";
};

/** A disk of one's own: see `defineDisk`. What goes wrong in it ends as an I/O error in the guest. */
export interface ModuleSettings {
  /** The disk, what opens it, or the file of a module whose default export is one of them. */
  readonly module: DiskSource | string;
  /** What the module finds in its `options`. */
  readonly options?: Readonly<Record<string, string>>;
  /** Seconds that a request may take; 0 for as long as it takes. Default 10. */
  readonly timeout?: number;
  readonly file?: undefined;
  readonly backend?: undefined;
}

/** A drive as the machine's description has it. @throws ERR_VIRTKIT_OPTION */
export function driveOptions(drive: string | DriveSettings, index: number): DriveOptions {
  const given: DriveSettings = typeof drive === "string" ? { file: drive } : drive;
  return {
    option: `drives[${index}]`,
    id: given.id ?? `drive${index}`,
    source: sourceOf(given),
    format: "raw",
    interface: given.interface ?? "virtio",
    readOnly: given.readOnly ?? false,
    ...(given.snapshot === true ? { snapshot: true } : {}),
    locking: true,
    cache: cacheOf("writeback"),
    aio: "threads",
    discard: "ignore",
  };
}

function sourceOf(given: DriveSettings): DriveOptions["source"] {
  if (given.backend !== undefined) return { backend: given.backend };
  if (given.module === undefined) return { file: given.file };
  const { module, options = {}, timeout = DISK_TIMEOUT / 1000 } = given;
  if (timeout >= 0 && timeout * 1000 < 2 ** 31) return { module, options, timeout: timeout * 1000 };
  throw new VirtkitError("ERR_VIRTKIT_OPTION", `timeout: ${timeout} is no number of seconds; give 0 or more`);
}
