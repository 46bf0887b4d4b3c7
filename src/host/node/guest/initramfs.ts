import { readdir, readFile, readlink } from "node:fs/promises";
import { basename, dirname, join, posix } from "node:path";
import { VirtkitError } from "../../../common/error.ts";
import { type CpioEntry, writeCpio } from "./cpio.ts";
import { ElfFile } from "./elf.ts";
import { BOOT_MODULES, collectModules, EXTRA_MODULES, type GuestModule, modulesAlias, modulesDep } from "./modules.ts";

/** Programs of e2fsprogs that the guest gets, and the names they also go by. */
const PROGRAMS: readonly (readonly [path: string, ...links: string[]])[] = [
  ["sbin/mke2fs", "mkfs.ext2", "mkfs.ext3", "mkfs.ext4"],
  ["sbin/e2fsck", "fsck.ext2", "fsck.ext3", "fsck.ext4"],
  ["sbin/resize2fs"],
];

const FOLDERS = [
  "bin",
  "dev",
  "etc",
  "lib",
  "mnt",
  "proc",
  "root",
  "run",
  "sbin",
  "sys",
  "tmp",
  "usr",
  "usr/bin",
  "usr/sbin",
  "var",
];

/** Applets of busybox that stand in for these programs with fewer options. */
const REPLACED_APPLETS: readonly string[] = ["mke2fs", "mkfs.ext2"];

/**
 * Busybox without some applets. Its shell takes an applet before it looks for a program, so `mke2fs -t ext4` would never
 * reach the real one. The applet's name is changed in the last character, which keeps the table of names sorted; what
 * is not found exactly once is left as it is.
 */
export const hideApplets = (busybox: Uint8Array, names: readonly string[]): Uint8Array => {
  const out = Buffer.from(busybox);
  for (const name of names) {
    const entry = Buffer.from(`\0${name}\0`);
    const at = out.indexOf(entry);
    if (at >= 0 && out.indexOf(entry, at + 1) < 0) out.write("_", at + name.length, "latin1");
  }
  return out;
};

/** A file of a package tree, whether the distribution keeps it below / or below /usr, or nothing. */
const findFile = async (tree: string, path: string): Promise<Uint8Array | undefined> => {
  for (const candidate of [path, join("usr", path)]) {
    const found = await readFile(join(tree, candidate)).catch(() => undefined);
    if (found) return found;
  }
  return undefined;
};

/** Where the shared libraries of an unpacked tree lie, by soname. */
const libraryIndex = async (tree: string): Promise<Map<string, string>> => {
  const index = new Map<string, string>();
  for (const folder of ["lib", "usr/lib"]) {
    const root = join(tree, folder);
    for (const entry of await readdir(root, { recursive: true, withFileTypes: true }).catch(() => [])) {
      if (/\.so(\.[0-9]+)*$/.test(entry.name)) index.set(entry.name, join(entry.parentPath, entry.name));
    }
  }
  return index;
};

const readLibrary = async (path: string): Promise<Uint8Array> => {
  const target = await readlink(path).catch(() => undefined);
  return readFile(target === undefined ? path : join(dirname(path), basename(target)));
};

/** Programs with the libraries that they, and those in turn, are linked with. Nothing when a part is missing. */
const programEntries = async (tree: string): Promise<CpioEntry[]> => {
  const libraries = await libraryIndex(tree);
  const entries: CpioEntry[] = [];
  const seen = new Set<string>();
  const addLibraries = async (elf: ElfFile): Promise<boolean> => {
    const loader = elf.interpreter();
    for (const soname of loader === undefined ? elf.needed() : [...elf.needed(), basename(loader)]) {
      if (seen.has(soname)) continue;
      const path = libraries.get(soname);
      if (path === undefined) return false;
      seen.add(soname);
      const data = await readLibrary(path);
      entries.push({ type: "file", path: `lib/${soname}`, data, mode: 0o755 });
      if (!(await addLibraries(new ElfFile(data, soname)))) return false;
    }
    return true;
  };
  for (const [path, ...links] of PROGRAMS) {
    const data = await findFile(tree, path);
    if (!data || !(await addLibraries(new ElfFile(data, path)))) return [];
    entries.push({ type: "file", path, data, mode: 0o755 });
    for (const link of links) entries.push({ type: "symlink", path: `sbin/${link}`, target: basename(path) });
  }
  return entries;
};

