import * as nodeFs from "node:fs";
import {
  BLOCK_DISCARD,
  BLOCK_FLUSH,
  BLOCK_IO_ERROR,
  BLOCK_MAY_UNMAP,
  BLOCK_OK,
  BLOCK_READ,
  BLOCK_UNSUPPORTED,
  BLOCK_WRITE,
  BLOCK_WRITE_ZEROES,
  type BlockBackend,
  type BlockRequests,
  type BlockSink,
  type IoVector,
} from "../../backend/block/types.ts";
import type { Environment } from "../../common/environment.ts";
import { VirtkitError } from "../../common/error.ts";
import { RateLimitedLog } from "./environment.ts";
import { HolePuncher } from "./hole-puncher.ts";
import { type ImageFile, openImage } from "./image-file.ts";
import { isLocalFile, PromptIo } from "./prompt-io.ts";
import type { PunchCall } from "./punch-call.ts";

/** Raw images are rounded up to whole sectors. */
const SECTOR = 512;
/** Bytes of one system call on one buffer. */
const MOST = 2 ** 30;
/** Smallest hole that is worth a process. Zeros for less are written, a discard of less is left out. */
const HOLE_UNIT = 64 * 1024;
/** Zeros written at a time. */
const ZEROS = new Uint8Array(1024 * 1024);

type Done = (error: NodeJS.ErrnoException | null, bytes: number) => void;

/** The calls that reach the disk; a test may watch them, or let them fail. */
export interface FileCalls {
  read(fd: number, buffer: Uint8Array, offset: number, length: number, position: number, done: Done): void;
  readv(fd: number, buffers: Uint8Array[], position: number, done: Done): void;
  write(fd: number, buffer: Uint8Array, offset: number, length: number, position: number, done: Done): void;
  writev(fd: number, buffers: Uint8Array[], position: number, done: Done): void;
  fdatasync(fd: number, done: (error: NodeJS.ErrnoException | null) => void): void;
  /** These wait. Without them everything goes through the thread pool. */
  readSync?(fd: number, buffer: Uint8Array, offset: number, length: number, position: number): number;
  readvSync?(fd: number, buffers: Uint8Array[], position: number): number;
  writeSync?(fd: number, buffer: Uint8Array, offset: number, length: number, position: number): number;
  writevSync?(fd: number, buffers: Uint8Array[], position: number): number;
}

export interface FileBlockOptions {
  readonly path: string;
  readonly environment: Environment;
  /** Default false. */
  readonly readOnly?: boolean;
  /** Default true; see {@link openImage}. */
  readonly locking?: boolean;
  /** Answer flushes without doing them: the image may be lost when the host goes down. Default false. */
  readonly noFlush?: boolean;
  readonly calls?: FileCalls;
  /** "unmap": discards, and zeros that may be unmapped, free blocks of the host's. Default "ignore". */
  readonly discard?: "ignore" | "unmap";
  readonly punch?: PunchCall;
}

/**
 * A raw image in a file or block device, through Node's thread pool. Reads and writes of a local file are waited for instead, as long
 * as experience says that they only meet the page cache ({@link PromptIo}) and the front side can make use of it.
 *
 * An image whose size is no multiple of 512 is rounded up, as QEMU does it: the missing bytes read as zeros, and the file grows to
 * its last whole sector when that sector is written. Zeros are only made up there: a file that somebody cut short while it is
 * in use gives I/O errors. After a flush that failed, every later one fails too, because the operating system forgets what it
 * could not write.
 */
export class FileBlockBackend implements BlockBackend {
  readonly name: string;
  readonly readOnly: boolean;
  readonly blockSize = SECTOR;
  readonly physicalBlockSize: number;
  readonly inline = false;
  readonly discard = true;
  readonly discardUnit = HOLE_UNIT;
  readonly writeZeroes = true;
  readonly #image: ImageFile;
  readonly #calls: FileCalls;
  readonly #environment: Environment;
  readonly #log: RateLimitedLog;
  readonly #noFlush: boolean;
  /** Undefined where discards are ignored. */
  readonly #puncher: HolePuncher | undefined;
  /** Undefined where no call is ever waited for. */
  readonly #prompt: PromptIo | undefined;
  /** Bytes in the file. */
  #size: number;
  #capacity: number;
  #requests: BlockRequests | undefined;
  #sink: BlockSink | undefined;
  /** Bytes done, by slot. */
  #moved = new Float64Array(0);
  #callbacks: Done[] = [];
  #inFlight = 0;
  #unsynced = false;
  #syncFailed = false;
  #announced = false;
  #closing: Promise<void> | undefined;
  #idle: (() => void) | undefined;

