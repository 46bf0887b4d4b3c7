import { readdir, readFile } from "node:fs/promises";
import { basename, join, relative } from "node:path";
import { VirtkitError } from "../../../common/error.ts";
import { decompress } from "./decompress.ts";
import { ElfFile } from "./elf.ts";

/** A kernel module that goes into the guest. */
export interface GuestModule {
  /** As modprobe and /proc/modules say it: with underscores. */
  readonly name: string;
  /** Below /lib/modules/VERSION, always ending in .ko. */
  readonly path: string;
  readonly data: Uint8Array;
  /** Names of the modules that it needs, direct ones only. */
  readonly depends: readonly string[];
  readonly aliases: readonly string[];
}

/** Loaded by /init before a state is saved; each is left out quietly when the kernel has it built in. */
export const BOOT_MODULES: readonly string[] = [
  "virtio_pci",
  "virtio_blk",
  "virtio_console",
  "virtio_rng",
  "virtio_net",
  "virtio_balloon",
  // By name only: users of a checksum ask the crypto API for it and have no dependency on who provides it.
  "crc32c_generic",
  "ext4",
];

/** There to be loaded by modprobe, or by the kernel itself when it is asked for them. */
export const EXTRA_MODULES: readonly string[] = [
  "virtio_scsi",
  "sd_mod",
  "virtio_input",
  "virtio_mmio",
  "vmw_vsock_virtio_transport",
  "9p",
  "9pnet_virtio",
  "virtiofs",
  "overlay",
  "loop",
  "vfat",
  "nls_cp437",
  "nls_ascii",
  "nls_utf8",
  "af_packet",
  // The ACPI power button, and the way to hear of it.
  "button",
  "evdev",
];

const canonical = (name: string): string => name.replaceAll("-", "_");
const SUFFIX = /\.ko(\.(gz|xz|zst))?$/;
const FORMATS = { gz: "gzip", xz: "xz", zst: "zstd" } as const;

const readModule = async (root: string, path: string): Promise<Uint8Array> => {
  const bytes = await readFile(join(root, path));
  const packed = SUFFIX.exec(path)?.[2];
  return packed === "gz" || packed === "xz" || packed === "zst" ? decompress(FORMATS[packed], bytes) : bytes;
};

/** The `key=value` strings of a module's .modinfo section. */
export const modinfo = (bytes: Uint8Array, name: string): { depends: string[]; aliases: string[] } => {
  const depends: string[] = [];
  const aliases: string[] = [];
  const section = new ElfFile(bytes, name).section(".modinfo") ?? new Uint8Array(0);
  for (const entry of Buffer.from(section).toString("latin1").split("\0")) {
    if (entry.startsWith("depends=")) {
      depends.push(...entry.slice(8).split(",").filter(Boolean).map(canonical));
    } else if (entry.startsWith("alias=")) aliases.push(entry.slice(6));
  }
  return { depends, aliases };
};

const builtinNames = async (root: string): Promise<Set<string>> => {
  const text = await readFile(join(root, "modules.builtin"), "utf8").catch(() => "");
  const names = text.split("\n").filter(Boolean);
  return new Set(names.map((path) => canonical(basename(path).replace(SUFFIX, ""))));
};

/**
 * The modules `wanted` and all they need, each after those it needs. Built-in ones and, where `wanted` asks for what
 * the kernel does not have, missing ones are left out; a missing dependency is an error.
 * @param root the kernel's /lib/modules/VERSION
 */
export const collectModules = async (root: string, wanted: readonly string[]): Promise<GuestModule[]> => {
  const builtin = await builtinNames(root);
  const paths = new Map<string, string>();
  for (const entry of await readdir(root, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile() || !SUFFIX.test(entry.name)) continue;
    paths.set(canonical(entry.name.replace(SUFFIX, "")), relative(root, join(entry.parentPath, entry.name)));
  }
  const done = new Map<string, GuestModule>();
  const visit = async (name: string, neededBy: string | undefined): Promise<void> => {
    if (done.has(name) || builtin.has(name)) return;
    const path = paths.get(name);
    if (path === undefined) {
      if (neededBy === undefined) return;
      throw new VirtkitError(
        "ERR_VIRTKIT_GUEST_MODULE",
        `the kernel's module ${neededBy} needs ${name}, which its package lacks; try: virtkit guest --refresh`,
      );
    }
    const data = await readModule(root, path);
    const { depends, aliases } = modinfo(data, path);
    for (const needed of depends) await visit(needed, name);
    done.set(name, { name, path: path.replace(SUFFIX, ".ko"), data, depends, aliases });
  };
  for (const name of wanted) await visit(canonical(name), undefined);
  return [...done.values()];
};

/** `modules.dep` for modprobe: each module's path, then those it needs, the nearest first. */
export const modulesDep = (modules: readonly GuestModule[]): string => {
  const byName = new Map(modules.map((module) => [module.name, module]));
  const order = new Map(modules.map((module, index) => [module.name, index]));
  const closure = (module: GuestModule, into: Set<string>): Set<string> => {
    for (const name of module.depends) {
      const needed = byName.get(name);
      if (needed && !into.has(name)) {
        into.add(name);
        closure(needed, into);
      }
    }
    return into;
  };
  const rank = (name: string): number => order.get(name) ?? 0;
  return modules
    .map((module) => {
      const needed = [...closure(module, new Set())].sort((a, b) => rank(b) - rank(a));
      return `${module.path}:${needed.map((name) => ` ${byName.get(name)?.path ?? ""}`).join("")}\n`;
    })
    .join("");
};

/** `modules.alias`, by which the kernel's own requests (`fs-ext4`, `pci:v00001AF4...`) find their module. */
export const modulesAlias = (modules: readonly GuestModule[]): string =>
  modules.flatMap((module) => module.aliases.map((alias) => `alias ${alias} ${module.name}\n`)).join("");
