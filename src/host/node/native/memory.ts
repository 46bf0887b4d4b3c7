import { VirtkitError } from "../../../common/error.ts";
import { checked, EBUSY, EOVERFLOW, loadNative } from "./load.ts";

/** F_SEAL_* of Linux, for {@link createMemoryFile}. */
export const SEAL_SEAL = 1;
export const SEAL_SHRINK = 2;
export const SEAL_GROW = 4;

const GIB = 2 ** 30;
/** Bytes that one ArrayBuffer over a mapping may have. */
export const MAX_WINDOW = 4 * GIB;
/** From the start of one window of a large mapping to that of the next: what is at most this long lies in one of them whole. */
export const WINDOW_STRIDE = 2 * GIB;

/**
 * An unnamed file in memory, of `size` zero bytes, that can be sent to another process.
 * @param seals what must not be done to it any more; by default neither side can change its size
 * @returns its descriptor, which the caller closes
 */
export function createMemoryFile(name: string, size: number, seals = SEAL_SHRINK | SEAL_GROW | SEAL_SEAL): number {
  return checked(loadNative().memfdCreate(name, size, seals), `creating ${size} bytes of shared memory`);
}

/** One ArrayBuffer over a part of a mapping. */
export interface MemoryWindow {
  /** Of its first byte, in the mapping. */
  readonly offset: number;
  readonly buffer: ArrayBuffer;
}

/**
 * A mapping of this thread's. Batch calls name it by {@link id} and an offset; JavaScript reads it through windows, which
 * become empty with {@link unmap}. A window is copied, not shared, by postMessage: each thread maps the descriptor itself.
 *
 * When somebody shrinks the file, what is missing reads as zeros from then on and {@link lost} is true: a reason to end the
 * session, not the process.
 */
export class MappedMemory {
  readonly id: number;
  /** Bytes. */
  readonly length: number;
  /** The file may be shrunk by those who have it: it is not sealed against that. */
  readonly shrinkable: boolean;
  #mapped = true;

  private constructor(id: number, length: number, shrinkable: boolean) {
    this.id = id;
    this.length = length;
    this.shrinkable = shrinkable;
  }

  /**
   * Maps [offset, offset + length) of a file or memory file, shared with all that map it. The descriptor may be closed after it.
   * @param readOnly for batch calls alone: such a mapping has no windows
   * @throws ERR_VIRTKIT_MEMORY_FILE when the file is shorter than that
   */
  static map(fd: number, options: { offset?: number; length: number; readOnly?: boolean }): MappedMemory {
    const native = loadNative();
    const offset = options.offset ?? 0;
    const id = native.regionMap(fd, offset, options.length, !(options.readOnly ?? false));
    if (id === -EOVERFLOW) {
      const range = `${options.length} bytes at ${offset}`;
      throw new VirtkitError("ERR_VIRTKIT_MEMORY_FILE", `the memory file does not hold ${range}; share a longer one`);
    }
    const seals = native.fileSeals(fd);
    const shrinkable = seals < 0 || (seals & SEAL_SHRINK) === 0;
    return new MappedMemory(checked(id, `mapping ${options.length} bytes`), options.length, shrinkable);
  }

  /** Memory of our own, zeroed: a place for batch calls to read to and write from. */
  static allocate(length: number): MappedMemory {
    return new MappedMemory(
      checked(loadNative().regionMap(-1, 0, length, true), `mapping ${length} bytes`),
      length,
      false,
    );
  }

  /**
   * The bytes [offset, offset + length) as an ArrayBuffer, which lives until {@link unmap}: a new one each time.
   * @throws ERR_VIRTKIT_NATIVE_ARGUMENT (a TypeError) outside of the mapping, beyond 2^32 bytes, or when it is read-only
   */
  window(offset = 0, length = this.length - offset): ArrayBuffer {
    return loadNative().regionWindow(this.id, offset, length);
  }

  /** Windows over all of it; neighbours overlap, so that any range of up to {@link WINDOW_STRIDE} bytes lies in one of them. */
  windows(): MemoryWindow[] {
    return planWindows(this.length).map(({ offset, length }) => ({ offset, buffer: this.window(offset, length) }));
  }

  /** Somebody shrank the file under the mapping, and an access met the hole. */
  get lost(): boolean {
    return this.#mapped && loadNative().regionLost(this.id) === 1;
  }

  /**
   * Takes all windows back and unmaps.
   * @throws ERR_VIRTKIT_MEMORY_BUSY while a request inside io_uring points to it: wait for those first
   */
  unmap(): void {
    if (!this.#mapped) return;
    const result = loadNative().regionUnmap(this.id);
    if (result === -EBUSY)
      throw new VirtkitError("ERR_VIRTKIT_MEMORY_BUSY", "requests in flight use this memory; drain them, then unmap");
    checked(result, "unmapping memory");
    this.#mapped = false;
  }
}

/** The windows of a mapping of `length` bytes; see {@link MappedMemory.windows}. */
export function planWindows(length: number): { offset: number; length: number }[] {
  const windows = [];
  for (let offset = 0; ; offset += WINDOW_STRIDE) {
    windows.push({ offset, length: Math.min(MAX_WINDOW, length - offset) });
    if (length - offset <= MAX_WINDOW) return windows;
  }
}