const moduleEntries = (version: string, modules: readonly GuestModule[]): CpioEntry[] => {
  const root = `lib/modules/${version}`;
  const folders = new Set<string>();
  const add = (folder: string): void => {
    if (folder === "lib" || folders.has(folder)) return;
    add(posix.dirname(folder));
    folders.add(folder);
  };
  for (const module of modules) add(posix.dirname(`${root}/${module.path}`));
  return [
    ...[...folders].map((path): CpioEntry => ({ type: "directory", path })),
    ...modules.map((module): CpioEntry => ({ type: "file", path: `${root}/${module.path}`, data: module.data })),
  ];
};

const text = (path: string, content: string, mode = 0o644): CpioEntry => ({
  type: "file",
  path,
  data: new TextEncoder().encode(content),
  mode,
});

export interface InitramfsOptions {
  /** Packages unpacked over each other. */
  readonly tree: string;
  /** As the kernel says it: `6.1.0-50-686`. */
  readonly kernelVersion: string;
  /** Files of our own by their path in the guest, such as `init`; all are executable. */
  readonly files: ReadonlyMap<string, string>;
}

/**
 * The guest's first and only root file system as an uncompressed cpio archive: busybox, virtio and file system
 * modules, e2fsprogs with its libraries when the tree has them, and our own /init and agent. Equal input gives
 * equal bytes.
 * @throws VirtkitError ERR_VIRTKIT_BAD_PACKAGE when the tree lacks busybox
 */
export const buildInitramfs = async (options: InitramfsOptions): Promise<Uint8Array> => {
  const { tree, kernelVersion } = options;
  const busybox = await findFile(tree, "bin/busybox");
  if (!busybox) {
    throw new VirtkitError(
      "ERR_VIRTKIT_BAD_PACKAGE",
      "the package busybox-static holds no bin/busybox; try: virtkit guest --refresh",
    );
  }
  const root = await modulesRoot(tree, kernelVersion);
  const boot = await collectModules(root, BOOT_MODULES);
  const modules = await collectModules(root, [...BOOT_MODULES, ...EXTRA_MODULES]);
  const programs = await programEntries(tree);
  const folder = `lib/modules/${kernelVersion}`;
  return writeCpio([
    ...FOLDERS.map((path): CpioEntry => ({ type: "directory", path, mode: path === "tmp" ? 0o1777 : 0o755 })),
    { type: "device", path: "dev/console", major: 5, minor: 1 },
    { type: "device", path: "dev/null", major: 1, minor: 3, mode: 0o666 },
    { type: "device", path: "dev/ttyS0", major: 4, minor: 64 },
    {
      type: "file",
      path: "bin/busybox",
      data: programs.length > 0 ? hideApplets(busybox, REPLACED_APPLETS) : busybox,
      mode: 0o755,
    },
    { type: "symlink", path: "bin/sh", target: "busybox" },
    ...programs,
    ...moduleEntries(kernelVersion, modules),
    text(`${folder}/modules.dep`, modulesDep(modules)),
    text(`${folder}/modules.alias`, modulesAlias(modules)),
    text("etc/virtkit-modules", boot.map((module) => `/${folder}/${module.path}\n`).join("")),
    ...[...options.files].map(([path, content]) => text(path, content, 0o755)),
  ]);
};

const modulesRoot = async (tree: string, version: string): Promise<string> => {
  for (const folder of ["lib/modules", "usr/lib/modules"]) {
    const root = join(tree, folder, version);
    if ((await readdir(root).catch((): string[] => [])).length > 0) return root;
  }
  throw new VirtkitError(
    "ERR_VIRTKIT_BAD_PACKAGE",
    `the kernel's package holds no modules for ${version}; try: virtkit guest --refresh`,
  );
};
