import { DISK_TIMEOUT } from "../../backend/block/open-disk.ts";
import {
  AIO_MODES,
  CACHE_MODES,
  cacheOf,
  type DriveCache,
  type DriveOptions,
  type ModuleDrive,
} from "../../machine/description.ts";
import { nearest, oneOf } from "../../machine/nearest.ts";
import { Keyval } from "./keyval.ts";

const INTERFACES = ["none", "virtio"] as const;
/** Formats of QEMU's that may be asked for, and cannot be read. */
const OTHER_FORMATS = [
  "qcow2",
  "qcow",
  "qed",
  "vdi",
  "vhdx",
  "vmdk",
  "vpc",
  "cloop",
  "dmg",
  "parallels",
  "bochs",
  "luks",
];
const OTHER_INTERFACES = ["ide", "scsi", "floppy", "pflash", "mtd", "sd", "xen"];
const THROTTLE = /^(throttling\.|iops|bps)/;
/** Where a file name would lead outside the file system. */
const PROTOCOL = /^(nbd|nbd\+unix|https?|ftps?|ssh|rbd|iscsi|gluster|nfs|json|fat|null-co|blkdebug|vxhs):/;

/** Keys of a module's drive that may have been meant by a word that is like them. */
const MODULE_KEYS = [
  "file",
  "timeout",
  "index",
  "format",
  "driver",
  "media",
  "cache",
  "readonly",
  "snapshot",
  "discard",
];

const UNSUPPORTED = {
  serial: "it is a property of the device: -device virtio-blk-pci,serial=...",
  addr: "it is a property of the device: -device virtio-blk-pci,addr=...",
  bus: "-device virtio-blk-pci,bus=pci.0 places a disk",
  unit: "use index=",
  cyls: "geometry belongs to the device: -device virtio-blk-pci,cyls=...,heads=...,secs=...",
  heads: "geometry belongs to the device: -device virtio-blk-pci,cyls=...,heads=...,secs=...",
  secs: "geometry belongs to the device: -device virtio-blk-pci,cyls=...,heads=...,secs=...",
};

/** Also a drive's place among those of its interface, which is only known when all of them are read. */
export interface ParsedDrive extends Omit<DriveOptions, "id"> {
  readonly id: string | undefined;
  readonly index: number | undefined;
  /** As it was said, if it was. */
  readonly ownSnapshot: boolean | undefined;
}

/** -drive. @throws UsageError */
export function parseDrive(text: string): ParsedDrive {
  const keys = new Keyval("-drive", text);
  const id = keys.id();
  const file = fileName(keys);
  const source = isModule(keys) ? parseModule(keys, file) : { file };
  const format = "module" in source ? "raw" : parseFormat(keys, file);
  const parsed = {
    option: keys.option,
    id,
    source,
    format,
    interface: parseInterface(keys),
    index: keys.integer("index", 0, 31),
    readOnly: parseReadOnly(keys),
    cache: parseCache(keys),
    aio: keys.word("aio", AIO_MODES) ?? "threads",
    locking: (keys.word("file.locking", ["auto", "on", "off"]) ?? "auto") !== "off",
    discard: parseDiscard(keys),
    ownSnapshot: keys.flag("snapshot"),
  };
  parseErrorPolicies(keys);
  parseHarmless(keys);
  keys.refuse(UNSUPPORTED);
  for (const key of keys.keys.filter((one) => THROTTLE.test(one)))
    keys.fail(`'${key}' is not supported: drives are not throttled`);
  refuseOwnKeys(keys, "module" in source);
  keys.finish();
  return parsed;
}

const isModule = (keys: Keyval): boolean => [keys.text("driver"), keys.text("format")].includes("module");

/** Keys that are a module's own, or are meant to be. */
function refuseOwnKeys(keys: Keyval, forModule: boolean): void {
  for (const { name, value } of keys.rest()) {
    if (!forModule && name.startsWith("opt."))
      keys.fail(
        `'${name}' has a meaning only with driver=module`,
        "An image has no settings of its own; leave it out.",
      );
    if (!forModule) continue;
    if (name === "opt" || name === "opt.")
      keys.fail(`Invalid parameter '${name}'`, "Write opt.NAME=VALUE, with a NAME that the module knows.");
    const close = nearest(name, MODULE_KEYS);
    if (close?.likely !== true && name !== "" && value !== true)
      keys.fail(`Invalid parameter '${name}'`, `A setting of the module's own is written opt.${name}=${value}`);
  }
}

