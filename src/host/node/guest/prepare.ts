import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { VirtkitError } from "../../../common/error.ts";
import { type AptPackage, debFileName, PrivateApt, unpackDeb } from "./apt.ts";
import {
  cacheError,
  defaultCacheDir,
  sweepTemporary,
  temporaryFolder,
  withLock,
  writeFileAtomic,
  writeSynced,
} from "./cache.ts";
import { unpackKernel } from "./decompress.ts";
import { buildInitramfs } from "./initramfs.ts";
import { BOOT_MODULES, EXTRA_MODULES } from "./modules.ts";
import { choosePackages, GUEST_ARCHITECTURES } from "./packages.ts";
import { abortError } from "./process.ts";
import type { OnGuestProgress } from "./progress.ts";

/** Raised when what is built from equal packages changes by code rather than by a file in guest/. */
const BUILDER_VERSION = 1;

/** Our own files in the guest: their path there, and their name in the package's folder guest/. */
const GUEST_FILES: readonly (readonly [path: string, source: string])[] = [
  ["init", "init"],
  ["etc/profile", "profile"],
  ["etc/passwd", "passwd"],
  ["etc/group", "group"],
  ["sbin/virtkit-agent", "agent"],
  ["sbin/virtkit-session", "session"],
  ["sbin/virtkit-off", "off"],
];

const GUEST_FOLDER = new URL("../../../../guest/", import.meta.url);

export interface PrepareGuestOptions {
  /** The guest's architecture. Default and only one so far: `i386`. */
  readonly arch?: string;
  /** Default: `defaultCacheDir()`. */
  readonly cacheDir?: string;
  /** Looks for newer packages even when a guest is cached. */
  readonly refresh?: boolean;
  /** Another release of the machine's distribution to take the packages from, such as `bookworm`. */
  readonly suite?: string;
  /** A folder laid out like /etc/apt to take sources and keyrings from. Default /etc/apt. */
  readonly aptFolder?: string;
  readonly onProgress?: OnGuestProgress;
  /** Stops at once: tools are killed, unfinished files removed, nothing that was cached is lost. */
  readonly signal?: AbortSignal;
}

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

interface StoredFile {
  readonly name: string;
  readonly size: number;
  readonly sha256: string;
}

/** guest.json: what a cached guest is, and by which its files are checked. */
interface Manifest {
  readonly id: string;
  readonly arch: string;
  readonly recipe: string;
  readonly suite: string;
  readonly kernelVersion: string;
  readonly packages: readonly AptPackage[];
  readonly preparedAt: number;
  readonly files: Readonly<Record<FileRole, StoredFile>> & { readonly vmlinux?: StoredFile };
}

const ROLES = ["kernel", "initrd", "bios", "vgaBios"] as const;
type FileRole = (typeof ROLES)[number];

const FILE_NAMES: Readonly<Record<FileRole | "vmlinux", string>> = {
  kernel: "bzImage",
  initrd: "initrd.cpio",
  bios: "bios-256k.bin",
  vgaBios: "vgabios-stdvga.bin",
  vmlinux: "vmlinux",
};

const sha256 = (bytes: Uint8Array | string): string => createHash("sha256").update(bytes).digest("hex");

const guestFiles = async (): Promise<Map<string, string>> => {
  const files = new Map<string, string>();
  for (const [path, source] of GUEST_FILES) files.set(path, await readFile(new URL(source, GUEST_FOLDER), "utf8"));
  return files;
};

const recipeOf = (files: ReadonlyMap<string, string>): string =>
  sha256(JSON.stringify([BUILDER_VERSION, BOOT_MODULES, EXTRA_MODULES, [...files]])).slice(0, 16);

const guestsFolder = (cacheDir: string): string => join(cacheDir, "guests");
const packagesFolder = (cacheDir: string): string => join(cacheDir, "packages");

