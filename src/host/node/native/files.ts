import { VirtkitError } from "../../../common/error.ts";
import { checked, EACCES, EAGAIN, ENXIO, loadNative } from "./load.ts";

/** Modes of fallocate(2), for {@link allocate} and the flags of `OP_FALLOCATE`. */
export const FALLOC_KEEP_SIZE = 1;
export const FALLOC_PUNCH_HOLE = 2;
export const FALLOC_ZERO_RANGE = 16;

/** fallocate(2): by default reserves the blocks of a range in bytes. Blocks the thread; in a data path use `OP_FALLOCATE`. */
export function allocate(fd: number, offset: number, length: number, mode = 0): void {
  const what = `allocating ${length} bytes at ${offset} (mode ${mode})`;
  checked(loadNative().fileAllocate(fd, mode, offset, length), what);
}

/** Gives the blocks of a range back; it reads as zeros then. */
export function punchHole(fd: number, offset: number, length: number): void {
  allocate(fd, offset, length, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE);
}

/** Makes a range read as zeros, without freeing its blocks. */
export function zeroRange(fd: number, offset: number, length: number): void {
  allocate(fd, offset, length, FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE);
}

/** Where the next data at or after `offset` begins; undefined when only a hole follows. Moves the descriptor's own position. */
export function nextData(fd: number, offset: number): number | undefined {
  const at = loadNative().fileSeek(fd, offset, false);
  return at === -ENXIO ? undefined : checked(at, "looking for data in a file");
}

/** Where the next hole at or after `offset` begins (the end of the file is one); undefined beyond the end. */
export function nextHole(fd: number, offset: number): number | undefined {
  const at = loadNative().fileSeek(fd, offset, true);
  return at === -ENXIO ? undefined : checked(at, "looking for a hole in a file");
}

/** A lock of an open file (OFD): it goes with the last descriptor of that open file, and not with the process. */
export const LOCK_NONE = 0;
export const LOCK_SHARED = 1;
export const LOCK_EXCLUSIVE = 2;

/** Takes or gives back a lock on a range of bytes. False when another open file holds what forbids it. */
export function lockRange(fd: number, kind: number, start: number, length: number): boolean {
  const result = loadNative().fileLock(fd, kind, start, length);
  if (result === -EAGAIN || result === -EACCES) return false;
  checked(result, "locking a file");
  return true;
}

/** Whether {@link lockRange} would succeed now. */
export function canLockRange(fd: number, kind: number, start: number, length: number): boolean {
  return checked(loadNative().fileLockTest(fd, kind, start, length), "testing a lock") === 0;
}

/** What openat2(2) refuses on the way to the file. */
export const RESOLVE_NO_XDEV = 1;
export const RESOLVE_NO_MAGICLINKS = 2;
export const RESOLVE_NO_SYMLINKS = 4;
/** Anything that leads out of the folder: "..", absolute paths and links. */
export const RESOLVE_BENEATH = 8;
/** The folder is the root for "..", absolute paths and links. */
export const RESOLVE_IN_ROOT = 16;

export interface OpenAtOptions {
  /** O_* of `node:fs`' constants. Default O_RDONLY. */
  readonly flags?: number;
  /** Of a file that is created. Default 0. */
  readonly mode?: number;
  /** Default {@link RESOLVE_BENEATH} and {@link RESOLVE_NO_MAGICLINKS}. */
  readonly resolve?: number;
}

/**
 * Opens a path relative to an open folder, by default one that cannot lead out of it.
 * @param path a string, or the bytes of a name that is not UTF-8
 * @returns a descriptor, or -errno: a name that somebody else chose is no mistake of the caller's
 */
export function openAt(folder: number, path: string | Uint8Array, options: OpenAtOptions = {}): number {
  const bytes = typeof path === "string" ? Buffer.from(path) : path;
  const resolve = options.resolve ?? RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  return loadNative().fileOpenAt(folder, bytes, bytes.length, options.flags ?? 0, options.mode ?? 0, resolve);
}

// The layout that QEMU's file driver uses: for each permission a byte at 100 that is locked by who uses it, and one at 200 that
// is locked by who does not let others use it.
const USES = 100;
const FORBIDS = 200;
const PERMISSION_CONSISTENT_READ = 0;
const PERMISSION_WRITE = 1;
const PERMISSION_RESIZE = 3;

/**
 * Locks a disk image as QEMU does, so that each refuses what the other has open for writing. Shared locks on single bytes say what we use
 * and forbid; then we look whether others hold against it. The lock goes with the open file.
 * @param write whether it was opened for writing, which forbids others to write as well as a reader does
 * @throws ERR_VIRTKIT_IMAGE_IN_USE when another process has it, ERR_VIRTKIT_SYSTEM where the file system knows no locks
 */
export function lockImage(fd: number, path: string, write: boolean): void {
  const uses = write ? [PERMISSION_CONSISTENT_READ, PERMISSION_WRITE] : [PERMISSION_CONSISTENT_READ];
  const forbids = [PERMISSION_WRITE, PERMISSION_RESIZE];
  const bytes = [...uses.map((bit) => USES + bit), ...forbids.map((bit) => FORBIDS + bit)];
  const fail = (): never => {
    for (const byte of bytes) lockRange(fd, LOCK_NONE, byte, 1);
    const wayOut = "end that program, or give it a copy (locking=off shares the image at your own risk)";
    throw new VirtkitError("ERR_VIRTKIT_IMAGE_IN_USE", `${path} is in use by another process; ${wayOut}`);
  };
  for (const byte of bytes) if (!lockRange(fd, LOCK_SHARED, byte, 1)) fail();
  const against = [...uses.map((bit) => FORBIDS + bit), ...forbids.map((bit) => USES + bit)];
  for (const byte of against) if (!canLockRange(fd, LOCK_EXCLUSIVE, byte, 1)) fail();
}
