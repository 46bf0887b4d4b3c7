import { createHash, randomBytes } from "node:crypto";
import { mkdirSync, readFileSync, rmSync } from "node:fs";
import { open, readdir, rename, rm } from "node:fs/promises";
import { connect, createServer, type Socket } from "node:net";
import { homedir } from "node:os";
import { isAbsolute, join, resolve } from "node:path";
import { VirtkitError } from "../../../common/error.ts";
import { makeFolder } from "../make-folder.ts";
import { abortError } from "./process.ts";

/** Where virtkit keeps what it can make again: $VIRTKIT_CACHE, else $XDG_CACHE_HOME/virtkit, else ~/.cache/virtkit. */
export const defaultCacheDir = (env: NodeJS.ProcessEnv = process.env): string => {
  const own = env["VIRTKIT_CACHE"];
  if (own) return resolve(own);
  const xdg = env["XDG_CACHE_HOME"];
  return join(xdg && isAbsolute(xdg) ? xdg : join(homedir(), ".cache"), "virtkit");
};

const diskCodes: Readonly<Record<string, string>> = {
  ENOENT: "no folder can be made there",
  ENOSPC: "the disk is full; make room, or put the cache elsewhere with VIRTKIT_CACHE",
  EDQUOT: "the disk quota is used up; make room, or put the cache elsewhere with VIRTKIT_CACHE",
  EROFS: "the file system is read-only; put the cache elsewhere with VIRTKIT_CACHE",
  EACCES: "permission is denied; put the cache elsewhere with VIRTKIT_CACHE",
  EPERM: "permission is denied; put the cache elsewhere with VIRTKIT_CACHE",
  ENOTDIR: "a part of its path is no folder; put the cache elsewhere with VIRTKIT_CACHE",
};

/** A file system's error as a message with the way out; anything else as it is. */
export const cacheError = (cause: unknown, folder: string): unknown => {
  if (!(cause instanceof Error) || cause instanceof VirtkitError) return cause;
  const { code } = cause as NodeJS.ErrnoException;
  const reason = code === undefined ? undefined : diskCodes[code];
  if (reason === undefined) return cause;
  const kind = code === "ENOSPC" || code === "EDQUOT" ? "ERR_VIRTKIT_DISK_FULL" : "ERR_VIRTKIT_CACHE";
  return new VirtkitError(kind, `the cache ${folder} cannot be written: ${reason}`, { cause });
};

const TEMPORARY = ".tmp-";

/**
 * A folder for work in progress below `parent`. It is removed by `remove`, when this process exits, or, after a
 * crash, by `sweepTemporary`.
 */
export const temporaryFolder = (parent: string): { readonly path: string; remove: () => Promise<void> } => {
  const path = join(parent, `${TEMPORARY}${process.pid}-${randomBytes(6).toString("hex")}`);
  mkdirSync(path, { recursive: true });
  const atExit = (): void => rmSync(path, { recursive: true, force: true });
  process.once("exit", atExit);
  return {
    path,
    remove: async () => {
      await rm(path, { recursive: true, force: true, maxRetries: 3 });
      process.removeListener("exit", atExit);
    },
  };
};

/** A killed process whose parent does not reap it still has its number; /proc tells (the state follows the name). */
const isZombie = (pid: number): boolean => {
  try {
    return /\) [ZX] /.test(readFileSync(`/proc/${pid}/stat`, "latin1"));
  } catch {
    return false;
  }
};

const isAlive = (pid: number): boolean => {
  try {
    process.kill(pid, 0);
    return !isZombie(pid);
  } catch (cause) {
    return (cause as NodeJS.ErrnoException).code === "EPERM";
  }
};

/** Removes what processes left below `parent` that are no more. */
export const sweepTemporary = async (parent: string): Promise<void> => {
  for (const name of await readdir(parent).catch((): string[] => [])) {
    const pid = new RegExp(`^\\${TEMPORARY}(\\d+)-`).exec(name)?.[1];
    if (pid !== undefined && !isAlive(Number(pid))) await rm(join(parent, name), { recursive: true, force: true });
  }
};

/** Writes a file so that after a crash there is the whole of it or nothing: written apart, synced, renamed. */
export const writeFileAtomic = async (path: string, contents: FileContents): Promise<void> => {
  const folder = resolve(path, "..");
  await makeFolder(folder);
  const part = join(folder, `${TEMPORARY}${process.pid}-${randomBytes(6).toString("hex")}`);
  try {
    await writeSynced(part, contents);
    await rename(part, path);
  } catch (cause) {
    await rm(part, { force: true });
    throw cacheError(cause, folder);
  }
};

/** What to write: a whole, or parts one after another. */
export type FileContents = string | Uint8Array | readonly Uint8Array[];

/** Writes a file and waits until it is on the disk. */
export const writeSynced = async (path: string, contents: FileContents): Promise<void> => {
  const file = await open(path, "w");
  try {
    const parts = typeof contents === "string" || contents instanceof Uint8Array ? [contents] : contents;
    for (const part of parts) await file.writeFile(part);
    await file.sync();
  } finally {
    await file.close();
  }
};

const lockName = (key: string): string => {
  const user = process.getuid?.() ?? 0;
  return `\0virtkit-${user}-${createHash("sha256").update(key).digest("hex").slice(0, 32)}`;
};

interface HeldLock {
  release(): Promise<void>;
}

const tryLock = (path: string): Promise<HeldLock | "held" | "unsupported"> =>
  new Promise((done) => {
    const waiters = new Set<Socket>();
    const server = createServer((socket) => {
      waiters.add(socket);
      socket.on("error", () => {});
      socket.unref();
    });
    const release = (): Promise<void> =>
      new Promise((closed) => {
        server.close(() => closed());
        for (const socket of waiters) socket.destroy();
      });
    server.once("error", (cause: NodeJS.ErrnoException) => done(cause.code === "EADDRINUSE" ? "held" : "unsupported"));
    server.listen(path, () => {
      server.unref();
      done({ release });
    });
  });

/** Waits until the holder of the lock lets go of it or ends, which closes the connection. */
const waitForHolder = (path: string, signal: AbortSignal | undefined): Promise<void> =>
  new Promise((done, fail) => {
    if (signal?.aborted) {
      fail(abortError(signal));
      return;
    }
    const socket = connect(path);
    const stop = (): void => {
      socket.destroy();
      if (signal) fail(abortError(signal));
    };
    signal?.addEventListener("abort", stop, { once: true });
    socket.on("error", () => {});
    socket.once("close", () => {
      signal?.removeEventListener("abort", stop);
      done();
    });
    socket.resume();
  });

/**
 * Runs `work` while no other process of this user does so for the same `key`. The lock is a socket's name (Linux's
 * abstract names), so the kernel frees it however the holder ends; where there are none (other systems) `work` runs
 * unguarded, which costs double work only: results are put in place by renaming.
 * @param onWait called once when another holds the lock
 */
export const withLock = async <T>(
  key: string,
  signal: AbortSignal | undefined,
  onWait: () => void,
  work: () => Promise<T>,
): Promise<T> => {
  const path = lockName(key);
  let waited = false;
  for (;;) {
    if (signal?.aborted) throw abortError(signal);
    const lock = process.platform === "linux" ? await tryLock(path) : "unsupported";
    if (lock === "unsupported") return work();
    if (lock !== "held") {
      try {
        return await work();
      } finally {
        await lock.release();
      }
    }
    if (!waited) onWait();
    waited = true;
    await waitForHolder(path, signal);
  }
};
