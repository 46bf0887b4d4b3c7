import { oneOf } from "../nearest.ts";
import { UsageError } from "../usage-error.ts";

/** A value as it arrives: text from a command line, or a JSON scalar. Text means what it would mean on the command line. */
export type PropertyInput = string | number | boolean;

/** One property of an object, as it was given. */
export interface PropertySetting {
  readonly name: string;
  readonly value: PropertyInput;
  /** The name stood alone: `packed` for packed=on, `nopacked` for packed=off. */
  readonly bare?: boolean;
}

/** What a value belongs to, for messages. */
export interface ValueOwner {
  /** The property's or parameter's name. */
  readonly name: string;
  /** The object's type, where it has one. */
  readonly type?: string;
}

const TRUE = ["on", "yes", "true", "y"];
const FALSE = ["off", "no", "false", "n"];

/** on, yes, true, y; off, no, false, n. */
export function parseBool(input: PropertyInput, owner: ValueOwner): boolean {
  if (typeof input === "boolean") return input;
  if (TRUE.includes(String(input))) return true;
  if (FALSE.includes(String(input))) return false;
  throw new UsageError(`Parameter '${owner.name}' expects 'on' or 'off', not '${input}'`);
}

/** One of a list of names. */
export function parseEnum<T extends string>(input: PropertyInput, values: readonly T[], owner: ValueOwner): T {
  const found = values.find((value) => value === input);
  if (found !== undefined) return found;
  throw new UsageError(`Parameter '${owner.name}' does not accept value '${input}'`, {
    hint: `Valid values: ${oneOf(values)}.`,
  });
}

/** Decimal, 0x hexadecimal or 0 octal, with a sign, as C's strtol reads them; undefined for anything else. */
function integer(text: string): bigint | undefined {
  const [, sign, digits] = /^([+-]?)(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)$/.exec(text) ?? [];
  if (digits === undefined) return undefined;
  const value = BigInt(/^0[0-7]/.test(digits) ? `0o${digits.slice(1)}` : digits);
  return sign === "-" ? -value : value;
}

/** An integer of min..max. */
export function parseBigInteger(input: PropertyInput, min: bigint, max: bigint, owner: ValueOwner): bigint {
  const value = typeof input === "number" && Number.isInteger(input) ? BigInt(input) : integer(String(input));
  if (value !== undefined && value >= min && value <= max) return value;
  throw new UsageError(`Parameter '${owner.name}' expects an integer from ${min} to ${max}, not '${input}'`);
}

/** An integer of min..max, both exact as a number. */
export function parseInteger(input: PropertyInput, min: number, max: number, owner: ValueOwner): number {
  return Number(parseBigInteger(input, BigInt(min), BigInt(max), owner));
}

const SUFFIXES = "BKMGTPE";

/**
 * Bytes: a whole number, or a decimal fraction with a suffix (B, K, M, G, T, P, E; powers of 1024, either case). `unit` is the
 * suffix that a bare number has.
 */
export function parseSize(input: PropertyInput, owner: ValueOwner, unit = "B"): number {
  const text = String(input).trim();
  const [, digits, suffix] = /^(0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?|\.\d+)([a-zA-Z]?)$/.exec(text) ?? [];
  const power = SUFFIXES.indexOf(suffix === undefined || suffix === "" ? unit : suffix.toUpperCase());
  const value = digits === undefined || power < 0 ? Number.NaN : Math.floor(Number(digits) * 1024 ** power);
  const isHexWithSuffix = /^0[xX]/.test(text) && suffix !== "";
  if (Number.isSafeInteger(value) && !isHexWithSuffix && (power > 0 || !text.includes("."))) return value;
  throw new UsageError(`Parameter '${owner.name}' expects a size, not '${input}'`, {
    hint: "A size is a number of bytes, with the suffix K, M, G or T for powers of 1024: 512M, 1.5G, 4096.",
  });
}

/** Ids: letters, digits, '-', '.', '_', a letter first. */
export function parseId(input: PropertyInput, name = "id"): string {
  const text = String(input);
  if (/^[A-Za-z][A-Za-z0-9\-._]*$/.test(text)) return text;
  throw new UsageError(`Parameter '${name}' expects an identifier, not '${text}'`, {
    hint: "Identifiers consist of letters, digits, '-', '.', '_', starting with a letter.",
  });
}
