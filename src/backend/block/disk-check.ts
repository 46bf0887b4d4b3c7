import { VirtkitError } from "../../common/error.ts";
import type { Disk } from "./disk.ts";
import type { BlockBackend } from "./types.ts";

const MIN_BLOCK = 512;
const MAX_BLOCK = 2 ** 21;
const OPTIONAL_METHODS = ["write", "flush", "discard", "writeZeroes", "resize", "close"] as const;

/** A disk that was looked at: what it said of itself at that moment. */
export interface CheckedDisk {
  /** As a {@link BlockBackend}, which does its own book-keeping, or by a call for each request. */
  readonly form: { readonly raw: BlockBackend } | { readonly simple: Disk };
  readonly capacity: number;
  readonly blockSize: number;
  readonly physicalBlockSize: number;
  readonly readOnly: boolean;
}

/** An object's properties, read once each. */
type Fields = Readonly<Record<string, unknown>>;

/** Looks at what a program or a module gave as a disk. @throws ERR_VIRTKIT_MODULE with all that is wrong with it */
export function checkDisk(value: unknown, name: string): CheckedDisk {
  const wrong = (why: string, cause?: unknown): VirtkitError =>
    new VirtkitError("ERR_VIRTKIT_MODULE", `${name} is no disk: ${why}`, cause === undefined ? {} : { cause });
  if (typeof value !== "object" || value === null)
    throw wrong(`it is ${kindOf(value)}; give an object with capacity and read(), or a function that returns one`);
  let fields: Fields;
  try {
    fields = fieldsOf(value);
  } catch (error) {
    throw wrong(`looking at it failed: ${String(error)}`, error);
  }
  const raw = fields["attach"] !== undefined || fields["submit"] !== undefined;
  const problems = raw ? rawProblems(fields) : simpleProblems(fields);
  if (problems.length > 0) throw wrong(`${problems.join("; ")}${whatItHas(value, fields)}`);
  const blockSize = Number(fields["blockSize"] ?? MIN_BLOCK);
  return {
    form: raw ? { raw: value as BlockBackend } : { simple: value as Disk },
    capacity: Number(fields["capacity"]),
    blockSize,
    physicalBlockSize: Number(fields["physicalBlockSize"] ?? blockSize),
    readOnly: Boolean(fields["readOnly"] ?? (!raw && fields["write"] === undefined)),
  };
}

/** Why `capacity` bytes in blocks of `blockSize` are no size of a disk, or undefined. */
export function capacityProblem(capacity: unknown, blockSize: number): string | undefined {
  if (capacity === undefined) return "capacity is missing: give its size in bytes";
  if (typeof capacity !== "number") return `capacity is ${kindOf(capacity)}; give a number of bytes`;
  if (!Number.isSafeInteger(capacity) || capacity <= 0)
    return `capacity is ${capacity}; give a whole number of bytes above 0`;
  const below = capacity - (capacity % blockSize);
  if (below !== capacity)
    return `capacity is ${capacity}, which is no multiple of the block size ${blockSize}; the nearest ones are ${below} and ${below + blockSize}`;
  return undefined;
}

/** "a string", "an array", "NaN": what a message calls a value that is not what it should be. */
export function kindOf(value: unknown): string {
  if (value === undefined || value === null || Number.isNaN(value)) return String(value);
  if (Array.isArray(value)) return "an array";
  const type = typeof value;
  return type === "object" ? "an object" : `a ${type}`;
}

function fieldsOf(value: object): Fields {
  const names = ["capacity", "blockSize", "physicalBlockSize", "readOnly", "read", "attach", "submit"];
  const all = [...names, ...OPTIONAL_METHODS];
  return Object.fromEntries(all.map((name) => [name, (value as Fields)[name]]));
}

function simpleProblems(fields: Fields): string[] {
  const problems = sizeProblems(fields);
  if (fields["read"] === undefined) problems.push("read is missing: give a function read(offset, buffer)");
  else if (typeof fields["read"] !== "function")
    problems.push(`read is ${kindOf(fields["read"])}; give a function read(offset, buffer)`);
  for (const name of OPTIONAL_METHODS) {
    const method = fields[name];
    if (method !== undefined && typeof method !== "function")
      problems.push(`${name} is ${kindOf(method)}; give a function, or leave it out`);
  }
  if (fields["readOnly"] === false && fields["write"] === undefined)
    problems.push("it says readOnly: false, but write is missing: give a function write(offset, data)");
  return problems;
}

function rawProblems(fields: Fields): string[] {
  const problems = sizeProblems(fields);
  for (const name of ["attach", "submit"])
    if (typeof fields[name] !== "function")
      problems.push(`${name} is ${kindOf(fields[name])}; a BlockBackend has both attach() and submit()`);
  if (fields["close"] !== undefined && typeof fields["close"] !== "function")
    problems.push(`close is ${kindOf(fields["close"])}; give a function`);
  return problems;
}

function sizeProblems({ capacity, blockSize, physicalBlockSize, readOnly }: Fields): string[] {
  const problems: (string | undefined)[] = [];
  const unit = blockSize ?? MIN_BLOCK;
  if (!isBlockSize(unit)) problems.push(`blockSize is ${shown(unit)}; give a power of two from 512 to 2097152`);
  problems.push(capacityProblem(capacity, isBlockSize(unit) ? unit : MIN_BLOCK));
  if (physicalBlockSize !== undefined && !(isBlockSize(physicalBlockSize) && physicalBlockSize >= Number(unit)))
    problems.push(
      `physicalBlockSize is ${shown(physicalBlockSize)}; give a power of two from the block size to 2097152`,
    );
  if (readOnly !== undefined && typeof readOnly !== "boolean")
    problems.push(`readOnly is ${kindOf(readOnly)}; give true or false`);
  return problems.filter((problem) => problem !== undefined);
}

function isBlockSize(value: unknown): value is number {
  return typeof value === "number" && value >= MIN_BLOCK && value <= MAX_BLOCK && Number.isInteger(Math.log2(value));
}

const shown = (value: unknown): string => (typeof value === "number" ? String(value) : kindOf(value));

/** Names are often only misspelt: `size` for `capacity`. */
function whatItHas(value: object, fields: Fields): string {
  const unknown = Object.keys(value).filter((name) => !(name in fields));
  return unknown.length === 0 ? "" : ` (it has ${unknown.slice(0, 8).join(", ")}, which means nothing here)`;
}