  private constructor(image: ImageFile, options: FileBlockOptions) {
    this.name = image.path;
    this.readOnly = image.readOnly;
    this.physicalBlockSize = image.isBlockDevice ? Math.max(SECTOR, powerOfTwo(image.ioSize)) : SECTOR;
    this.#image = image;
    this.#calls = options.calls ?? nodeFs;
    this.#environment = options.environment;
    this.#log = new RateLimitedLog(options.environment);
    this.#noFlush = options.noFlush ?? false;
    const { environment, punch } = options;
    if (options.discard === "unmap" && !image.readOnly)
      this.#puncher = new HolePuncher(image.fd, {
        name: image.path,
        environment,
        ...(punch === undefined ? {} : { call: punch }),
      });
    const { readvSync, writevSync, readSync, writeSync } = this.#calls;
    if (readvSync && writevSync && readSync && writeSync && !image.isBlockDevice && isLocalFile(image.path))
      this.#prompt = new PromptIo(() => environment.now());
    this.#size = image.size;
    this.#capacity = Math.ceil(image.size / SECTOR) * SECTOR;
    if (this.#capacity !== this.#size)
      options.environment.log.log(
        "warn",
        `${image.path}: ${this.#size} bytes are no whole sectors; the guest sees ${this.#capacity}, the last of them zeros`,
      );
  }

  /** Opens an image. Throws as {@link openImage} does. */
  static async open(options: FileBlockOptions): Promise<FileBlockBackend> {
    const { path, readOnly = false, locking = true } = options;
    return new FileBlockBackend(await openImage({ path, readOnly, locking }), options);
  }

  get capacity(): number {
    return this.#capacity;
  }

  attach(requests: BlockRequests, sink: BlockSink): void {
    if (this.#sink !== undefined)
      throw new VirtkitError("ERR_VIRTKIT_ATTACHED", `${this.name} serves a device already; open it for each`);
    this.#requests = requests;
    this.#sink = sink;
    this.#moved = new Float64Array(requests.slots);
    this.#callbacks = Array.from({ length: requests.slots }, (_, slot) => (error, n) => this.#step(slot, error, n));
  }

  detach(): void {
    this.#requests = undefined;
    this.#sink = undefined;
  }

  finishesNow(): boolean {
    return this.#prompt?.ask() ?? false;
  }

  submit(slots: ArrayLike<number>, count: number): void {
    for (let i = 0; i < count; i++) this.#begin(slots[i] as number);
  }

  /** Makes the image larger or smaller: bytes, a multiple of 512. Only regular files. */
  async resize(capacity: number): Promise<void> {
    if (
      this.readOnly ||
      this.#image.isBlockDevice ||
      !Number.isSafeInteger(capacity) ||
      capacity % SECTOR !== 0 ||
      capacity < 0
    )
      throw new VirtkitError(
        "ERR_VIRTKIT_BLOCK_SIZE",
        `${this.name} cannot be made ${capacity} bytes large; it takes a writable file and a multiple of ${SECTOR}`,
      );
    await new Promise<void>((resolve, reject) => {
      nodeFs.ftruncate(this.#image.fd, capacity, (error) => (error ? reject(error) : resolve()));
    });
    this.#size = capacity;
    this.#capacity = capacity;
    this.#sink?.resized(capacity);
  }

  /** @throws ERR_VIRTKIT_IMAGE_FLUSH when what was written could not be made durable; the file is closed all the same */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    if (this.#inFlight > 0) await new Promise<void>((resolve) => (this.#idle = resolve));
    const failed = this.#unsynced && !this.#noFlush ? await this.#lastSync() : undefined;
    await new Promise<void>((resolve) => nodeFs.close(this.#image.fd, () => resolve()));
    this.#image.release();
    if (failed !== undefined)
      throw new VirtkitError(
        "ERR_VIRTKIT_IMAGE_FLUSH",
        `${this.name}: the last writes may not have reached the disk: ${failed.message}`,
        { cause: failed },
      );
  }

  #lastSync(): Promise<Error | undefined> {
    return new Promise((resolve) => this.#calls.fdatasync(this.#image.fd, (error) => resolve(error ?? undefined)));
  }

  #begin(slot: number): void {
    const op = this.#requests?.op[slot];
    this.#inFlight++;
    if (this.#closing !== undefined) this.#answer(slot, BLOCK_IO_ERROR);
    else if (op === BLOCK_FLUSH) this.#flush(slot);
    else if (op === BLOCK_READ || (op === BLOCK_WRITE && !this.readOnly)) {
      this.#moved[slot] = 0;
      if (this.#requests?.now[slot] === 1) this.#moveNow(slot, op === BLOCK_WRITE);
      else this.#move(slot, op === BLOCK_WRITE);
    } else if (op === BLOCK_WRITE || this.readOnly) this.#answer(slot, BLOCK_IO_ERROR);
    else if (op === BLOCK_DISCARD) this.#discard(slot);
    else if (op === BLOCK_WRITE_ZEROES) this.#writeZeroes(slot);
    else this.#answer(slot, BLOCK_UNSUPPORTED);
  }

  /** A hint: what cannot be freed is left as it is. */
  #discard(slot: number): void {
    const hole = this.#holeOf(slot);
    if (hole === undefined) this.#answerLater(slot, BLOCK_OK);
    else hole(() => this.#answerLater(slot, BLOCK_OK));
  }

  #writeZeroes(slot: number): void {
    this.#moved[slot] = 0;
    const mayUnmap = ((this.#requests?.flags[slot] ?? 0) & BLOCK_MAY_UNMAP) !== 0;
    const hole = mayUnmap ? this.#holeOf(slot) : undefined;
    if (hole === undefined) this.#zeroNext(slot);
    else hole((ok) => (ok ? this.#answerLater(slot, BLOCK_OK) : this.#zeroNext(slot)));
  }

  /** What punches the request's range, where that can be done and is worth it: aligned ranges free whole blocks only. */
  #holeOf(slot: number): ((done: (ok: boolean) => void) => void) | undefined {
    const puncher = this.#puncher;
    const offset = this.#requests?.offset[slot] as number;
    const length = this.#requests?.length[slot] as number;
    if (puncher === undefined || !puncher.works || length < HOLE_UNIT) return undefined;
    return (done) => {
      this.#unsynced = true;
      puncher.punch(offset, length, done);
    };
  }

  #zeroNext(slot: number): void {
    const requests = this.#requests as BlockRequests;
    const moved = this.#moved[slot] as number;
    const length = Math.min((requests.length[slot] as number) - moved, ZEROS.length);
    const position = (requests.offset[slot] as number) + moved;
    this.#unsynced = true;
    this.#calls.write(this.#image.fd, ZEROS, 0, length, position, (error, n) => {
      if (error !== null || n === 0) {
        this.#failed(slot, "writing", error?.message ?? "nothing was written");
        return;
      }
      this.#size = Math.max(this.#size, position + n);
      this.#moved[slot] = moved + n;
      if (moved + n < (requests.length[slot] as number)) this.#zeroNext(slot);
      else this.#answerLater(slot, BLOCK_OK);
    });
  }

  /** Asks the operating system for what is left of a request. */
  #move(slot: number, write: boolean): void {
    const requests = this.#requests as BlockRequests;
    const vector = requests.vector[slot] as IoVector;
    const { fd } = this.#image;
    const moved = this.#moved[slot] as number;
    const position = (requests.offset[slot] as number) + moved;
    const done = this.#callbacks[slot] as Done;
    if (write) this.#unsynced = true;
    if (vector.count === 1) {
      const buffer = vector.buffer[0] as Uint8Array;
      const offset = (vector.offset[0] as number) + moved;
      const length = Math.min((vector.length[0] as number) - moved, MOST);
      if (write) this.#calls.write(fd, buffer, offset, length, position, done);
      else this.#calls.read(fd, buffer, offset, length, position, done);
      return;
    }
    const buffers = rest(vector, moved);
    if (write) this.#calls.writev(fd, buffers, position, done);
    else this.#calls.readv(fd, buffers, position, done);
  }

  /** A call has moved `n` bytes; the system may well move fewer than it was asked for. */
  #step(slot: number, error: NodeJS.ErrnoException | null, n: number): void {
    const requests = this.#requests as BlockRequests;
    const write = requests.op[slot] === BLOCK_WRITE;
    if (error) {
      this.#failed(slot, write ? "writing" : "reading", error.message);
      return;
    }
    const problem = this.#moveCounted(slot, write, n);
    if (problem !== undefined) this.#failed(slot, write ? "writing" : "reading", problem);
    else if ((this.#moved[slot] as number) >= (requests.length[slot] as number)) this.#answerLater(slot, BLOCK_OK);
    else this.#move(slot, write);
  }

  /** Counts what a call moved; at the end of a file whose last sector is not whole, the rest is zeros. Returns what is wrong, if anything. */
  #moveCounted(slot: number, write: boolean, n: number): string | undefined {
    const requests = this.#requests as BlockRequests;
    const moved = (this.#moved[slot] as number) + n;
    const position = (requests.offset[slot] as number) + moved;
    this.#moved[slot] = moved;
    if (write && n > 0) this.#size = Math.max(this.#size, position);
    if (n > 0 || moved >= (requests.length[slot] as number)) return undefined;
    if (write) return "nothing was written";
    if (position < this.#size || position >= this.#capacity) return "the file was cut short";
    zero(requests.vector[slot] as IoVector, moved);
    this.#moved[slot] = requests.length[slot] as number;
    return undefined;
  }

  /** The same from beginning to end before it returns. */
  #moveNow(slot: number, write: boolean): void {
    const requests = this.#requests as BlockRequests;
    const length = requests.length[slot] as number;
    const vector = requests.vector[slot] as IoVector;
    if (write) this.#unsynced = true;
    this.#prompt?.begin();
    let problem: string | undefined;
    try {
      while (problem === undefined && (this.#moved[slot] as number) < length) {
        const moved = this.#moved[slot] as number;
        const n = this.#waitFor(vector, (requests.offset[slot] as number) + moved, moved, write);
        problem = this.#moveCounted(slot, write, n);
      }
    } catch (error) {
      problem = (error as Error).message;
    }
    this.#prompt?.end(length);
    if (problem === undefined) this.#answer(slot, BLOCK_OK);
    else this.#failed(slot, write ? "writing" : "reading", problem);
  }

  #waitFor(vector: IoVector, position: number, moved: number, write: boolean): number {
    const { readSync, readvSync, writeSync, writevSync } = this.#calls as Required<FileCalls>;
    const { fd } = this.#image;
    if (vector.count === 1) {
      const buffer = vector.buffer[0] as Uint8Array;
      const offset = (vector.offset[0] as number) + moved;
      const length = (vector.length[0] as number) - moved;
      return (write ? writeSync : readSync)(fd, buffer, offset, length, position);
    }
    return (write ? writevSync : readvSync)(fd, rest(vector, moved), position);
  }

  #flush(slot: number): void {
    if (this.readOnly || this.#noFlush) this.#answer(slot, BLOCK_OK);
    else if (this.#syncFailed) this.#failed(slot, "flushing", "an earlier flush failed");
    else {
      this.#unsynced = false;
      this.#calls.fdatasync(this.#image.fd, (error) => {
        if (error === null) {
          this.#answerLater(slot, BLOCK_OK);
          return;
        }
        this.#syncFailed = true;
        this.#unsynced = true;
        this.#failed(slot, "flushing", error.message);
      });
    }
  }

  #failed(slot: number, doing: string, why: string): void {
    this.#log.log("warn", `${this.name}: ${doing} failed: ${why}; the guest gets an I/O error`);
    this.#answerLater(slot, BLOCK_IO_ERROR);
  }

  #answer(slot: number, result: number): void {
    this.#inFlight--;
    this.#sink?.complete(slot, this.#requests?.generation[slot] as number, result);
  }

  /** Completions of one turn are published together. */
  #answerLater(slot: number, result: number): void {
    this.#answer(slot, result);
    if (!this.#announced) {
      this.#announced = true;
      this.#environment.defer(() => {
        this.#announced = false;
        this.#sink?.completed();
        if (this.#inFlight === 0) this.#idle?.();
      });
    }
  }
}

/** The pieces of a vector behind its first `skip` bytes. */
function rest(vector: IoVector, skip: number): Uint8Array[] {
  const buffers: Uint8Array[] = [];
  for (let i = 0; i < vector.count; i++) {
    const length = vector.length[i] as number;
    const from = Math.min(skip, length);
    skip -= from;
    const start = vector.offset[i] as number;
    if (from < length) buffers.push((vector.buffer[i] as Uint8Array).subarray(start + from, start + length));
  }
  return buffers;
}

function zero(vector: IoVector, from: number): void {
  for (const buffer of rest(vector, from)) buffer.fill(0);
}

const powerOfTwo = (n: number): number => (n > 0 && Number.isInteger(Math.log2(n)) ? n : 1);
