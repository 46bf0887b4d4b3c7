import type { DeviceOptions, MachineDescription, ObjectOptions } from "../../machine/description.ts";
import { blame, UsageError } from "../../machine/usage-error.ts";
import type { BootSource } from "../../node/boot.ts";
import type { TraceRequest } from "../../node/machine-trace.ts";
import { parseChardev } from "./chardev.ts";
import { type ControlOptions, parseControl } from "./control.ts";
import { type HelpTopic, type Parsed, parseDevice, parseObject } from "./device.ts";
import { parseDrives } from "./drives.ts";
import { isHelp } from "./keyval.ts";
import {
  checkAccel,
  checkMachine,
  checkRtc,
  checkSmp,
  DEFAULT_MEMORY,
  parseBoot,
  parseMemory,
  parseName,
} from "./machine-keys.ts";
import type { RawOptions } from "./raw-options.ts";
import { parseSerials } from "./serials.ts";
import { parseTrace } from "./trace.ts";

/** A command for the guest. */
export interface ExecOptions {
  readonly command: string;
  /** Milliseconds; undefined for as long as it takes. */
  readonly timeout: number | undefined;
}

/** Everything that `virtkit run` was asked for: checked for form, nothing opened. Paths are as they were given. */
export interface RunOptions {
  readonly machine: MachineDescription;
  readonly boot: BootSource;
  /** Firmware file; undefined for SeaBIOS. */
  readonly bios: string | undefined;
  readonly name: string | undefined;
  /** Exit when the guest reboots. */
  readonly noReboot: boolean;
  readonly exec: ExecOptions | undefined;
  /** Directory of prepared guests; undefined for the usual one. */
  readonly cache: string | undefined;
  /** A saved state may be restored instead of booting the kernel. */
  readonly useSavedState: boolean;
  readonly traces: readonly TraceRequest[];
  /** Print what the queues did at the end. */
  readonly stats: boolean;
  /** Control sockets. */
  readonly controls: readonly ControlOptions[];
  /** What was accepted and has no effect, for the user to know. */
  readonly warnings: readonly string[];
}

/** What to do: run a machine, or answer questions (`-device help`). */
export type RunRequest =
  | { readonly kind: "run"; readonly options: RunOptions }
  | { readonly kind: "help"; readonly topics: readonly HelpTopic[] };

/** @throws UsageError naming the option, what is wrong with it and what would be right */
export function buildRunOptions(raw: RawOptions): RunRequest {
  const get = new RawReader(raw);
  const devices = get.all("device").map(parseDevice);
  const objects = get.all("object").map(parseObject);
  const topics = [...helpOf(devices), ...helpOf(objects), ...LISTS.flatMap((of) => listTopics(get, of))];
  if (topics.length > 0) return { kind: "help", topics };
  checkFixed(get);
  const exec = parseExec(get);
  const lines = parseSerials({
    serials: get.all("serial"),
    chardevs: get.all("chardev").map(parseChardev),
    noDefaults: get.has("nodefaults"),
    exec: exec !== undefined,
  });
  const machine: MachineDescription = {
    memory: get.map("m", parseMemory) ?? DEFAULT_MEMORY,
    objects: valuesOf<ObjectOptions>(objects),
    ...lines,
    drives: parseDrives(get.all("drive"), get.has("snapshot")),
    devices: valuesOf<DeviceOptions>(devices),
  };
  const options: RunOptions = {
    machine,
    boot: parseBootSource(get),
    bios: get.path("bios"),
    name: get.map("name", parseName),
    noReboot: get.has("no-reboot"),
    exec,
    cache: get.path("cache"),
    useSavedState: !get.has("no-saved-state"),
    traces: get.all("trace").map(parseTrace),
    stats: get.has("stats"),
    controls: get.all("qmp").map(parseControl),
    warnings: warningsOf(get, machine),
  };
  return { kind: "run", options };
}

function warningsOf(get: RawReader, machine: MachineDescription): string[] {
  const direct = machine.drives.filter((drive) => drive.cache.direct);
  return [
    ...get.all("cpu").map((model) => `-cpu ${model}: ignored, there is one model of CPU`),
    ...direct.map(({ option }) => `${option}: the host's page cache is used all the same; flushes reach the disk`),
  ];
}

