import { UsageError } from "../usage-error.ts";
import {
  type PropertyInput,
  parseBigInteger,
  parseBool,
  parseEnum,
  parseInteger,
  parseSize,
  type ValueOwner,
} from "./values.ts";

/** A kind of property: how its values are read and shown. */
export interface PropertyType<T> {
  /** As `-device NAME,help` shows it. */
  readonly name: string;
  /** Description of properties that have none of their own. */
  readonly description?: string;
  /** @throws UsageError when the input is no such value */
  parse(input: PropertyInput, owner: ValueOwner): T;
  /** The default in the help's notation; undefined when there is nothing to show. */
  show(value: T): string | undefined;
}

/** A property of a class. Also the key that reads its value from an object. */
export interface Property<T = unknown> {
  readonly name: string;
  readonly type: PropertyType<T>;
  readonly defaultValue: T;
  readonly description?: string;
  /** Why this value cannot be had here, though it is of the right type. */
  refuse?(value: T): string | undefined;
}

export interface PropertyExtras<T> {
  readonly description?: string;
  refuse?(value: T): string | undefined;
}

export function property<T>(
  name: string,
  type: PropertyType<T>,
  defaultValue: NoInfer<T>,
  extras: PropertyExtras<NoInfer<T>> = {},
): Property<T> {
  return { name, type, defaultValue, ...extras };
}

/** A property of QEMU's that only works with its default value here; any other is refused with `reason`. */
export function fixedProperty<T>(
  name: string,
  type: PropertyType<T>,
  defaultValue: NoInfer<T>,
  reason: string,
): Property<T> {
  return property(name, type, defaultValue, {
    description: `Only the default works: ${reason}`,
    refuse: (value) => (value === defaultValue ? undefined : reason),
  });
}

/** Reads a value of this property. @throws UsageError */
export function readProperty<T>(key: Property<T>, input: PropertyInput, typeName: string): T {
  const value = key.type.parse(input, { name: key.name, type: typeName });
  const reason = key.refuse?.(value);
  if (reason === undefined) return value;
  throw new UsageError(`Property '${typeName}.${key.name}' can't be '${input}': ${reason}`);
}

/** The line of a property in `-device NAME,help`. */
export function propertyHelp(key: Property): string {
  const head = `  ${key.name}=<${key.type.name}>`;
  const description = key.description ?? key.type.description;
  const shown = key.type.show(key.defaultValue);
  if (description === undefined && shown === undefined) return head;
  const byDefault = shown === undefined ? "" : ` (default: ${shown})`;
  return `${head.padEnd(24)} - ${description ?? ""}${byDefault}`;
}

const json = (value: unknown): string => JSON.stringify(value);

export const BOOL: PropertyType<boolean> = { name: "bool", description: "on/off", parse: parseBool, show: String };

function integerType(name: string, min: number, max: number): PropertyType<number> {
  return { name, parse: (input, owner) => parseInteger(input, min, max, owner), show: String };
}

export const UINT16 = integerType("uint16", 0, 0xffff);
export const UINT32 = integerType("uint32", 0, 0xffffffff);
export const INT32 = integerType("int32", -0x80000000, 0x7fffffff);

/** An int32 that may be left open: no default is shown. */
export const OPTIONAL_INT32: PropertyType<number | undefined> = {
  name: "int32",
  parse: (input, owner) => INT32.parse(input, owner),
  show: () => undefined,
};

export const UINT64: PropertyType<bigint> = {
  name: "uint64",
  parse: (input, owner) => parseBigInteger(input, 0n, 2n ** 64n - 1n, owner),
  show: String,
};

export const SIZE: PropertyType<number> = {
  name: "size",
  parse: (input, owner) => parseSize(input, owner),
  show: String,
};

export const STR: PropertyType<string | undefined> = {
  name: "str",
  parse: (input) => String(input),
  show: (value) => (value === undefined ? undefined : json(value)),
};

export function enumType<T extends string>(name: string, values: readonly T[], description: string): PropertyType<T> {
  return { name, description, parse: (input, owner) => parseEnum(input, values, owner), show: json };
}

export type OnOffAuto = "on" | "off" | "auto";

/** Takes the other words for on and off as well. */
export const ON_OFF_AUTO: PropertyType<OnOffAuto> = {
  name: "OnOffAuto",
  description: "on/off/auto",
  parse: (input, owner) => {
    if (typeof input === "boolean") return input ? "on" : "off";
    return parseEnum(input, ["on", "off", "auto"], owner);
  },
  show: json,
};

/** The address that is not one: any free slot will do. */
export const DEVFN_AUTO = -1;

/** A place on a PCI bus, SLOT or SLOT.FUNCTION in hexadecimal: slot * 8 + function. A JSON number is that sum itself. */
export const PCI_DEVFN: PropertyType<number> = {
  name: "int32",
  description: "Slot and optional function number, example: 06.0 or 06",
  parse: (input, owner) => {
    if (typeof input === "number" && Number.isInteger(input) && input >= DEVFN_AUTO && input <= 255) return input;
    const [, slot = "", fn = "0"] = /^(?:0[xX])?([0-9a-fA-F]{1,8})(?:\.([0-7]))?$/.exec(String(input)) ?? [];
    const number = Number.parseInt(slot, 16);
    if (number <= 31) return number * 8 + Number(fn);
    throw new UsageError(`Property '${owner.type}.${owner.name}' doesn't take value '${input}'`, {
      hint: "A PCI address is SLOT or SLOT.FUNCTION, the slot from 0 to 1f (hexadecimal), the function from 0 to 7: 0x4, 04.0, 1f.",
    });
  },
  show: String,
};

const LARGEST_BLOCK = 2 << 20;

/** A unit of a disk in bytes; 0 leaves it to the image. */
export const BLOCK_SIZE: PropertyType<number> = {
  name: "size",
  description: "A power of two between 512 B and 2 MiB",
  parse: (input, owner) => {
    const value = parseSize(input, owner);
    const wrong = (why: string) =>
      new UsageError(`Property '${owner.type}.${owner.name}' doesn't take value '${input}', ${why}`);
    if (value === 0) return 0;
    if (value < 512 || value > LARGEST_BLOCK) throw wrong(`minimum: 512, maximum: ${LARGEST_BLOCK}`);
    if (!Number.isInteger(Math.log2(value))) throw wrong("it's not a power of 2");
    return value;
  },
  show: String,
};

/** The id of something else; `name` is the type as the help shows it. */
export function reference(name: string, description?: string): PropertyType<string | undefined> {
  return { ...STR, name, ...(description === undefined ? {} : { description }) };
}

export const DRIVE = reference("str", "Node name or ID of a block device to use as a backend");
export const CHARDEV = reference("str", "ID of a chardev to use as a backend");
