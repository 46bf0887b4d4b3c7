import { createHash } from "node:crypto";
import { open, readdir, rm, stat, utimes } from "node:fs/promises";
import { join } from "node:path";
import { defaultCacheDir, sweepTemporary, writeFileAtomic } from "./cache.ts";

/** What a saved state is bound to: with another of any of these it cannot be restored. */
export interface StateKey {
  /** PreparedGuest.id. */
  readonly guestId: string;
  /** Of RAM. */
  readonly memoryBytes: number;
  /** Of the emulator, and of whatever else of the engine lays out its state. */
  readonly engineVersion: string;
  /** Anything more that the state was made with, such as the kernel's command line. */
  readonly extra?: string;
}

export interface StateInfo {
  readonly file: string;
  /** Bytes on the disk. */
  readonly size: number;
  /** Milliseconds since 1970. */
  readonly usedAt: number;
}

export interface StateStore {
  /** The state, or nothing when there is none or it is damaged (it is removed then). */
  get(key: StateKey): Promise<Uint8Array | undefined>;
  /** Stores a state, in place of an older one, and removes the least recently used beyond the store's limit. */
  put(key: StateKey, state: Uint8Array): Promise<void>;
  list(): Promise<StateInfo[]>;
  /** Removes those of one guest, or all. @returns how many */
  remove(guestId?: string): Promise<number>;
}

export interface StateStoreOptions {
  /** How many states are kept. Default 6. */
  readonly keep?: number;
}

/**
 * Behind the state: a magic, then the state's SHA-256. Behind it rather than ahead, so that what is read is the state
 * at offset 0 of its buffer and need not be copied to be restored.
 */
const MAGIC = Buffer.from("virtkit-state-1\n");
const TRAILER_BYTES = MAGIC.length + 32;
const SUFFIX = ".state";

const fileName = (key: StateKey): string => {
  const parts = [key.memoryBytes, key.engineVersion, key.extra ?? ""];
  return `${key.guestId}-${createHash("sha256").update(JSON.stringify(parts)).digest("hex").slice(0, 16)}${SUFFIX}`;
};

const sha256 = (bytes: Uint8Array): Buffer => createHash("sha256").update(bytes).digest();

const readState = async (path: string): Promise<Uint8Array | "missing" | "damaged"> => {
  const file = await open(path, "r").catch(() => undefined);
  if (!file) return "missing";
  try {
    const { size } = await file.stat();
    if (size < TRAILER_BYTES) return "damaged";
    const bytes = new Uint8Array(size);
    for (let at = 0; at < size; ) {
      const { bytesRead } = await file.read(bytes, at, size - at, at);
      if (bytesRead === 0) return "damaged";
      at += bytesRead;
    }
    const state = bytes.subarray(0, size - TRAILER_BYTES);
    const expected = Buffer.concat([MAGIC, sha256(state)]);
    return expected.equals(bytes.subarray(size - TRAILER_BYTES)) ? state : "damaged";
  } finally {
    await file.close();
  }
};

/**
 * Saved states of machines, one file each in the cache. They are stored as they are: reading and checking 57 MB takes
 * some 80 ms, while unpacking them would take 140 ms (gzip) to 330 ms (zstd in JavaScript) more.
 * @param cacheDir default: `defaultCacheDir()`
 */
export const stateStore = (cacheDir: string = defaultCacheDir(), options: StateStoreOptions = {}): StateStore => {
  const folder = join(cacheDir, "states");
  const keep = options.keep ?? 6;

  const list = async (): Promise<StateInfo[]> => {
    const found: StateInfo[] = [];
    for (const name of await readdir(folder).catch((): string[] => [])) {
      if (!name.endsWith(SUFFIX)) continue;
      const file = join(folder, name);
      const info = await stat(file).catch(() => undefined);
      if (info) found.push({ file, size: info.size, usedAt: info.mtimeMs });
    }
    return found.sort((a, b) => b.usedAt - a.usedAt);
  };

  const get = async (key: StateKey): Promise<Uint8Array | undefined> => {
    const path = join(folder, fileName(key));
    const state = await readState(path);
    if (state === "missing") return undefined;
    if (state === "damaged") {
      await rm(path, { force: true });
      return undefined;
    }
    const now = new Date();
    // The time of the last use decides what is pruned; a cache that may only be read still serves.
    await utimes(path, now, now).catch(() => {});
    return state;
  };

  const put = async (key: StateKey, state: Uint8Array): Promise<void> => {
    await writeFileAtomic(join(folder, fileName(key)), [state, MAGIC, sha256(state)]);
    await sweepTemporary(folder);
    for (const old of (await list()).slice(keep)) await rm(old.file, { force: true });
  };

  const remove = async (guestId?: string): Promise<number> => {
    let count = 0;
    for (const { file } of await list()) {
      if (guestId !== undefined && !file.startsWith(join(folder, `${guestId}-`))) continue;
      await rm(file, { force: true });
      count++;
    }
    return count;
  };

  return { get, put, list, remove };
};
