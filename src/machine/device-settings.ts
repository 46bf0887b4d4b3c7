import type { DeviceOptions } from "./description.ts";

/** A device by its type's name, with properties as in `-device NAME,help`. */
export type DeviceSettings =
  | string
  | ({ readonly driver: string; readonly id?: string; readonly bus?: string } & Readonly<
      Record<string, string | number | boolean | undefined>
    >);

/** In the words of the command line. `where` is what messages call it. */
export function deviceOptions(device: DeviceSettings, where: string): DeviceOptions {
  const given = typeof device === "string" ? { driver: device } : device;
  const { driver, id, bus, ...properties } = given;
  return {
    option: `${where} (${driver})`,
    driver,
    ...(id === undefined ? {} : { id }),
    ...(bus === undefined ? {} : { bus }),
    properties: Object.entries(properties).flatMap(([name, value]) =>
      value === undefined ? [] : [{ name, value: textOf(value) }],
    ),
  };
}

function textOf(value: string | number | boolean): string {
  if (typeof value === "boolean") return value ? "on" : "off";
  return String(value);
}
