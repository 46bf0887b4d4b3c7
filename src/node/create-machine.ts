import type { Environment } from "../common/environment.ts";
import { VirtkitError } from "../common/error.ts";
import { checkMemorySize } from "../engine/v86/index.ts";
import { readV86Wasm } from "../engine/v86/wasm-file.ts";
import { NodeBackends } from "../host/node/backend-factory.ts";
import { createEnvironment, createLogger } from "../host/node/environment.ts";
import type { OnGuestProgress } from "../host/node/guest/index.ts";
import { checkImage } from "../host/node/image-file.ts";
import { loadUserModule } from "../host/node/user-module.ts";
import { addCustomTypes } from "../machine/custom-devices.ts";
import type { MachineDescription } from "../machine/description.ts";
import { type DeviceSettings, deviceOptions } from "../machine/device-settings.ts";
import { withAgentPorts } from "../machine/guest-agent/index.ts";
import { checkDescription } from "../machine/machine-builder.ts";
import type { TypeRegistry } from "../machine/object-model/registry.ts";
import { rehearse } from "../machine/rehearse.ts";
import { createTypeRegistry } from "../machine/types.ts";
import { blameAsync } from "../machine/usage-error.ts";
import { VirtualMachine } from "../machine/virtual-machine.ts";
import type { TraceFilter, TraceSink } from "../trace/tracing.ts";
import type { TraceEvent } from "../trace/types.ts";
import { type BootSource, prepareBoot } from "./boot.ts";
import { type DriveSettings, driveOptions } from "./drive-settings.ts";
import { checkTraces, NodeMachineTrace, type TraceRequest } from "./machine-trace.ts";

export interface MachineOptions {
  /** Bytes, or a number with K, M or G: "256M". Default "256M". */
  readonly memory?: number | string;
  /** Image files (raw), or more about them. The guest finds them as /dev/vda, /dev/vdb, ... */
  readonly drives?: readonly (string | DriveSettings)[];
  readonly devices?: readonly DeviceSettings[];
  /** A Linux bzImage of one's own; without it the prepared guest boots. */
  readonly kernel?: string;
  readonly initrd?: string;
  /** Kernel command line; for the prepared guest it is added to ours. */
  readonly append?: string;
  /** Firmware file in place of SeaBIOS. */
  readonly bios?: string;
  /** Carries commands: exec, readFile, writeFile. Default true for the prepared guest, else false. */
  readonly agent?: boolean;
  /** A guest that reboots ends the machine. Default false. */
  readonly noReboot?: boolean;
  /** Where prepared guests and saved states are kept. */
  readonly cacheDir?: string;
  /** Restore a saved state instead of booting, and keep one. Default true. */
  readonly savedState?: boolean;
  /** Told of the preparation of a guest that is not cached yet. */
  readonly onProgress?: OnGuestProgress;
  /** Stops the preparation of a guest. */
  readonly signal?: AbortSignal;
  /** Types of devices; default all that virtkit has. */
  readonly registry?: TypeRegistry;
  /** What the devices do, event by event: into a file, or to a function. See docs/tracing.md. */
  readonly trace?: TraceSettings | readonly TraceSettings[];
  /** Count what queues do, see {@link VirtualMachine.stats}. Default false. */
  readonly stats?: boolean;
  /** Clock, event loop and log; the default logs warnings to standard error. */
  readonly environment?: Environment;
}

/** A trace: a file, or a function that is called for each event, at once. */
export type TraceSettings = TraceFilter &
  (
    | { readonly file: string; readonly onEvent?: undefined }
    | { readonly onEvent: (event: TraceEvent, device: string, micros: number) => void; readonly file?: undefined }
  );

const DEFAULT_MEMORY = "256M";
const UNITS: Readonly<Record<string, number>> = { "": 1, K: 2 ** 10, M: 2 ** 20, G: 2 ** 30 };

/**
 * Makes a machine in this process; `start()` boots it. A guest that is not cached yet is prepared first, which takes
 * a download.
 * @throws UsageError (code ERR_VIRTKIT_USAGE) for wrong options; what preparing a guest throws
 */
