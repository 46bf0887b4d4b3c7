import { homedir } from "node:os";
import { join } from "node:path";
import { createEnvironment, createLogger } from "../../host/node/environment.ts";
import { ensureDataDisk } from "../../host/node/guest/index.ts";
import { cacheOf } from "../../machine/description.ts";
import type { TraceRequest } from "../../node/machine-trace.ts";
import { runMachine } from "./run.ts";

export interface StartOptions {
  /** Directory of prepared guests; undefined for the usual one. */
  readonly cache: string | undefined;
  /** Image of the disk that keeps the files; undefined for the usual one. */
  readonly disk: string | undefined;
  readonly useSavedState: boolean;
  readonly traces: readonly TraceRequest[];
  readonly stats: boolean;
}

const MEMORY = 256 * 2 ** 20;

/** `virtkit start`: a shell in the prepared guest. Returns the status to exit with. */
export async function startCommand(options: StartOptions): Promise<number> {
  const environment = createEnvironment(createLogger("warn"));
  const disk = await ensureDataDisk(options.disk ?? defaultDisk());
  return runMachine(
    {
      machine: {
        memory: MEMORY,
        objects: [],
        chardevs: [{ option: "the terminal", id: "terminal", backend: { type: "stdio", mux: true, signal: false } }],
        serials: [],
        drives: [
          {
            option: `--disk ${disk.path}`,
            id: "disk",
            source: { file: disk.path },
            format: "raw",
            interface: "virtio",
            readOnly: false,
            locking: true,
            cache: cacheOf("writeback"),
            aio: "threads",
            discard: "ignore",
          },
        ],
        devices: [
          { option: "the console", driver: "virtio-serial-pci", id: "console", properties: [] },
          {
            option: "the console",
            driver: "virtconsole",
            bus: "console.0",
            properties: [{ name: "chardev", value: "terminal" }],
          },
          { option: "the entropy source", driver: "virtio-rng-pci", properties: [] },
        ],
      },
      boot: { from: "guest", append: undefined },
      bios: undefined,
      name: undefined,
      noReboot: false,
      exec: undefined,
      cache: options.cache,
      useSavedState: options.useSavedState,
      controls: [],
      warnings: [],
      traces: options.traces,
      stats: options.stats,
      data: "vda:/root",
      agent: true,
    },
    environment,
  );
}

/** The disk belongs to the user, not to the cache: nothing but the user removes it. */
function defaultDisk(): string {
  const data = process.env["XDG_DATA_HOME"];
  const base = data !== undefined && data !== "" ? data : join(homedir(), ".local", "share");
  return join(base, "virtkit", "disk.img");
}
