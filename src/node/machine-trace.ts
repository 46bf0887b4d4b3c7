import { stat } from "node:fs/promises";
import { resolve } from "node:path";
import type { Environment } from "../common/environment.ts";
import { TraceFile } from "../host/node/trace-file.ts";
import type { MachineDescription } from "../machine/description.ts";
import type { MachineTrace } from "../machine/machine-host.ts";
import { oneOf, suggest } from "../machine/nearest.ts";
import type { TypeRegistry } from "../machine/object-model/registry.ts";
import { blameAsync, UsageError } from "../machine/usage-error.ts";

import { TraceStats } from "../trace/stats.ts";
import { type DeviceTracer, type TraceFilter, type TraceSink, Tracing } from "../trace/tracing.ts";

/** Where one trace goes, and what of the machine it is to have. */
export interface TraceRequest extends TraceFilter {
  /** For messages. */
  readonly option: string;
  readonly to: { readonly file: string } | { readonly sink: TraceSink };
}

/** The traces of one machine: files are opened when it starts and complete when it has ended. */
export class NodeMachineTrace implements MachineTrace {
  readonly stats: TraceStats | undefined;
  readonly #requests: readonly TraceRequest[];
  readonly #environment: Environment;
  readonly #tracing: Tracing;
  readonly #files: TraceFile[] = [];

  constructor(requests: readonly TraceRequest[], stats: boolean, environment: Environment) {
    this.#requests = requests;
    this.#environment = environment;
    this.#tracing = new Tracing(() => environment.now());
    this.stats = stats ? new TraceStats() : undefined;
    if (this.stats !== undefined) this.#tracing.addSink(this.stats);
  }

  /** @throws UsageError for a file that cannot be made */
  async open(): Promise<void> {
    const environment = this.#environment;
    for (const { option, to, ...filter } of this.#requests) {
      const sink =
        "file" in to ? await blameAsync(option, () => TraceFile.open({ path: to.file, environment })) : to.sink;
      if (sink instanceof TraceFile) this.#files.push(sink);
      this.#tracing.addSink(sink, filter);
    }
  }

  tracer(name: string, type: string): DeviceTracer | undefined {
    return this.#tracing.tracer(name, type);
  }

  async close(): Promise<void> {
    for (const file of this.#files) await file.close();
  }
}

/**
 * Finds what is wrong with traces before anything is opened: devices that there are not, a file that cannot be made or is a disk's image too.
 * @throws UsageError
 */
export async function checkTraces(
  requests: readonly TraceRequest[],
  description: MachineDescription,
  registry: TypeRegistry,
): Promise<void> {
  const names = deviceNames(description, registry);
  for (const { option, devices } of requests)
    for (const name of devices ?? [])
      if (!names.includes(name))
        throw new UsageError(`there is no device '${name}'`, {
          option,
          hint: names.length === 0 ? "The machine has no devices." : suggest(name, names, `Valid: ${oneOf(names)}.`),
        });
  const taken = new Map<string, string>();
  for (const { option, source } of description.drives) {
    const file = "file" in source ? await identity(source.file) : undefined;
    if (file !== undefined) taken.set(file, option);
  }
  for (const { option, to } of requests) {
    if ("file" in to) await blameAsync(option, () => TraceFile.check(to.file));
    const file = "file" in to ? await identity(to.file) : undefined;
    const other = file === undefined ? undefined : taken.get(file);
    if (other !== undefined) throw new UsageError(`the file is in use: ${other}`, { option });
    if (file !== undefined) taken.set(file, option);
  }
}

/** Ids, and types, of the virtio devices. */
function deviceNames({ devices, drives }: MachineDescription, registry: TypeRegistry): string[] {
  const named = devices.flatMap(({ id, driver }) => {
    const klass = registry.deviceClass(driver);
    if (!klass.levels.some(({ name }) => name === "virtio-pci")) return [];
    return id === undefined ? [klass.name] : [id, klass.name];
  });
  const automatic = drives.some((drive) => drive.interface === "virtio") ? ["virtio-blk-pci"] : [];
  return [...new Set([...named, ...automatic])];
}

/** Which file a path leads to; undefined for what is no regular file. */
async function identity(path: string): Promise<string | undefined> {
  const found = await stat(path).catch(() => undefined);
  if (found === undefined) return resolve(path);
  return found.isFile() ? `${found.dev} ${found.ino}` : undefined;
}
