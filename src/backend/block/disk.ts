import type { LogLevel } from "../../common/environment.ts";
import type { BlockBackend } from "./types.ts";

/** What {@link Disk.read} may answer: nothing (it filled the buffer), how many bytes it filled, or the bytes themselves. */
export type DiskRead = undefined | number | Uint8Array | { readonly bytesRead: number };
/** What {@link Disk.write} may answer: nothing, or how many bytes it took. */
export type DiskWrite = undefined | number | { readonly bytesWritten: number };

/**
 * A disk of one's own, in its simplest form. Methods may be async or not, and several calls may be under way at once; the guest orders those that
 * depend on each other. An exception or a rejection becomes an I/O error in the guest, and so does an answer that does not come in time.
 *
 * Offsets and lengths are in bytes, multiples of {@link blockSize}, and within the capacity.
 */
export interface Disk {
  /** Bytes: a multiple of {@link blockSize}, above 0. Read once, when the disk is opened. */
  readonly capacity: number;
  /** Smallest unit of a request in bytes: a power of two, 512..2097152. Default 512. */
  readonly blockSize?: number;
  /** What the medium likes to write at once, a hint: a power of two, {@link blockSize}..2097152. Default {@link blockSize}. */
  readonly physicalBlockSize?: number;
  /** Default: true when there is no {@link write}. */
  readonly readOnly?: boolean;
  /** Fills `buffer`, which is zeroed, with the bytes at `offset`; or returns as many bytes of its own. */
  read(offset: number, buffer: Uint8Array): DiskRead | Promise<DiskRead>;
  /** Takes `data` for `offset`. The array is the disk's to keep. */
  write?(offset: number, data: Uint8Array): DiskWrite | Promise<DiskWrite>;
  /** Makes what was written durable. Without it a write is taken to be durable when it is answered. */
  flush?(): Promise<void> | void;
  /** The range is no longer needed; what it reads as is open. */
  discard?(offset: number, length: number): Promise<void> | void;
  /** The range reads as zeros from now on. */
  writeZeroes?(offset: number, length: number): Promise<void> | void;
  /** Takes another size in bytes, a multiple of {@link blockSize}. */
  resize?(capacity: number): Promise<void> | void;
  /** The machine ended; all requests were answered. */
  close?(): Promise<void> | void;
}

/** What a {@link DiskFactory} is told. */
export interface DiskContext {
  /** `opt.NAME=VALUE` of the drive, by NAME. */
  readonly options: Readonly<Record<string, string>>;
  /** The drive was asked for with readonly=on: nothing will be written. */
  readonly readOnly: boolean;
  /** Writes a line to virtkit's log. Default level "warn", the least that the command line shows. */
  log(message: string, level?: LogLevel): void;
}

/** Opens a disk: what a module exports when it takes options or has to wait for something. */
export type DiskFactory = (context: DiskContext) => Disk | BlockBackend | Promise<Disk | BlockBackend>;

/** Everything that can be a drive: a disk, what opens one, or a {@link BlockBackend} for full control. */
export type DiskSource = Disk | DiskFactory | BlockBackend;

/** Returns what it is given. Gives an editor the types of a module's default export. */
export function defineDisk<T extends DiskSource>(disk: T): T {
  return disk;
}
