import { MemoryBlockBackend } from "../backend/block/memory.ts";
import type { BlockBackend } from "../backend/block/types.ts";
import type { CharBackend, CharSink } from "../backend/char/types.ts";
import type { EntropySource } from "../backend/entropy/types.ts";
import type { Environment, LogLevel } from "../common/environment.ts";
import { VirtkitError } from "../common/error.ts";
import type { BackendFactory, EntropyOptions } from "../machine/backend-factory.ts";
import type { ChardevOptions, DriveOptions } from "../machine/description.ts";
import type { PciSlots } from "../machine/machine-host.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import type { PciFunction } from "../transport/pci/function.ts";

/** A PCI bus that only notes who is plugged in. The board has functions 0.0 and 1.0, as an i440FX machine has. */
export class NotedSlots implements PciSlots {
  readonly functions = new Map<number, PciFunction>();
  readonly board = new Set([0, 8]);
  /** Set to make the next attach fail. */
  refuse: Error | undefined;
  readonly events: string[];

  constructor(events: string[] = []) {
    this.events = events;
  }

  attach(device: PciFunction, devfn: number): void {
    if (this.refuse !== undefined) throw this.refuse;
    this.functions.set(devfn, device);
    this.events.push(`attach ${device.name} ${devfn}`);
  }

  detach(device: PciFunction): void {
    for (const [devfn, other] of this.functions) if (other === device) this.functions.delete(devfn);
    this.events.push(`detach ${device.name}`);
  }

  occupied(devfn: number): boolean {
    return this.functions.has(devfn) || this.board.has(devfn);
  }
}

export class NotedChar implements CharBackend {
  readonly name: string;
  sink: CharSink | undefined;
  readonly #closed: () => void;

  constructor(name: string, closed: () => void) {
    this.name = name;
    this.#closed = closed;
  }

  attach(sink: CharSink): void {
    this.sink = sink;
  }

  write(bytes: Uint8Array): number {
    return bytes.length;
  }

  drained(): void {}
  guestOpen(): void {}

  async close(): Promise<void> {
    this.#closed();
  }
}

/** Back ends that open no file: disks in memory, 1 MiB each. A file called "missing..." does not exist. */
export class NotedBackends implements BackendFactory {
  readonly events: string[];

  constructor(events: string[] = []) {
    this.events = events;
  }

  async openDrive({ id, source, readOnly }: DriveOptions): Promise<BlockBackend> {
    const name = "file" in source ? source.file : id;
    if (name.startsWith("missing"))
      throw new VirtkitError("ERR_VIRTKIT_BLOCK_OPEN", `Could not open '${name}': No such file or directory`);
    this.events.push(`open drive ${id} ${name}`);
    const backend = new MemoryBlockBackend({ capacity: 1 << 20, name, readOnly });
    const close = backend.close.bind(backend);
    backend.close = async () => {
      this.events.push(`close drive ${id}`);
      await close();
    };
    return backend;
  }

  async openChardev({ id, backend }: ChardevOptions): Promise<CharBackend> {
    this.events.push(`open chardev ${id} ${backend.type}`);
    return new NotedChar(id, () => this.events.push(`close chardev ${id}`));
  }

  async loadModule(file: string): Promise<unknown> {
    throw new VirtkitError("ERR_VIRTKIT_MODULE", `the module ${file} cannot be used: no such file`);
  }

  async openEntropy(options: EntropyOptions): Promise<EntropySource> {
    if (options.type === "file") this.events.push(`open entropy ${options.path}`);
    return { name: options.type, fill: (into) => void into.fill(7) };
  }
}

/** What a machine is built on, with everything that happens noted in `events` and every message in `messages`. */
export interface NotedParts {
  readonly events: string[];
  readonly messages: string[];
  readonly environment: Environment;
  readonly memory: GuestMemory;
  readonly pci: NotedSlots;
  readonly backends: NotedBackends;
}

export function notedParts(): NotedParts {
  const events: string[] = [];
  const messages: string[] = [];
  const log = { log: (level: LogLevel, message: string) => void messages.push(`${level}: ${message}`) };
  return {
    events,
    messages,
    environment: {
      defer: (task) => void setImmediate(task),
      after: (milliseconds, task) => {
        const timer = setTimeout(task, milliseconds).unref();
        return () => clearTimeout(timer);
      },
      now: () => performance.now(),
      log,
    },
    memory: GuestMemory.allocate(1 << 20),
    pci: new NotedSlots(events),
    backends: new NotedBackends(events),
  };
}