const toGuest = (folder: string, manifest: Manifest): PreparedGuest => {
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

/** A cached guest's manifest when all its files are there with the size they were written with. */
const readManifest = async (folder: string): Promise<Manifest | undefined> => {
  try {
    const manifest: Manifest = JSON.parse(await readFile(join(folder, "guest.json"), "utf8"));
    const stored = [
      ...ROLES.map((role) => manifest.files[role]),
      ...(manifest.files.vmlinux ? [manifest.files.vmlinux] : []),
    ];
    for (const file of stored) if ((await stat(join(folder, file.name))).size !== file.size) return undefined;
    return manifest;
  } catch {
    return undefined;
  }
};

const cachedManifests = async (cacheDir: string): Promise<{ folder: string; manifest: Manifest }[]> => {
  const parent = guestsFolder(cacheDir);
  const found: { folder: string; manifest: Manifest }[] = [];
  for (const name of await readdir(parent).catch((): string[] => [])) {
    if (!/^[0-9a-f]{16}$/.test(name)) continue;
    const folder = join(parent, name);
    const manifest = await readManifest(folder);
    if (manifest) found.push({ folder, manifest });
  }
  return found.sort((a, b) => b.manifest.preparedAt - a.manifest.preparedAt);
};

/** All guests in the cache, the newest first. */
export const listGuests = async (cacheDir: string = defaultCacheDir()): Promise<PreparedGuest[]> =>
  (await cachedManifests(cacheDir)).map(({ folder, manifest }) => toGuest(folder, manifest));

class Builder {
  readonly #cacheDir: string;
  readonly #work: string;
  readonly #options: PrepareGuestOptions;
  readonly #arch: string;

  constructor(cacheDir: string, work: string, arch: string, options: PrepareGuestOptions) {
    this.#cacheDir = cacheDir;
    this.#work = work;
    this.#arch = arch;
    this.#options = options;
  }

  #report(stage: Parameters<OnGuestProgress>[0]["stage"], done: number, total: number): void {
    if (this.#options.signal?.aborted) throw abortError(this.#options.signal);
    this.#options.onProgress?.({ stage, done, total, unit: "steps" });
  }

  /** Chooses and downloads the packages by the lists of now. */
  async fetchPackages(): Promise<readonly AptPackage[]> {
    const { signal, onProgress, suite, aptFolder } = this.#options;
    const apt = await PrivateApt.create(join(this.#work, "apt"), {
      architecture: this.#arch,
      suite,
      signal,
      onProgress,
      ...(aptFolder === undefined ? {} : { etc: aptFolder }),
    });
    await apt.update();
    this.#report("resolve", 0, 1);
    const { all } = await choosePackages(apt, this.#arch, suite);
    this.#report("resolve", 1, 1);
    const folder = packagesFolder(this.#cacheDir);
    await mkdir(folder, { recursive: true });
    await apt.download(all, folder);
    return all;
  }

  /** Makes the guest's files from downloaded packages. */
  async build(
    packages: readonly AptPackage[],
    files: ReadonlyMap<string, string>,
  ): Promise<{ folder: string; manifest: Manifest }> {
    const tree = join(this.#work, "tree");
    await mkdir(tree);
    await this.#unpack(packages, tree);
    const kernelVersion = await kernelVersionIn(tree);
    const kernel = await readFile(join(tree, "boot", `vmlinuz-${kernelVersion}`));
    this.#report("kernel", 0, 1);
    const vmlinux = await unpackIfPossible(kernel, this.#options.signal);
    this.#report("kernel", 1, 1);
    this.#report("initramfs", 0, 1);
    const initrd = await buildInitramfs({ tree, kernelVersion, files });
    this.#report("initramfs", 1, 1);
    const contents: Record<FileRole, Uint8Array> = {
      kernel,
      initrd,
      bios: await readBios(tree, FILE_NAMES.bios),
      vgaBios: await readBios(tree, FILE_NAMES.vgaBios),
    };
    const folder = join(this.#work, "guest");
    await mkdir(folder);
    return {
      folder,
      manifest: await this.#store(folder, contents, vmlinux, { packages, kernelVersion, recipe: recipeOf(files) }),
    };
  }

  async #unpack(packages: readonly AptPackage[], tree: string): Promise<void> {
    for (const [index, item] of packages.entries()) {
      this.#report("unpack", index, packages.length);
      const deb = join(packagesFolder(this.#cacheDir), debFileName(item));
      const bytes = await readFile(deb);
      if (sha256(bytes) !== item.sha256) {
        await rm(deb, { force: true });
        throw new VirtkitError(
          "ERR_VIRTKIT_BAD_PACKAGE",
          `the downloaded package ${item.name} is damaged and was removed; run the command again`,
        );
      }
      await unpackDeb(deb, tree, this.#options.signal);
    }
    this.#report("unpack", packages.length, packages.length);
  }

  async #store(
    folder: string,
    contents: Readonly<Record<FileRole, Uint8Array>>,
    vmlinux: Uint8Array | undefined,
    facts: Pick<Manifest, "packages" | "kernelVersion" | "recipe">,
  ): Promise<Manifest> {
    this.#report("store", 0, 1);
    const put = async (role: FileRole | "vmlinux", bytes: Uint8Array): Promise<StoredFile> => {
      await writeSynced(join(folder, FILE_NAMES[role]), bytes);
      return { name: FILE_NAMES[role], size: bytes.length, sha256: sha256(bytes) };
    };
    const files = {
      kernel: await put("kernel", contents.kernel),
      initrd: await put("initrd", contents.initrd),
      bios: await put("bios", contents.bios),
      vgaBios: await put("vgaBios", contents.vgaBios),
      ...(vmlinux ? { vmlinux: await put("vmlinux", vmlinux) } : {}),
    };
    const id = sha256(JSON.stringify([this.#arch, ...ROLES.map((role) => files[role].sha256)])).slice(0, 16);
    const manifest: Manifest = {
      id,
      arch: this.#arch,
      suite: this.#options.suite ?? "",
      preparedAt: Date.now(),
      files,
      ...facts,
    };
    await writeSynced(join(folder, "guest.json"), `${JSON.stringify(manifest, null, 2)}\n`);
    this.#report("store", 1, 1);
    return manifest;
  }
}

const unpackIfPossible = async (
  kernel: Uint8Array,
  signal: AbortSignal | undefined,
): Promise<Uint8Array | undefined> => {
  try {
    return await unpackKernel(kernel, signal);
  } catch (cause) {
    if (cause instanceof VirtkitError && cause.code === "ERR_VIRTKIT_TOOL_MISSING") return undefined;
    throw cause;
  }
};

const kernelVersionIn = async (tree: string): Promise<string> => {
  for (const name of await readdir(join(tree, "boot")).catch((): string[] => [])) {
    const version = /^vmlinuz-(.+)$/.exec(name)?.[1];
    if (version !== undefined) return version;
  }
  throw new VirtkitError(
    "ERR_VIRTKIT_BAD_PACKAGE",
    "the kernel's package holds no boot/vmlinuz; try: virtkit guest --refresh",
  );
};

const readBios = async (tree: string, name: string): Promise<Uint8Array> => {
  const path = join("usr/share/seabios", name);
  return readFile(join(tree, path)).catch((cause: unknown) => {
    throw new VirtkitError(
      "ERR_VIRTKIT_BAD_PACKAGE",
      `the package seabios holds no ${path}; try: virtkit guest --refresh`,
      { cause },
    );
  });
};

const allDownloaded = async (cacheDir: string, packages: readonly AptPackage[]): Promise<boolean> => {
  for (const item of packages) {
    const found = await stat(join(packagesFolder(cacheDir), debFileName(item))).catch(() => undefined);
    if (found?.size !== item.size) return false;
  }
  return true;
};

/** Removes packages that no cached guest was made from. */
const prunePackages = async (cacheDir: string): Promise<void> => {
  const used = new Set((await cachedManifests(cacheDir)).flatMap(({ manifest }) => manifest.packages.map(debFileName)));
  const folder = packagesFolder(cacheDir);
  for (const name of await readdir(folder).catch((): string[] => [])) {
    if (!used.has(name)) await rm(join(folder, name), { force: true });
  }
};

/**
 * A guest of stock Debian packages: from the cache when there, else made without root from what the machine's own
 * package sources offer. Several processes may call it at once; one does the work.
 * @throws VirtkitError with the way out: ERR_VIRTKIT_GUEST_ARCH, ERR_VIRTKIT_NOT_DEBIAN, ERR_VIRTKIT_NO_SOURCES,
 *   ERR_VIRTKIT_NO_NETWORK, ERR_VIRTKIT_NO_GUEST_KERNEL, ERR_VIRTKIT_NO_PACKAGE, ERR_VIRTKIT_BAD_PACKAGE,
 *   ERR_VIRTKIT_DISK_FULL, ERR_VIRTKIT_CACHE, ERR_VIRTKIT_ABORTED
 */
export const prepareGuest = async (options: PrepareGuestOptions = {}): Promise<PreparedGuest> => {
  const arch = options.arch ?? "i386";
  if (!GUEST_ARCHITECTURES.includes(arch)) {
    throw new VirtkitError(
      "ERR_VIRTKIT_GUEST_ARCH",
      `arch: no guest for ${arch}; known: ${GUEST_ARCHITECTURES.join(", ")}`,
    );
  }
  const cacheDir = options.cacheDir ?? defaultCacheDir();
  const files = await guestFiles();
  const recipe = recipeOf(files);
  const fits = (manifest: Manifest): boolean =>
    manifest.arch === arch && (options.suite === undefined || manifest.suite === options.suite);
  const cached = async (): Promise<PreparedGuest | undefined> => {
    const found = (await cachedManifests(cacheDir)).find(
      ({ manifest }) => fits(manifest) && manifest.recipe === recipe,
    );
    return found && toGuest(found.folder, found.manifest);
  };
  const hit = options.refresh ? undefined : await cached();
  if (hit) return hit;

  const parent = guestsFolder(cacheDir);
  try {
    await mkdir(parent, { recursive: true });
  } catch (cause) {
    throw cacheError(cause, cacheDir);
  }
  const onWait = (): void => options.onProgress?.({ stage: "wait", done: 0, total: 1, unit: "steps" });
  return withLock(cacheDir, options.signal, onWait, async () => {
    const made = options.refresh ? undefined : await cached();
    if (made) return made;
    await sweepTemporary(parent);
    const work = temporaryFolder(parent);
    try {
      const builder = new Builder(cacheDir, work.path, arch, options);
      const older = (await cachedManifests(cacheDir)).find(({ manifest }) => fits(manifest))?.manifest;
      const reusable = !options.refresh && older && (await allDownloaded(cacheDir, older.packages));
      const packages = reusable ? older.packages : await builder.fetchPackages();
      const { folder, manifest } = await builder.build(packages, files);
      const guest = await install(folder, join(parent, manifest.id), manifest);
      await prunePackages(cacheDir);
      return guest;
    } catch (cause) {
      throw cacheError(cause, cacheDir);
    } finally {
      await work.remove();
    }
  });
};

/** Puts a finished folder in place. What was there under the same id has the same contents, or was damaged. */
const install = async (from: string, to: string, manifest: Manifest): Promise<PreparedGuest> => {
  if (await readManifest(to)) {
    await writeFileAtomic(join(to, "guest.json"), await readFile(join(from, "guest.json")));
  } else {
    await rm(to, { recursive: true, force: true });
    await rename(from, to);
  }
  return toGuest(to, manifest);
};

/**
 * Removes guests and the packages that only they were made from.
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
      for (const guest of await listGuests(cacheDir)) {
        if (id !== undefined && guest.id !== id) continue;
        await rm(guest.folder, { recursive: true, force: true });
        removed.push(guest.id);
      }
      await prunePackages(cacheDir);
    },
  );
  return removed;
};
