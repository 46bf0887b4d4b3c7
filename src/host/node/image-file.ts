import * as fs from "node:fs";
import { VirtkitError } from "../../common/error.ts";

/** An image that is open. */
export interface ImageFile {
  readonly fd: number;
  readonly path: string;
  readonly readOnly: boolean;
  /** Bytes that are there now. */
  readonly size: number;
  /** Preferred unit of the medium. */
  readonly ioSize: number;
  readonly isBlockDevice: boolean;
  /** Says that the image is no longer in use; the caller closes the descriptor. */
  release(): void;
}

export interface ImageOptions {
  readonly path: string;
  readonly readOnly: boolean;
  /** False lets this program use an image several times at once (`file.locking=off`). */
  readonly locking: boolean;
}

/** Images that this program has open, by device and inode: how often for reading, and whether for writing. */
const inUse = new Map<string, { readers: number; writer: boolean }>();

/**
 * Opens a raw image: a regular file or a block device.
 *
 * Two writers, or a writer and a reader, on one image within this program are refused. Against other programs Node has
 * nothing to offer (neither flock nor fcntl locks): that takes the native add-on.
 * @throws ERR_VIRTKIT_IMAGE_MISSING, _DIRECTORY, _PERMISSION, _KIND, _LOCKED or _OPEN; the message begins with `file=`
 */
export async function openImage(options: ImageOptions): Promise<ImageFile> {
  const { path, readOnly, locking } = options;
  // Before it is opened: opening a FIFO would wait for somebody at its other end.
  await checkImage(path, readOnly);
  const flags = readOnly ? fs.constants.O_RDONLY : fs.constants.O_RDWR;
  const fd = await open(path, flags).catch((error: NodeJS.ErrnoException) => rejected(path, readOnly, error));
  try {
    const stat = fs.fstatSync(fd, { bigint: true });
    checkKind(path, stat);
    const isBlockDevice = stat.isBlockDevice();
    const key = isBlockDevice ? `block ${stat.rdev}` : `${stat.dev}:${stat.ino}`;
    return {
      fd,
      path,
      readOnly,
      isBlockDevice,
      size: isBlockDevice ? blockDeviceSize(path, Number(stat.rdev)) : Number(stat.size),
      ioSize: Number(stat.blksize),
      release: locking ? take(key, path, readOnly) : () => undefined,
    };
  } catch (error) {
    fs.closeSync(fd);
    throw error;
  }
}

/** Whether there is an image at all, without opening it. @throws ERR_VIRTKIT_IMAGE_MISSING, _DIRECTORY, _PERMISSION, _KIND or _OPEN */
export async function checkImage(path: string, readOnly: boolean): Promise<void> {
  checkKind(
    path,
    await fs.promises.stat(path).catch((error: NodeJS.ErrnoException) => rejected(path, readOnly, error)),
  );
}

function open(path: string, flags: number): Promise<number> {
  return new Promise((resolve, reject) => fs.open(path, flags, (error, fd) => (error ? reject(error) : resolve(fd))));
}

function checkKind(path: string, stat: fs.Stats | fs.BigIntStats): void {
  if (stat.isDirectory())
    throw new VirtkitError("ERR_VIRTKIT_IMAGE_DIRECTORY", `file=${path} is a directory; give an image file`);
  if (!stat.isFile() && !stat.isBlockDevice())
    throw new VirtkitError(
      "ERR_VIRTKIT_IMAGE_KIND",
      `file=${path} is neither a file nor a block device; give an image of one of these kinds`,
    );
}

function rejected(path: string, readOnly: boolean, error: NodeJS.ErrnoException): never {
  const options = { cause: error };
  const { code } = error;
  if (code === "ENOENT" || code === "ENOTDIR")
    throw new VirtkitError(
      "ERR_VIRTKIT_IMAGE_MISSING",
      `file=${path}: there is no such file; mend the path, or make an empty image with: truncate -s 1G ${path}`,
      options,
    );
  if (code === "EACCES" || code === "EPERM" || code === "EROFS")
    throw new VirtkitError(
      "ERR_VIRTKIT_IMAGE_PERMISSION",
      readOnly
        ? `file=${path}: no permission to read it`
        : `file=${path}: no permission to write it; change that, or use it with readonly=on`,
      options,
    );
  throw new VirtkitError("ERR_VIRTKIT_IMAGE_OPEN", `file=${path} cannot be opened: ${error.message}`, options);
}

/** Node cannot seek to the end of a device, Linux tells its size here. */
function blockDeviceSize(path: string, rdev: number): number {
  const major = (rdev >>> 8) & 0xfff;
  const minor = (rdev & 0xff) | ((rdev >>> 12) & 0xfff00);
  try {
    return Number(fs.readFileSync(`/sys/dev/block/${major}:${minor}/size`, "latin1")) * 512;
  } catch (cause) {
    throw new VirtkitError("ERR_VIRTKIT_IMAGE_OPEN", `file=${path}: the size of the block device is unknown`, {
      cause,
    });
  }
}

function take(key: string, path: string, readOnly: boolean): () => void {
  const use = inUse.get(key) ?? { readers: 0, writer: false };
  if (use.writer || (!readOnly && use.readers > 0))
    throw new VirtkitError(
      "ERR_VIRTKIT_IMAGE_LOCKED",
      `file=${path} is in use by another drive; give each drive its own image, or use it with readonly=on everywhere`,
    );
  if (readOnly) use.readers++;
  else use.writer = true;
  inUse.set(key, use);
  let held = true;
  return () => {
    if (!held) return;
    held = false;
    if (readOnly) use.readers--;
    else use.writer = false;
    if (use.readers === 0 && !use.writer) inUse.delete(key);
  };
}
