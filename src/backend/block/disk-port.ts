import type { Disk } from "./disk.ts";
import type { CheckedDisk } from "./disk-check.ts";
import { kindOf } from "./disk-check.ts";
import {
  BLOCK_DISCARD,
  BLOCK_FLUSH,
  BLOCK_IO_ERROR,
  BLOCK_OK,
  BLOCK_READ,
  BLOCK_SECURE_ERASE,
  BLOCK_UNSUPPORTED,
  BLOCK_WRITE,
  BLOCK_WRITE_ZEROES,
  type BlockBackend,
  type BlockRequests,
  type IoVector,
} from "./types.ts";

/** The side of a disk that its requests come from. */
export interface DiskPortHost {
  readonly requests: BlockRequests;
  /** A request was answered; `problem` says what was wrong with the answer, or what was thrown. May be called too often. */
  answered(slot: number, generation: number, result: number, problem?: unknown): void;
  resized(capacity: number): void;
}

/** A user's disk, request by request. Each request has one buffer of its own, which nobody uses again. */
export interface DiskPort {
  /** Whether the disk takes this operation; a flush that it does not know is not handed on. */
  takes(op: number): boolean;
  /** Begins the requests of these slots. */
  submit(slots: readonly number[]): void;
  close(): unknown;
}

export const openPort = ({ form }: CheckedDisk, host: DiskPortHost): DiskPort =>
  "raw" in form ? new RawPort(form.raw, host) : new SimplePort(form.simple, host);

/** A disk with a method for each operation. */
class SimplePort implements DiskPort {
  readonly #disk: Disk;
  readonly #host: DiskPortHost;

  constructor(disk: Disk, host: DiskPortHost) {
    this.#disk = disk;
    this.#host = host;
  }

  takes(op: number): boolean {
    const { flush, discard, writeZeroes } = this.#disk;
    if (op === BLOCK_FLUSH) return flush !== undefined;
    if (op === BLOCK_DISCARD) return discard !== undefined;
    if (op === BLOCK_WRITE_ZEROES) return writeZeroes !== undefined;
    return op === BLOCK_READ || op === BLOCK_WRITE;
  }

  submit(slots: readonly number[]): void {
    for (const slot of slots) this.#begin(slot);
  }

  close(): unknown {
    return this.#disk.close?.();
  }

  #begin(slot: number): void {
    const { requests } = this.#host;
    const generation = requests.generation[slot] as number;
    const op = requests.op[slot] as number;
    const length = requests.length[slot] as number;
    const buffer = bufferOf(requests, slot);
    const failed = (error: unknown): void => this.#host.answered(slot, generation, BLOCK_IO_ERROR, error);
    const done = (answer: unknown): void => {
      const problem = judge(op, buffer, length, answer);
      this.#host.answered(slot, generation, problem === undefined ? BLOCK_OK : BLOCK_IO_ERROR, problem);
    };
    try {
      const answer = this.#call(op, requests.offset[slot] as number, length, buffer);
      if (isThenable(answer)) Promise.resolve(answer).then(done, failed);
      else done(answer);
    } catch (error) {
      failed(error);
    }
  }

  #call(op: number, offset: number, length: number, buffer: Uint8Array): unknown {
    const disk = this.#disk;
    switch (op) {
      case BLOCK_READ:
        return disk.read(offset, buffer);
      case BLOCK_WRITE:
        return disk.write?.(offset, buffer);
      case BLOCK_DISCARD:
        return disk.discard?.(offset, length);
      case BLOCK_WRITE_ZEROES:
        return disk.writeZeroes?.(offset, length);
      default:
        return disk.flush?.();
    }
  }
}

/** What is wrong with an answer, or undefined. Bytes that were read are in `buffer` afterwards. */
function judge(op: number, buffer: Uint8Array, length: number, answer: unknown): string | undefined {
  if (op === BLOCK_READ) return judgeRead(buffer, length, answer);
  if (op !== BLOCK_WRITE || answer === undefined) return undefined;
  const count = countIn(answer, "bytesWritten");
  if (count === undefined) return `write() returned ${kindOf(answer)}; return nothing, or the number of bytes`;
  return count === length ? undefined : `write() took ${count} of ${length} bytes`;
}

function judgeRead(buffer: Uint8Array, length: number, answer: unknown): string | undefined {
  if (answer instanceof Uint8Array && answer !== buffer) {
    if (answer.length !== length) return `read() returned ${answer.length} bytes where ${length} were asked for`;
    if (buffer.length === length) buffer.set(answer);
  } else if (answer !== buffer && answer !== undefined) {
    const count = countIn(answer, "bytesRead");
    if (count === undefined)
      return `read() returned ${kindOf(answer)}; fill the buffer and return nothing, or return a Uint8Array`;
    if (count !== length) return `read() returned ${count} bytes where ${length} were asked for`;
  }
  return buffer.length === length ? undefined : "the buffer of read() was transferred away; copy it instead";
}

/** A number of bytes as it may be answered; undefined for what is none. */
function countIn(answer: unknown, name: string): number | undefined {
  if (typeof answer === "number") return answer;
  const count = typeof answer === "object" && answer !== null ? (answer as Record<string, unknown>)[name] : undefined;
  return typeof count === "number" ? count : undefined;
}

const isThenable = (value: unknown): value is PromiseLike<unknown> =>
  (typeof value === "object" || typeof value === "function") &&
  value !== null &&
  typeof (value as { then?: unknown }).then === "function";

/** A disk that is a {@link BlockBackend} itself, and may not be one to rely on. */
class RawPort implements DiskPort {
  readonly #disk: BlockBackend;

  constructor(disk: BlockBackend, host: DiskPortHost) {
    this.#disk = disk;
    disk.attach(host.requests, {
      complete: (slot, generation, result) => {
        const known = result === BLOCK_OK || result === BLOCK_IO_ERROR || result === BLOCK_UNSUPPORTED;
        if (known) host.answered(slot, generation, result);
        else host.answered(slot, generation, BLOCK_IO_ERROR, `${kindOf(result)} is no result`);
      },
      completed: () => undefined,
      resized: (capacity) => host.resized(capacity),
    });
  }

  takes(op: number): boolean {
    const { discard, writeZeroes, secureErase } = this.#disk;
    if (op === BLOCK_DISCARD) return discard === true;
    if (op === BLOCK_WRITE_ZEROES) return writeZeroes === true;
    if (op === BLOCK_SECURE_ERASE) return secureErase === true;
    return op === BLOCK_READ || op === BLOCK_WRITE || op === BLOCK_FLUSH;
  }

  submit(slots: readonly number[]): void {
    this.#disk.submit(slots, slots.length);
  }

  close(): unknown {
    return this.#disk.close?.();
  }
}

const bufferOf = (requests: BlockRequests, slot: number): Uint8Array =>
  (requests.vector[slot] as IoVector).buffer[0] as Uint8Array;