export async function createMachine(options: MachineOptions = {}): Promise<VirtualMachine> {
  const source: BootSource =
    options.kernel === undefined
      ? { from: "guest", append: options.append }
      : { from: "kernel", kernel: options.kernel, initrd: options.initrd, append: options.append ?? "" };
  return assembleMachine({
    description: describe(options),
    source,
    agent: options.agent ?? source.from === "guest",
    noReboot: options.noReboot ?? false,
    bios: options.bios,
    cacheDir: options.cacheDir,
    useSavedState: options.savedState ?? true,
    onProgress: options.onProgress,
    signal: options.signal,
    registry: options.registry,
    traces: [options.trace ?? []].flat().map(traceOf),
    stats: options.stats ?? false,
    environment: options.environment ?? createEnvironment(createLogger("warn")),
  });
}

/** What {@link createMachine} and the command line have in common. */
export interface AssembleOptions {
  readonly description: MachineDescription;
  readonly source: BootSource;
  readonly agent: boolean;
  /** The helper of a prepared guest; default: with the agent. */
  readonly control?: boolean;
  readonly name?: string | undefined;
  readonly noReboot: boolean;
  readonly bios: string | undefined;
  readonly cacheDir: string | undefined;
  readonly useSavedState: boolean;
  readonly onProgress?: OnGuestProgress | undefined;
  readonly signal?: AbortSignal | undefined;
  readonly registry?: TypeRegistry | undefined;
  readonly traces?: readonly TraceRequest[];
  /** Count what queues do. */
  readonly stats?: boolean;
  readonly environment: Environment;
  /** Where the guest's init mounts a disk, "vda:/root". */
  readonly data?: string;
  /** TERM of the user's terminal. */
  readonly term?: string | undefined;
  /** Default: files, sockets and the terminal of this process. */
  readonly backends?: NodeBackends;
}

/** Checks, finds the files, and puts the machine together. Nothing runs yet. */
export async function assembleMachine(options: AssembleOptions): Promise<VirtualMachine> {
  const { description, environment } = options;
  const registry = options.registry ?? createTypeRegistry();
  const { signal } = options;
  await addCustomTypes(description.devices, registry, (file) => loadUserModule(file, { signal }));
  checkDescription(description, registry);
  checkMemorySize(description.memory);
  const { traces = [], stats = false } = options;
  await checkTraces(traces, options.agent ? withAgentPorts(description, []) : description, registry);
  await rehearse(description, registry, environment);
  // Before a guest is prepared, which may take a download.
  for (const { option, source, readOnly } of description.drives)
    await blameAsync(option, async () => {
      if ("file" in source) await checkImage(source.file, readOnly);
      else if ("module" in source && typeof source.module === "string")
        await loadUserModule(source.module, { limit: source.timeout, signal });
    });
  const files = await prepareBoot({
    source: options.source,
    memory: description.memory,
    serialPorts: Math.max(1, description.serials.length),
    bios: options.bios,
    cacheDir: options.cacheDir,
    useSavedState: options.useSavedState,
    data: options.data,
    term: options.term,
    onProgress: options.onProgress,
    signal,
  });
  return new VirtualMachine({
    ...files,
    description,
    registry,
    environment,
    wasm: await readV86Wasm(),
    backends: options.backends ?? new NodeBackends({ environment, onQuit: () => {} }),
    agent: options.agent,
    ...(options.control === undefined ? {} : { control: options.control }),
    name: options.name,
    noReboot: options.noReboot,
    trace: traces.length > 0 || stats ? new NodeMachineTrace(traces, stats, environment) : undefined,
  });
}

function describe(options: MachineOptions): MachineDescription {
  return {
    memory: bytesOf(options.memory ?? DEFAULT_MEMORY),
    objects: [],
    chardevs: [],
    serials: [],
    drives: (options.drives ?? []).map(driveOptions),
    devices: (options.devices ?? []).map((device, index) => deviceOptions(device, `devices[${index}]`)),
  };
}

function bytesOf(memory: number | string): number {
  if (typeof memory === "number") return memory;
  const match = /^(\d+)([KMG]?)$/i.exec(memory);
  if (match === null) throw new VirtkitError("ERR_VIRTKIT_OPTION", `memory: '${memory}' is no size; write "256M"`);
  return Number(match[1]) * (UNITS[(match[2] ?? "").toUpperCase()] ?? 1);
}

function traceOf({ file, onEvent, ...filter }: TraceSettings, index: number): TraceRequest {
  const to = file === undefined ? { sink: { record: callOf(onEvent) } } : { file };
  return { ...filter, option: `trace[${index}]`, to };
}

const callOf =
  (onEvent: NonNullable<TraceSettings["onEvent"]>): TraceSink["record"] =>
  (time, device, event) =>
    onEvent(event, device, time);
