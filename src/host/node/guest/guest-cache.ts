import { readdir, readFile, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { type AptPackage, debFileName } from "./apt.ts";
import { defaultCacheDir, withLock, writeFileAtomic } from "./cache.ts";
import { stateStore } from "./state-store.ts";

/** A guest in the cache. Paths are absolute. */
export interface PreparedGuest {
  /** Of everything that the guest consists of: 16 hexadecimal digits. */
  readonly id: string;
  readonly arch: string;
  /** As `uname -r` in the guest: `6.1.0-50-686`. */
  readonly kernelVersion: string;
  /** The kernel as packaged (bzImage). */
  readonly kernel: string;
  /** The kernel proper, an ELF file unpacked from `kernel`; missing when the tool for its form (xz) is. */
  readonly vmlinux?: string;
  /** An uncompressed cpio archive. */
  readonly initrd: string;
  readonly bios: string;
  readonly vgaBios: string;
  /** NAME VERSION of each package it was made from. */
  readonly packages: readonly string[];
  /** Milliseconds since 1970. */
  readonly preparedAt: number;
  /** Bytes on the disk. */
  readonly size: number;
  /** The folder that holds all this. */
  readonly folder: string;
}

export interface StoredFile {
  readonly name: string;
  readonly size: number;
  readonly sha256: string;
}

/** guest.json: what a cached guest is, and by which its files are checked. */
export interface Manifest {
  readonly id: string;
  readonly arch: string;
  readonly recipe: string;
  readonly suite: string;
  readonly kernelVersion: string;
  readonly packages: readonly AptPackage[];
  readonly preparedAt: number;
  readonly files: Readonly<Record<FileRole, StoredFile>> & { readonly vmlinux?: StoredFile };
}

export const ROLES = ["kernel", "initrd", "bios", "vgaBios"] as const;
export type FileRole = (typeof ROLES)[number];

export const FILE_NAMES: Readonly<Record<FileRole | "vmlinux", string>> = {
  kernel: "bzImage",
  initrd: "initrd.cpio",
  bios: "bios-256k.bin",
  vgaBios: "vgabios-stdvga.bin",
  vmlinux: "vmlinux",
};

export const guestsFolder = (cacheDir: string): string => join(cacheDir, "guests");
export const packagesFolder = (cacheDir: string): string => join(cacheDir, "packages");

export const toGuest = (folder: string, manifest: Manifest): PreparedGuest => {
  const path = (role: FileRole): string => join(folder, manifest.files[role].name);
  const { vmlinux } = manifest.files;
  const stored = [...ROLES.map((role) => manifest.files[role]), ...(vmlinux ? [vmlinux] : [])];
  return {
    id: manifest.id,
    arch: manifest.arch,
    kernelVersion: manifest.kernelVersion,
    kernel: path("kernel"),
    initrd: path("initrd"),
    bios: path("bios"),
    vgaBios: path("vgaBios"),
    ...(vmlinux ? { vmlinux: join(folder, vmlinux.name) } : {}),
    packages: manifest.packages.map((item) => `${item.name} ${item.version}`),
    preparedAt: manifest.preparedAt,
    size: stored.reduce((sum, file) => sum + file.size, 0),
    folder,
  };
};

const readManifest = async (folder: string): Promise<Manifest | undefined> => {
  try {
    const manifest: Manifest = JSON.parse(await readFile(join(folder, "guest.json"), "utf8"));
    const isComplete = Array.isArray(manifest.packages) && ROLES.every((role) => manifest.files[role].name !== "");
    return isComplete ? manifest : undefined;
  } catch {
    return undefined;
  }
};

/** Whether all of a guest's files are there with the size they were written with. */
const isWhole = async (folder: string, { files }: Manifest): Promise<boolean> => {
  const stored = [...ROLES.map((role) => files[role]), ...(files.vmlinux ? [files.vmlinux] : [])];
  for (const file of stored) {
    const info = await stat(join(folder, file.name)).catch(() => undefined);
    if (info?.size !== file.size) return false;
  }
  return true;
};

export interface CachedGuest {
  readonly folder: string;
  readonly manifest: Manifest;
}

/** What the cache has a manifest of, the newest first; files may be missing. */
export const recordedGuests = async (cacheDir: string): Promise<CachedGuest[]> => {
  const parent = guestsFolder(cacheDir);
  const found: CachedGuest[] = [];
  for (const name of await readdir(parent).catch((): string[] => [])) {
    if (!/^[0-9a-f]{16}$/.test(name)) continue;
    const folder = join(parent, name);
    const manifest = await readManifest(folder);
    if (manifest) found.push({ folder, manifest });
  }
  return found.sort((a, b) => b.manifest.preparedAt - a.manifest.preparedAt);
};

export const wholeGuests = async (cacheDir: string): Promise<CachedGuest[]> => {
  const found: CachedGuest[] = [];
  for (const guest of await recordedGuests(cacheDir))
    if (await isWhole(guest.folder, guest.manifest)) found.push(guest);
  return found;
};

/** All guests in the cache, the newest first. */
export const listGuests = async (cacheDir: string = defaultCacheDir()): Promise<PreparedGuest[]> =>
  (await wholeGuests(cacheDir)).map(({ folder, manifest }) => toGuest(folder, manifest));

export const allDownloaded = async (cacheDir: string, packages: readonly AptPackage[]): Promise<boolean> => {
  for (const item of packages) {
    const found = await stat(join(packagesFolder(cacheDir), debFileName(item))).catch(() => undefined);
    if (found?.size !== item.size) return false;
  }
  return true;
};

/** How many guests of one kind are kept: the newest, and one more for another version of virtkit beside this one. */
const KEPT_GUESTS = 2;

export const pruneGuests = async (cacheDir: string, { arch, suite }: Manifest): Promise<void> => {
  const alike = (await recordedGuests(cacheDir)).filter(
    ({ manifest }) => manifest.arch === arch && manifest.suite === suite,
  );
  for (const { folder, manifest } of alike.slice(KEPT_GUESTS)) {
    await rm(folder, { recursive: true, force: true });
    await stateStore(cacheDir).remove(manifest.id);
  }
};

/** Removes packages that no cached guest was made from. */
export const prunePackages = async (cacheDir: string): Promise<void> => {
  const used = new Set((await recordedGuests(cacheDir)).flatMap(({ manifest }) => manifest.packages.map(debFileName)));
  const folder = packagesFolder(cacheDir);
  for (const name of await readdir(folder).catch((): string[] => [])) {
    if (!used.has(name)) await rm(join(folder, name), { force: true });
  }
};

/** Puts a finished folder in place. What was there under the same id has the same contents, or was damaged. */
export const install = async (from: string, to: string, manifest: Manifest): Promise<PreparedGuest> => {
  const there = await readManifest(to);
  if (there && (await isWhole(to, there))) {
    await writeFileAtomic(join(to, "guest.json"), await readFile(join(from, "guest.json")));
  } else {
    await rm(to, { recursive: true, force: true });
    await rename(from, to);
  }
  return toGuest(to, manifest);
};

/**
 * Removes guests, their saved states and the packages that only they were made from.
 * @param id one guest; all of them when left out
 * @returns the ids that were removed
 */
export const removeGuests = async (cacheDir: string = defaultCacheDir(), id?: string): Promise<string[]> => {
  const removed: string[] = [];
  await withLock(
    cacheDir,
    undefined,
    () => {},
    async () => {
      for (const { folder, manifest } of await recordedGuests(cacheDir)) {
        if (id !== undefined && manifest.id !== id) continue;
        await rm(folder, { recursive: true, force: true });
        removed.push(manifest.id);
      }
      await prunePackages(cacheDir);
      for (const gone of removed) await stateStore(cacheDir).remove(gone);
    },
  );
  return removed;
};