/** A module of the user's own in place of an image. */
function parseModule(keys: Keyval, module: string): ModuleDrive {
  for (const key of ["format", "driver"]) {
    const other = keys.text(key);
    if (other !== undefined && other !== "module" && !(key === "format" && other === "raw"))
      keys.fail(`${key}=${other} is not for a module`, `It gives the disk's bytes as they are; leave out ${key}=.`);
  }
  const seconds = keys.text("timeout");
  const timeout = seconds === undefined ? DISK_TIMEOUT : Math.round(Number(seconds) * 1000);
  if (seconds?.trim() === "" || !(timeout >= 0 && timeout < 2 ** 31))
    keys.fail(`timeout='${seconds}' is no number of seconds`, "Give seconds, such as 30 or 0.5; 0 waits for ever.");
  const names = keys.keys.filter((key) => key.startsWith("opt.") && key.length > "opt.".length);
  const options = names.map((key) => [key.slice("opt.".length), keys.text(key) ?? ""] as const);
  return { module, options: Object.fromEntries(options), timeout };
}

function fileName(keys: Keyval): string {
  const file = keys.textOf("file", "file.filename");
  if ((file === undefined || file === "") && isModule(keys))
    keys.fail("a module must be specified", "Add its file: -drive driver=module,file=./MINE.mjs");
  if (file === undefined || file === "")
    keys.fail("an image must be specified", "Add file=IMAGE: -drive file=disk.img,format=raw,if=virtio");
  const [, protocol] = PROTOCOL.exec(file) ?? [];
  if (protocol !== undefined)
    keys.fail(`Protocol '${protocol}' is not supported`, "Only files can be drives; a raw image, for instance.");
  return file.startsWith("file:") ? file.slice("file:".length) : file;
}

function parseFormat(keys: Keyval, file: string): "raw" | undefined {
  const format = keys.textOf("format", "driver");
  if (format === undefined || format === "raw") return format;
  if (OTHER_FORMATS.includes(format))
    keys.fail(
      `format '${format}' is not supported, only raw is`,
      `Convert the image first: qemu-img convert -O raw ${file} ${rawName(file)}`,
    );
  return keys.fail(
    `Unknown driver '${format}'`,
    suggestLikely(format, ["raw", "module"], "Valid: format=raw for an image, driver=module for a JavaScript module."),
  );
}

function suggestLikely(name: string, candidates: readonly string[], more: string): string {
  const close = nearest(name, candidates);
  return close?.likely === true ? `Did you mean '${close.name}'? ${more}` : more;
}

export const rawName = (file: string): string => `${file.replace(/\.[^./\\]*$/, "")}.raw`;

function parseInterface(keys: Keyval): (typeof INTERFACES)[number] {
  const name = keys.text("if");
  const found = INTERFACES.find((one) => one === (name ?? "virtio"));
  if (found !== undefined) return found;
  const reason = OTHER_INTERFACES.includes(name ?? "")
    ? `if=${name} is not supported`
    : `unsupported bus type '${name}'`;
  return keys.fail(
    reason,
    `Valid values: ${oneOf(INTERFACES)}. if=virtio also makes the device, if=none leaves that to -device.`,
  );
}

function parseReadOnly(keys: Keyval): boolean {
  const media = keys.text("media");
  if (media === "cdrom")
    keys.fail(
      "media=cdrom is not supported",
      "virtio has no CD-ROM; media=disk,readonly=on gives the guest a disk that it can mount.",
    );
  if (media !== undefined && media !== "disk")
    keys.fail(`'${media}' invalid media`, "The only valid value is disk: media=disk.");
  return keys.flag("read-only", "readonly") ?? false;
}

function parseCache(keys: Keyval): DriveCache {
  const text = keys.text("cache");
  const mode = CACHE_MODES.find((one) => one === (text === "off" ? "none" : (text ?? "writeback")));
  if (mode === undefined) keys.fail(`invalid cache option '${text}'`, `Valid values: ${oneOf(CACHE_MODES)}.`);
  const cache = cacheOf(mode);
  return {
    writeback: keys.flag("cache.writeback") ?? cache.writeback,
    direct: keys.flag("cache.direct") ?? cache.direct,
    noFlush: keys.flag("cache.no-flush") ?? cache.noFlush,
  };
}

function parseDiscard(keys: Keyval): "ignore" | "unmap" {
  const words = { ignore: "ignore", off: "ignore", unmap: "unmap", on: "unmap" } as const;
  const word = keys.word("discard", ["ignore", "unmap", "off", "on"]);
  return word === undefined ? "ignore" : words[word];
}

function parseErrorPolicies(keys: Keyval): void {
  for (const key of ["werror", "rerror"]) {
    const policy = keys.word(key, ["report", "ignore", "enospc", "stop"]);
    if (policy !== undefined && policy !== "report")
      keys.fail(
        `${key}=${policy} is not supported`,
        `Errors are always reported to the guest, which goes on: ${key}=report.`,
      );
  }
}

/** Settings whose only effect would be on things that are not there. */
function parseHarmless(keys: Keyval): void {
  keys.flag("auto-read-only");
  if (keys.word("detect-zeroes", ["off", "on", "unmap"]) !== undefined && keys.text("detect-zeroes") !== "off")
    keys.fail("detect-zeroes is not supported", "Zeros are written like other data: detect-zeroes=off.");
  if (keys.flag("copy-on-read") === true) keys.fail("copy-on-read is not supported: an image has no backing file");
}
