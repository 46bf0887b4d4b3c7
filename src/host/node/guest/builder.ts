import { createHash } from "node:crypto";
import { mkdir, readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { VirtkitError } from "../../../common/error.ts";
import { type AptPackage, debFileName, PrivateApt, unpackDeb } from "./apt.ts";
import { writeSynced } from "./cache.ts";
import { unpackKernel } from "./decompress.ts";
import { FILE_NAMES, type FileRole, type Manifest, packagesFolder, ROLES, type StoredFile } from "./guest-cache.ts";
import { buildInitramfs } from "./initramfs.ts";
import { BOOT_MODULES, EXTRA_MODULES } from "./modules.ts";
import { choosePackages } from "./packages.ts";
import { abortError } from "./process.ts";
import type { OnGuestProgress } from "./progress.ts";

/** Raised when what is built from equal packages changes by code rather than by a file in guest/. */
const BUILDER_VERSION = 2;

/** Our own files in the guest: their path there, and their name in the package's folder guest/. */
const GUEST_FILES: readonly (readonly [path: string, source: string])[] = [
  ["init", "init"],
  ["etc/profile", "profile"],
  ["etc/passwd", "passwd"],
  ["etc/group", "group"],
  ["sbin/virtkit-agent", "agent"],
  ["sbin/virtkit-control", "control"],
  ["sbin/virtkit-session", "session"],
  ["sbin/virtkit-off", "off"],
];

const GUEST_FOLDER = new URL("../../../../guest/", import.meta.url);

/** The part of PrepareGuestOptions that making a guest needs. */
export interface BuilderOptions {
  readonly suite?: string;
  readonly aptFolder?: string;
  readonly onProgress?: OnGuestProgress;
  readonly signal?: AbortSignal;
}

const sha256 = (bytes: Uint8Array | string): string => createHash("sha256").update(bytes).digest("hex");

/** Our own files by their path in the guest. */
export const guestFiles = async (): Promise<Map<string, string>> => {
  const files = new Map<string, string>();
  for (const [path, source] of GUEST_FILES) files.set(path, await readFile(new URL(source, GUEST_FOLDER), "utf8"));
  return files;
};

/** Of all that decides, beside the packages, what a guest becomes. */
export const recipeOf = (files: ReadonlyMap<string, string>): string =>
  sha256(JSON.stringify([BUILDER_VERSION, BOOT_MODULES, EXTRA_MODULES, [...files]])).slice(0, 16);

/** Makes one guest in a folder for work in progress. */
export class GuestBuilder {
  readonly #cacheDir: string;
  readonly #work: string;
  readonly #options: BuilderOptions;
  readonly #arch: string;

  constructor(cacheDir: string, work: string, arch: string, options: BuilderOptions) {
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