/** Options by name; of one that can be given once, the last counts. */
class RawReader {
  readonly #raw: RawOptions;

  constructor(raw: RawOptions) {
    this.#raw = raw;
  }

  all(name: string): readonly string[] {
    return this.#raw.get(name) ?? [];
  }

  has(name: string): boolean {
    return this.#raw.has(name);
  }

  last(name: string): string | undefined {
    return this.all(name).at(-1);
  }

  map<T>(name: string, parse: (text: string) => T): T | undefined {
    const text = this.last(name);
    return text === undefined ? undefined : parse(text);
  }

  /** A file or directory: any text but the empty one. */
  path(name: string): string | undefined {
    const text = this.last(name);
    const dashes = name === "cache" ? "--" : "-";
    if (text === "") throw new UsageError("a path is missing", { option: `${dashes}${name} ''` });
    return text;
  }
}

function helpOf(parsed: readonly Parsed<unknown>[]): HelpTopic[] {
  return parsed.flatMap((one) => ("help" in one ? [one.help] : []));
}

/** Options whose `help` lists what they take. */
const LISTS = ["chardev", "machine", "accel", "cpu"] as const;

const listTopics = (get: RawReader, of: (typeof LISTS)[number]): HelpTopic[] =>
  get
    .all(of)
    .filter(isHelp)
    .map(() => ({ of, name: undefined }));

function valuesOf<T>(parsed: readonly Parsed<T>[]): T[] {
  return parsed.flatMap((one) => ("value" in one ? [one.value] : []));
}

/** Options that may be given, but only to ask for what there is anyway. */
function checkFixed(get: RawReader): void {
  for (const text of get.all("smp")) checkSmp(text);
  for (const text of get.all("machine")) checkMachine(text);
  for (const text of get.all("accel")) checkAccel(text);
  for (const text of get.all("rtc")) checkRtc(text);
  const only: Record<string, readonly [string[], string]> = {
    display: [["none"], "No screen is shown."],
    vga: [["none", "std"], "No screen is shown."],
    monitor: [["none"], "There is no monitor. Ctrl-A X on the terminal quits."],
    parallel: [["none"], "There is no parallel port."],
    net: [["none"], "There is no network device yet."],
  };
  for (const [name, [values, why]] of Object.entries(only))
    for (const text of get.all(name))
      if (!values.includes(text))
        throw new UsageError(`'${text}' is not supported`, {
          option: `-${name} ${text}`,
          hint: `${why} Valid: ${values.map((value) => `-${name} ${value}`).join(", ")}.`,
        });
}

function parseExec(get: RawReader): ExecOptions | undefined {
  const command = get.last("exec");
  const seconds = get.last("exec-timeout");
  if (command === "")
    throw new UsageError("the command is missing", { option: "--exec ''", hint: "Write --exec 'uname -a'" });
  if (command === undefined && seconds !== undefined)
    throw new UsageError("only works with --exec", { option: "--exec-timeout" });
  if (command === undefined) return undefined;
  return { command, timeout: seconds === undefined ? undefined : parseTimeout(seconds) };
}

const MAX_TIMEOUT = 2 ** 31 - 1;

function parseTimeout(text: string): number {
  const timeout = /^\d+(\.\d+)?$/.test(text) ? Math.round(Number(text) * 1000) : 0;
  if (timeout > 0 && timeout <= MAX_TIMEOUT) return timeout;
  const hint = "A number above 0, such as 60 or 0.5.";
  throw new UsageError(`'${text}' is no number of seconds`, { option: `--exec-timeout ${text}`, hint });
}

function parseBootSource(get: RawReader): BootSource {
  const kernel = get.path("kernel");
  const initrd = get.path("initrd");
  const append = get.last("append");
  const fromDisk = get.map("boot", parseBoot) ?? false;
  if (kernel !== undefined) return { from: "kernel", kernel, initrd, append: append ?? "" };
  if (initrd !== undefined)
    throw new UsageError("only allowed with -kernel", { option: `-initrd ${initrd}`, hint: "Add -kernel FILE." });
  if (!fromDisk) return { from: "guest", append };
  return blame("-append", () => {
    if (append !== undefined)
      throw new UsageError("only allowed with a kernel", { hint: "Leave out -boot or -append." });
    return { from: "disk" };
  });
}
