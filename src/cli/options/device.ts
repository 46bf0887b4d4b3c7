import type { DeviceOptions, ObjectOptions } from "../../machine/description.ts";
import { CUSTOM_TYPE } from "../../machine/devices/custom-device.ts";
import { type PropertySetting, parseId } from "../../machine/object-model/values.ts";
import { blame, UsageError } from "../../machine/usage-error.ts";
import { isHelp, Keyval } from "./keyval.ts";

/** A question in place of a device or an object: what there is, or what properties one has. */
export interface HelpTopic {
  readonly of: "device" | "object" | "chardev" | "machine" | "accel" | "cpu";
  /** Undefined for the list. */
  readonly name: string | undefined;
}

export type Parsed<T> = { readonly value: T } | { readonly help: HelpTopic };

/** -device, as `NAME,key=value,...` or as a JSON object. @throws UsageError */
export function parseDevice(text: string): Parsed<DeviceOptions> {
  if (text.startsWith("{")) return { value: parseJsonDevice(text) };
  const keys = new Keyval("-device", text, "driver");
  const named = keys.text("driver");
  const module = named === undefined ? keys.text("module") : undefined;
  const driver = module === undefined ? named : CUSTOM_TYPE + module;
  const help = helpTopic("device", keys, driver);
  if (help !== undefined) return { help };
  if (module === "") return keys.fail("the module's file is missing", "Write -device module=./MINE.mjs");
  if (driver === undefined || driver === "")
    return keys.fail("Parameter 'driver' is missing", "`-device help` lists what there is.");
  const id = keys.id();
  const bus = keys.text("bus");
  return { value: deviceOptions(keys.option, driver, id, bus, keys.rest()) };
}

/** -object, as `TYPE,id=ID,key=value,...`. @throws UsageError */
export function parseObject(text: string): Parsed<ObjectOptions> {
  const keys = new Keyval("-object", text, "qom-type");
  const type = keys.text("qom-type");
  const help = helpTopic("object", keys, type);
  if (help !== undefined) return { help };
  if (type === undefined || type === "")
    return keys.fail("Parameter 'qom-type' is missing", "`-object help` lists what there is.");
  const id = keys.id() ?? keys.fail("Parameter 'id' is missing", `Add id=NAME: -object ${type},id=NAME`);
  return { value: { option: keys.option, type, id, properties: keys.rest() } };
}

function helpTopic(of: HelpTopic["of"], keys: Keyval, name: string | undefined): HelpTopic | undefined {
  if (name !== undefined && isHelp(name)) return { of, name: undefined };
  if (name === undefined || !keys.rest().some((entry) => entry.bare === true && isHelp(entry.name))) return undefined;
  return { of, name };
}

function parseJsonDevice(text: string): DeviceOptions {
  const option = `-device ${text}`;
  const { driver: named, module, id, bus, ...properties } = blame(option, () => jsonObject(text));
  return blame(option, () => {
    const own = named === undefined && typeof module === "string" ? module : undefined;
    const driver = own === undefined ? named : CUSTOM_TYPE + own;
    if (module !== undefined && own === undefined)
      throw new UsageError("Parameter 'module' expects a file, and no driver");
    if (typeof driver !== "string") throw new UsageError("Parameter 'driver' is missing");
    const settings = Object.entries(properties).map(([name, value]) => jsonSetting(name, value));
    const name = id === undefined ? undefined : parseId(String(id));
    return deviceOptions(option, driver, name, bus === undefined ? undefined : String(bus), settings);
  });
}

function jsonObject(text: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return { ...value };
  } catch (error) {
    throw new UsageError(`JSON parse error: ${error instanceof Error ? error.message : String(error)}`);
  }
  throw new UsageError("a JSON object is expected");
}

function jsonSetting(name: string, value: unknown): PropertySetting {
  if (typeof value === "string" || typeof value === "number" || typeof value === "boolean") return { name, value };
  throw new UsageError(`Invalid parameter type for '${name}', expected: a string, a number, true or false`);
}

function deviceOptions(
  option: string,
  driver: string,
  id: string | undefined,
  bus: string | undefined,
  properties: readonly PropertySetting[],
): DeviceOptions {
  return { option, driver, ...(id === undefined ? {} : { id }), ...(bus === undefined ? {} : { bus }), properties };
}
