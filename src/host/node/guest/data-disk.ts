import { open, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { VirtkitError } from "../../../common/error.ts";
import { makeFolder } from "../make-folder.ts";
import { run } from "./process.ts";

export interface DataDiskOptions {
  /** The size of a new disk in bytes, a multiple of 1 MiB. Default 1 GiB; it takes room on the disk as it fills. */
  readonly size?: number;
  readonly signal?: AbortSignal;
}

export interface DataDisk {
  readonly path: string;
  readonly size: number;
  /** Whether it was made by this call. */
  readonly isNew: boolean;
  /** False when the host has no mke2fs: the guest's init then formats the blank disk at its first use. */
  readonly isFormatted: boolean;
}

const MIB = 1024 * 1024;
const LABEL = "virtkit";
/** Bytes at the start of a disk that say what is on it: past any partition table and boot sector, and ext4's superblock. */
const START = 4096;
const EXT4_MAGIC_OFFSET = 1024 + 56;
const EXT4_MAGIC = 0xef53;

const format = async (path: string, signal: AbortSignal | undefined): Promise<boolean> => {
  const args = ["-q", "-F", "-t", "ext4", "-L", LABEL, "-m", "0", "-E", "root_owner=0:0", path];
  // On Debian it lies where an ordinary user's PATH does not reach.
  for (const tool of ["mke2fs", "/usr/sbin/mke2fs", "/sbin/mke2fs"]) {
    try {
      const result = await run(tool, args, { signal });
      if (result.code === 0) return true;
      throw new VirtkitError(
        "ERR_VIRTKIT_DATA_DISK",
        `the disk ${path} could not be formatted. mke2fs said: ${result.stderr.trim()}`,
      );
    } catch (cause) {
      if (!(cause instanceof VirtkitError) || cause.code !== "ERR_VIRTKIT_TOOL_MISSING") throw cause;
    }
  }
  return false;
};

/**
 * Opens the raw image at `path`, or makes a sparse one with an ext4 file system. What is there is never changed.
 * @throws VirtkitError ERR_VIRTKIT_DATA_DISK when it cannot be made, naming the path
 */
export const ensureDataDisk = async (path: string, options: DataDiskOptions = {}): Promise<DataDisk> => {
  const size = options.size ?? 1024 * MIB;
  if (!Number.isSafeInteger(size) || size < 8 * MIB || size % MIB !== 0) {
    throw new VirtkitError("ERR_VIRTKIT_DATA_DISK", `size: ${size} is no multiple of 1 MiB of at least 8 MiB`);
  }
  try {
    await makeFolder(dirname(path));
    const file = await open(path, "wx");
    try {
      await file.truncate(size);
    } finally {
      await file.close();
    }
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "EEXIST") return existing(path);
    throw new VirtkitError("ERR_VIRTKIT_DATA_DISK", `the disk ${path} could not be made: ${String(cause)}`, { cause });
  }
  try {
    return { path, size, isNew: true, isFormatted: await format(path, options.signal) };
  } catch (cause) {
    await rm(path, { force: true });
    throw cause;
  }
};

const existing = async (path: string): Promise<DataDisk> => {
  const file = await open(path, "r").catch((cause: unknown) => {
    throw new VirtkitError("ERR_VIRTKIT_DATA_DISK", `the disk ${path} cannot be read: ${String(cause)}`, { cause });
  });
  try {
    const info = await file.stat();
    if (!info.isFile() || info.size === 0) {
      throw new VirtkitError("ERR_VIRTKIT_DATA_DISK", `${path} is no disk image; remove it or name another file`);
    }
    const start = Buffer.alloc(START);
    await file.read(start, 0, START, 0);
    const isFormatted = start.readUInt16LE(EXT4_MAGIC_OFFSET) === EXT4_MAGIC;
    if (!isFormatted && start.some((byte) => byte !== 0)) {
      throw new VirtkitError(
        "ERR_VIRTKIT_DATA_DISK",
        `${path} holds something else than an ext4 file system; name another file (virtkit run -drive file=... takes any disk)`,
      );
    }
    return { path, size: info.size, isNew: false, isFormatted };
  } finally {
    await file.close();
  }
};
