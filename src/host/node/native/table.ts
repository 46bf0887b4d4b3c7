import { checked, loadNative } from "./load.ts";

/** What a request of a {@link RequestTable} does. */
export const OP_READ = 0;
export const OP_WRITE = 1;
/** fsync; with flag 1, fdatasync. */
export const OP_FSYNC = 2;
/** fallocate of `position` and `length`, with its mode as flags. */
export const OP_FALLOCATE = 3;

/** A flag of reads and writes: -EAGAIN instead of waiting for a device (RWF_NOWAIT). */
export const RWF_NOWAIT = 8;
/** A flag of {@link OP_FSYNC}: the data alone. */
export const FSYNC_DATA = 1;

/**
 * Requests in parallel arrays, filled by the caller and carried out as batches: at once ({@link run}) or by io_uring
 * (`Uring.submit`). The arrays lie over the add-on's own memory. A place in memory is (id of a `MappedMemory`, offset, length), and
 * the add-on checks it: outside of the mapping the request's result is -EFAULT.
 */
export class RequestTable {
  readonly id: number;
  /** Requests and segments that it has room for. */
  readonly requests: number;
  readonly segments: number;

  /** Offset in the file, in bytes. */
  readonly position: Float64Array;
  /** Bytes; of {@link OP_FALLOCATE} alone. */
  readonly length: Float64Array;
  readonly op: Int32Array;
  readonly fd: Int32Array;
  /** The request's first segment, and how many it has (at most 1024). */
  readonly first: Uint32Array;
  readonly count: Uint32Array;
  readonly flags: Int32Array;
  /** The caller's own number, which io_uring's completions bring back. */
  readonly tag: Uint32Array;
  /** After {@link run}: bytes moved, or -errno. */
  readonly result: Int32Array;

  readonly segmentRegion: Uint32Array;
  readonly segmentOffset: Float64Array;
  readonly segmentLength: Uint32Array;

  /** @param requests 1 to 65536; @param segments 1 to 65536 */
  constructor(requests: number, segments: number) {
    const native = loadNative();
    this.id = checked(native.tableCreate(requests, segments), "creating a table of requests");
    this.requests = requests;
    this.segments = segments;
    const buffer = native.tableBuffer(this.id);
    let at = 0;
    const doubles = (rows: number) => {
      at += rows * 8;
      return new Float64Array(buffer, at - rows * 8, rows);
    };
    const place = (rows: number) => {
      at += rows * 4;
      return at - rows * 4;
    };
    this.position = doubles(requests);
    this.length = doubles(requests);
    this.segmentOffset = doubles(segments);
    this.op = new Int32Array(buffer, place(requests), requests);
    this.fd = new Int32Array(buffer, place(requests), requests);
    this.first = new Uint32Array(buffer, place(requests), requests);
    this.count = new Uint32Array(buffer, place(requests), requests);
    this.flags = new Int32Array(buffer, place(requests), requests);
    this.tag = new Uint32Array(buffer, place(requests), requests);
    this.result = new Int32Array(buffer, place(requests), requests);
    this.segmentRegion = new Uint32Array(buffer, place(segments), segments);
    this.segmentLength = new Uint32Array(buffer, place(segments), segments);
  }

  /**
   * Carries requests out now, on this thread. A read or write with {@link RWF_NOWAIT} moves what the page cache has and is short, or
   * -EAGAIN, where it would wait.
   * @returns how many failed
   */
  run(first: number, count: number): number {
    return loadNative().tableRun(this.id, first, count);
  }

  /**
   * Copies segments to `bytes`, one after the other.
   * @returns bytes copied; -EFAULT or -ENOBUFS, with nothing copied, when a segment is outside of its mapping or `bytes` is too short
   */
  copyOut(first: number, count: number, bytes: Uint8Array): number {
    return loadNative().tableCopy(this.id, first, count, bytes, 0, bytes.length, false);
  }

  /** Copies `bytes` to segments: the other direction of {@link copyOut}. */
  copyIn(first: number, count: number, bytes: Uint8Array): number {
    return loadNative().tableCopy(this.id, first, count, bytes, 0, bytes.length, true);
  }

  /** Gives the memory back; the arrays are empty from then on, and the table cannot be used. */
  close(): void {
    loadNative().tableDestroy(this.id);
  }
}
