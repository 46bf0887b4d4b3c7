import type { DeviceDefinition } from "../device/custom/define.ts";
import type { DeviceOptions } from "./description.ts";
import { CUSTOM_TYPE } from "./devices/custom-device.ts";

type Properties = Readonly<Record<string, string | number | boolean | undefined>>;

/** A device by its type's name, with properties as in `-device NAME,help`; or one's own, see `defineDevice`. */
export type DeviceSettings =
  | string
  | ({ readonly driver: string; readonly id?: string; readonly bus?: string } & Properties)
  | CustomDeviceSettings;

/** A device of one's own. */
export interface CustomDeviceSettings {
  /** What it is, or the file of a module whose default export that is. */
  readonly module: string | DeviceDefinition;
  readonly id?: string;
  readonly bus?: string;
  /** Its own, and those of every device. */
  readonly properties?: Properties;
}

/** In the words of the command line. `where` is what messages call it. */
export function deviceOptions(device: DeviceSettings, where: string): DeviceOptions {
  const given = typeof device === "string" ? { driver: device } : isCustom(device) ? customOf(device) : device;
  const { driver, id, bus, ...properties } = given;
  const definition = isCustom(device) && typeof device.module !== "string" ? { definition: device.module } : {};
  return {
    ...definition,
    option: `${where} (${driver})`,
    driver,
    ...(id === undefined ? {} : { id }),
    ...(bus === undefined ? {} : { bus }),
    properties: Object.entries(properties).flatMap(([name, value]) =>
      value === undefined ? [] : [{ name, value: textOf(value) }],
    ),
  };
}

const isCustom = (device: DeviceSettings): device is CustomDeviceSettings =>
  typeof device === "object" && !("driver" in device) && "module" in device;

function customOf({
  module,
  id,
  bus,
  properties,
}: CustomDeviceSettings): Exclude<DeviceSettings, string | CustomDeviceSettings> {
  const driver = CUSTOM_TYPE + (typeof module === "string" ? module : module.name);
  return { driver, ...properties, ...(id === undefined ? {} : { id }), ...(bus === undefined ? {} : { bus }) };
}

function textOf(value: string | number | boolean): string {
  if (typeof value === "boolean") return value ? "on" : "off";
  return String(value);
}
