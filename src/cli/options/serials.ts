import type { ChardevOptions, SerialOptions } from "../../machine/description.ts";
import { suggest } from "../../machine/nearest.ts";
import { UsageError } from "../../machine/usage-error.ts";
import { type ParsedSerial, parseSerial } from "./chardev.ts";

/** COM1..COM4 of a PC. */
const MAX_PORTS = 4;

export interface SerialContext {
  /** -serial, in order. */
  readonly serials: readonly string[];
  readonly chardevs: readonly ChardevOptions[];
  /** -nodefaults. */
  readonly noDefaults: boolean;
  /** --exec: the terminal belongs to the command. */
  readonly exec: boolean;
}

export interface SerialLines {
  /** Those of -chardev, and one for each -serial that brings its own, called serial0, serial1, ... */
  readonly chardevs: readonly ChardevOptions[];
  readonly serials: readonly SerialOptions[];
}

/**
 * What is connected to the serial ports. Without -serial, COM1 is on the terminal, with Ctrl-A as the escape character; with
 * --exec it is not connected.
 * @throws UsageError
 */
export function parseSerials(context: SerialContext): SerialLines {
  const { serials: texts, chardevs, exec } = context;
  const byDefault = context.noDefaults || exec ? [] : ["mon:stdio"];
  const parsed = (texts.length > 0 ? texts : byDefault).map(parseSerial);
  const extra = parsed[MAX_PORTS];
  if (extra !== undefined)
    throw new UsageError(`too many serial ports: the machine has ${MAX_PORTS}`, { option: extra.option });
  const own = parsed.flatMap((serial, port) => ownChardev(serial, port));
  const all = [...chardevs, ...own];
  for (const { option, id } of own)
    if (chardevs.some((other) => other.id === id))
      throw new UsageError(`the id '${id}' is taken by a -chardev`, { option, hint: "Give that one another id." });
  checkStdio(all, exec);
  return { chardevs: all, serials: parsed.map((serial, port) => connect(serial, port, chardevs)) };
}

function ownChardev(serial: ParsedSerial, port: number): ChardevOptions[] {
  return "backend" in serial ? [{ option: serial.option, id: `serial${port}`, backend: serial.backend }] : [];
}

function connect(serial: ParsedSerial, port: number, chardevs: readonly ChardevOptions[]): SerialOptions {
  const { option } = serial;
  if ("backend" in serial) return { option, chardev: `serial${port}` };
  if (!("chardev" in serial)) return { option };
  const { chardev } = serial;
  const ids = chardevs.map(({ id }) => id);
  if (ids.includes(chardev)) return { option, chardev };
  const hint = ids.length === 0 ? "-chardev TYPE,id=ID declares one." : suggest(chardev, ids);
  throw new UsageError(`chardev '${chardev}' not found`, { option, hint });
}

function checkStdio(chardevs: readonly ChardevOptions[], exec: boolean): void {
  const [first, second] = chardevs.filter(({ backend }) => backend.type === "stdio");
  if (second !== undefined)
    throw new UsageError("cannot use stdio by multiple character devices", {
      option: second.option,
      hint: `${first?.option} has it. Send this one to a file:PATH or a socket.`,
    });
  if (first !== undefined && exec)
    throw new UsageError("the terminal is taken: with --exec it carries the command's input and output", {
      option: first.option,
      hint: "Send the serial line to a file: -serial file:boot.log",
    });
}
