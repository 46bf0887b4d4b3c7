import type { BalloonHost } from "../backend/balloon/types.ts";
import type { Environment } from "../common/environment.ts";
import type { GuestMemory } from "../memory/guest-memory.ts";
import type { TraceStats } from "../trace/stats.ts";
import type { DeviceTracer } from "../trace/tracing.ts";
import type { PciFunction } from "../transport/pci/function.ts";
import type { MachineBackends } from "./machine-backends.ts";

/** The PCI bus of an engine: 256 places (slot * 8 + function) on bus 0. */
export interface PciSlots {
  attach(device: PciFunction, devfn: number): void;
  detach(device: PciFunction): void;
  /** True when something is plugged in there, ours or the board's own. */
  occupied(devfn: number): boolean;
}

/** Who watches the machine's devices. */
export interface MachineTracing {
  /** For one device, until its `close`; undefined when nobody wants anything of it. */
  tracer(name: string, type: string): DeviceTracer | undefined;
}

/** The traces of a machine, from its start to its end. */
export interface MachineTrace extends MachineTracing {
  /** Opens what it writes to, before any device is made. @throws UsageError */
  open(): Promise<void>;
  /** Undefined when nothing is counted. */
  readonly stats: TraceStats | undefined;
  /** Resolves when everything is written. */
  close(): Promise<void>;
}

/** What a device finds around it when it is realized. */
export interface MachineHost {
  readonly environment: Environment;
  /** The guest's RAM. */
  readonly memory: GuestMemory;
  readonly pci: PciSlots;
  readonly backends: MachineBackends;
  /** Of engines that can give guest memory back. */
  readonly balloon?: BalloonHost;
  readonly tracing?: MachineTracing;
  /** Nothing will run: what has effects outside, such as a user's code, is left out. */
  readonly rehearsal?: boolean;
}
