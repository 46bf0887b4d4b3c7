import { VirtkitError } from "../../common/error.ts";
import type { DeviceDefinition } from "./define.ts";

const MAX_DEVICE_ID = 63;
const MAX_QUEUES = 1024;
const MAX_CONFIG = 4096;
export const DEFAULT_REQUEST = 2 ** 20;
export const MAX_REQUEST = 64 * 2 ** 20;
const TYPES: Readonly<Record<string, string>> = {
  string: "string",
  number: "number",
  size: "number",
  boolean: "boolean",
};

type Fields = Readonly<Record<string, unknown>>;

/** Looks at what a program or a module gave as a device. @throws ERR_VIRTKIT_MODULE with all that is wrong with it */
export function checkDefinition(value: unknown, name: string): DeviceDefinition {
  const wrong = (why: string, cause?: unknown): VirtkitError =>
    new VirtkitError("ERR_VIRTKIT_MODULE", `${name} is no device: ${why}`, cause === undefined ? {} : { cause });
  if (typeof value !== "object" || value === null)
    throw wrong(`it is ${kindOf(value)}; give an object with name, deviceId, queueSizes and create()`);
  let problems: string[];
  try {
    const fields = value as Fields;
    problems = [...basicProblems(fields), ...configProblems(fields), ...propertyProblems(fields["properties"])];
  } catch (error) {
    throw wrong(`looking at it failed: ${String(error)}`, error);
  }
  if (problems.length > 0) throw wrong(problems.join("; "));
  return value as DeviceDefinition;
}

/** @throws ERR_VIRTKIT_MODULE when `create` returned no handlers */
export function checkHandlers(value: unknown, name: string): void {
  const wrong = (why: string): VirtkitError => new VirtkitError("ERR_VIRTKIT_MODULE", `${name}: create() ${why}`);
  if (typeof value !== "object" || value === null)
    throw wrong(`returned ${kindOf(value)}; it has to return an object with onRequest()`);
  const handlers = value as Fields;
  if (typeof handlers["then"] === "function")
    throw wrong("returned a promise; it has to return the handlers at once, and wait in onRequest()");
  if (typeof handlers["onRequest"] !== "function")
    throw wrong(`returned handlers whose onRequest is ${kindOf(handlers["onRequest"])}; give a function`);
  for (const key of ["onConfigWritten", "onReset", "close"])
    if (handlers[key] !== undefined && typeof handlers[key] !== "function")
      throw wrong(`returned handlers whose ${key} is ${kindOf(handlers[key])}; give a function, or leave it out`);
}

function basicProblems(fields: Fields): string[] {
  const { name, description, deviceId, queueSizes, features = [], maxRequest = DEFAULT_REQUEST, create } = fields;
  const problems: string[] = [];
  if (typeof name !== "string" || name === "") problems.push(`name is ${missing(name)}: give what to call it`);
  if (description !== undefined && typeof description !== "string")
    problems.push(`description is ${kindOf(description)}; give a line of text`);
  if (!isWithin(deviceId, 1, MAX_DEVICE_ID))
    problems.push(
      `deviceId is ${missing(deviceId)}: give the device type, 1..${MAX_DEVICE_ID} (4 is an entropy device)`,
    );
  if (!Array.isArray(queueSizes) || queueSizes.length === 0 || queueSizes.length > MAX_QUEUES)
    problems.push(`queueSizes is ${missing(queueSizes)}: give an array with the size of each queue, such as [64]`);
  else if (!queueSizes.every((size) => isWithin(size, 2, 32768) && Number.isInteger(Math.log2(size))))
    problems.push(`queueSizes is [${queueSizes.join(", ")}]; give powers of two from 2 to 32768`);
  if (!Array.isArray(features) || !features.every(isDeviceFeature))
    problems.push(`features is ${missing(features)}; give an array of bits of the device type, 0..23 or 50..127`);
  if (!isWithin(maxRequest, 1, MAX_REQUEST))
    problems.push(`maxRequest is ${missing(maxRequest)}; give a number of bytes, 1..${MAX_REQUEST}`);
  if (typeof create !== "function")
    problems.push(`create is ${missing(create)}: give a function that returns { onRequest }`);
  return problems;
}

function configProblems({ config = 0, writableConfig = [] }: Fields): string[] {
  const size = config instanceof Uint8Array ? config.length : config;
  if (!isWithin(size, 0, MAX_CONFIG))
    return [`config is ${missing(size)}; give a Uint8Array, or a number of bytes up to ${MAX_CONFIG}`];
  const isRange = (range: unknown): boolean =>
    Array.isArray(range) && isWithin(range[0], 0, size) && isWithin(range[1], 1, size - range[0]);
  if (Array.isArray(writableConfig) && writableConfig.every(isRange)) return [];
  return [`writableConfig has to be an array of [offset, length] within the ${size} bytes of config`];
}

function propertyProblems(properties: unknown): string[] {
  if (properties === undefined) return [];
  if (typeof properties !== "object" || properties === null)
    return [`properties is ${kindOf(properties)}; give an object with { type, default, description } for each`];
  return Object.entries(properties).flatMap(([name, property]) => propertyProblem(name, property) ?? []);
}

function propertyProblem(name: string, property: unknown): string | undefined {
  if (!/^[A-Za-z][\w.-]*$/.test(name)) return `properties.${name}: a name begins with a letter, without spaces`;
  const { type, default: initial, description } = (property ?? {}) as Fields;
  const kind = typeof type === "string" && Object.hasOwn(TYPES, type) ? TYPES[type] : undefined;
  if (kind === undefined)
    return `properties.${name}.type is ${missing(type)}; give "string", "number", "size" or "boolean"`;
  const fits = typeof initial === kind && (kind !== "number" || Number.isSafeInteger(initial));
  if (initial !== undefined && !fits) return `properties.${name}.default is ${missing(initial)}; give a ${kind}`;
  if (description !== undefined && typeof description !== "string")
    return `properties.${name}.description is ${kindOf(description)}; give a line of text`;
  return undefined;
}

const isDeviceFeature = (bit: unknown): boolean => isWithin(bit, 0, 23) || isWithin(bit, 50, 127);

function isWithin(value: unknown, low: number, high: number): value is number {
  return typeof value === "number" && Number.isInteger(value) && value >= low && value <= high;
}

/** A value that should be another, for messages. */
function missing(value: unknown): string {
  if (value === undefined) return "missing";
  return typeof value === "number" ? String(value) : kindOf(value);
}

function kindOf(value: unknown): string {
  if (value === undefined || value === null) return String(value);
  if (Array.isArray(value)) return `an array of ${value.length}`;
  return typeof value === "object" ? "an object" : `a ${typeof value}`;
}
