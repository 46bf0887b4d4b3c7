import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";
import { getSystemErrorMap } from "node:util";
import { VirtkitError } from "../../../common/error.ts";

/** VK_VERSION of native/src/virtkit.h. */
const VERSION = 1;

/**
 * The add-on's functions as they are: numbers in, a number out, which is -errno when it is negative. The files beside this one
 * give them types, names and errors; only they call them.
 */
export interface NativeBinding {
  readonly version: number;
  socketListen(path: string, backlog: number): number;
  socketConnect(path: string): number;
  socketAccept(fd: number): number;
  socketPair(fds: Int32Array): number;
  socketSend(fd: number, bytes: Uint8Array, offset: number, length: number, fds: Int32Array, count: number): number;
  socketReceive(fd: number, bytes: Uint8Array, offset: number, length: number, fds: Int32Array): number;
  duplicate(fd: number): number;
  closeDescriptor(fd: number): number;
  memfdCreate(name: string, size: number, seals: number): number;
  fileSeals(fd: number): number;
  regionMap(fd: number, offset: number, length: number, writable: boolean): number;
  regionWindow(id: number, offset: number, length: number): ArrayBuffer;
  regionUnmap(id: number): number;
  regionLost(id: number): number;
  tableCreate(requests: number, segments: number): number;
  tableBuffer(id: number): ArrayBuffer;
  tableDestroy(id: number): number;
  tableRun(id: number, first: number, count: number): number;
  tableCopy(
    id: number,
    first: number,
    count: number,
    bytes: Uint8Array,
    offset: number,
    length: number,
    toMemory: boolean,
  ): number;
  eventfdCreate(initial: number): number;
  eventfdRead(fd: number): number;
  eventfdWrite(fd: number, value: number): number;
  pollStart(fd: number, events: number, drain: boolean, callback: (events: number) => void): number;
  pollChange(id: number, events: number): number;
  pollKeepAlive(id: number, yes: boolean): number;
  pollStop(id: number): number;
  uringCreate(entries: number): number;
  uringBuffer(id: number): ArrayBuffer;
  uringEventfd(id: number): number;
  uringSubmit(id: number, table: number, first: number, count: number): number;
  uringReap(id: number): number;
  uringArm(id: number): number;
  uringOutstanding(id: number): number;
  uringClose(id: number): number;
  fileAllocate(fd: number, mode: number, offset: number, length: number): number;
  fileSeek(fd: number, offset: number, hole: boolean): number;
  fileLock(fd: number, kind: number, start: number, length: number): number;
  fileLockTest(fd: number, kind: number, start: number, length: number): number;
  fileOpenAt(folder: number, path: Uint8Array, length: number, flags: number, mode: number, resolve: number): number;
  tapOpen(name: string, flags: number, into: Uint8Array): number;
  tapSetHeaderSize(fd: number, bytes: number): number;
  tapSetOffload(fd: number, flags: number): number;
}

// From src/host/node/native and from dist/host/node/native alike.
const file = fileURLToPath(new URL("../../../../native/build/virtkit.node", import.meta.url));
const script = fileURLToPath(new URL("../../../../scripts/build-native.mjs", import.meta.url));

let loaded: NativeBinding | undefined;

/**
 * The add-on, loaded at the first call.
 * @throws ERR_VIRTKIT_NATIVE when it is not built, is older than this code, or cannot be loaded; the message says how to build it
 */
export function loadNative(): NativeBinding {
  if (loaded !== undefined) return loaded;
  const wayOut = `install a C compiler and run: node ${script}`;
  if (!existsSync(file)) throw new VirtkitError("ERR_VIRTKIT_NATIVE", `the native add-on is not built; ${wayOut}`);
  let binding: NativeBinding;
  try {
    binding = createRequire(import.meta.url)(file) as NativeBinding;
  } catch (error) {
    throw new VirtkitError("ERR_VIRTKIT_NATIVE", `the native add-on cannot be loaded; ${wayOut}`, { cause: error });
  }
  if (binding.version !== VERSION)
    throw new VirtkitError("ERR_VIRTKIT_NATIVE", `the native add-on was built from other sources; ${wayOut}`);
  loaded = binding;
  return binding;
}

/** Why {@link loadNative} throws, or undefined when it does not. */
export function nativeProblem(): string | undefined {
  try {
    loadNative();
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

/** The errno values that callers tell apart, of Linux. */
export const EPERM = 1;
export const ENXIO = 6;
export const EAGAIN = 11;
export const EACCES = 13;
export const EBUSY = 16;
export const EINVAL = 22;
export const ENOSYS = 38;
export const EOVERFLOW = 75;
export const EMSGSIZE = 90;

/** "ENOENT (no such file or directory)" for -2. */
export function describeErrno(result: number): string {
  const known = getSystemErrorMap().get(result);
  return known === undefined ? `errno ${-result}` : `${known[0]} (${known[1]})`;
}

/**
 * Passes on the result of a system call.
 * @throws ERR_VIRTKIT_SYSTEM with `what` and the reason when it is -errno
 */
export function checked(result: number, what: string): number {
  if (result >= 0) return result;
  throw new VirtkitError("ERR_VIRTKIT_SYSTEM", `${what}: ${describeErrno(result)}`, { cause: { errno: result } });
}
