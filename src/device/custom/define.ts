import type { LogLevel } from "../../common/environment.ts";

/** A property of a device, which the user sets with `-device ...,NAME=VALUE`. */
export interface PropertyDefinition {
  /** "size" is a number of bytes, written with K, M or G if one likes; "number" is any other whole number. */
  readonly type: "string" | "number" | "size" | "boolean";
  /** Unless said "", 0 or false. */
  readonly default?: string | number | boolean;
  /** For `-device ...,help`. */
  readonly description?: string;
}

export type PropertyTable = Readonly<Record<string, PropertyDefinition>>;

type ValueOf<T> = T extends "string" ? string : T extends "boolean" ? boolean : number;

/** What a device gets of its properties. */
export type PropertyValues<P extends PropertyTable> = { readonly [Name in keyof P]: ValueOf<P[Name]["type"]> };

/** A buffer that the driver made available: its readable part, and room for an answer. */
export interface DeviceRequest {
  /** Index of its queue. */
  readonly queue: number;
  /** What the driver wrote, in one piece: a copy, which the device may keep. */
  readonly data: Uint8Array;
  /** Bytes that the answer may have at most. */
  readonly room: number;
}

/** The answer to a request: bytes for the driver, at most as many as it has room for; nothing for none. */
export type DeviceAnswer = Uint8Array | undefined;

/** What a device does. */
export interface DeviceHandlers {
  /**
   * A request. Its buffer goes back to the driver with the answer; a promise keeps it until then, for as long as it takes. Requests may be
   * answered in any order. An exception, a rejection or an answer that is too long breaks the device until the driver resets it
   * (DEVICE_NEEDS_RESET): what a device type has for errors, such as a status byte, is part of an answer.
   */
  onRequest(request: DeviceRequest): DeviceAnswer | Promise<DeviceAnswer>;
  /** The driver wrote configuration bytes, see {@link DeviceDefinition.writableConfig}. */
  onConfigWritten?(offset: number, length: number): void;
  /** The driver reset the device: requests that were not answered are gone. */
  onReset?(): void;
  /** The device was unplugged, or the machine ended. */
  close?(): Promise<void> | void;
}

/** What a device finds around it. */
export interface DeviceContext<P extends PropertyTable = PropertyTable> {
  /** The id of the device, or its type. */
  readonly name: string;
  readonly properties: PropertyValues<P>;
  /** True from the negotiation on, for feature bits that the driver took. */
  hasFeature(bit: number): boolean;
  /** A copy of the configuration as it is now. */
  config(): Uint8Array;
  /** Changes the configuration from byte `offset` on, and tells the driver. */
  setConfig(offset: number, bytes: Uint8Array): void;
  /** Writes a line to virtkit's log. Default level "warn", the least that the command line shows. */
  log(message: string, level?: LogLevel): void;
}

/** A virtio device of one's own: what the driver finds, and what it does. */
export interface DeviceDefinition<P extends PropertyTable = PropertyTable> {
  /** For messages. */
  readonly name: string;
  /** A line for the help. */
  readonly description?: string;
  /** Type of the device, 1..63 (VIRTIO 1.4 §5): it decides on the driver. */
  readonly deviceId: number;
  /** Entries of each queue, powers of two from 2 to 32768: as many queues as the device type has. */
  readonly queueSizes: readonly number[];
  /** Feature bits of the device type that it offers, 0..23 and from 50 on. Default none. */
  readonly features?: readonly number[];
  /** The device-specific configuration as it is at first, or how many zero bytes it has. Default none. */
  readonly config?: Uint8Array | number;
  /** Ranges of it that the driver may write, each an offset and a length. Default none. */
  readonly writableConfig?: readonly (readonly [offset: number, length: number])[];
  /** Bytes of a request's data at most; a longer request breaks the device. Default 1 MiB, at most 64 MiB. */
  readonly maxRequest?: number;
  readonly properties?: P;
  /** Makes one device. It returns at once: what takes time can be waited for in `onRequest`. */
  create(context: DeviceContext<P>): DeviceHandlers;
}

/** Returns what it is given. Gives an editor the types of a module's default export. */
export function defineDevice<const P extends PropertyTable>(definition: DeviceDefinition<P>): DeviceDefinition<P> {
  return definition;
}
