import type { TraceEvent, TraceKind, Tracer } from "./types.ts";

/** Every kind of event, in the order of a request's life. */
export const TRACE_KINDS: readonly TraceKind[] = [
  "status",
  "features",
  "queue",
  "config",
  "add",
  "kick",
  "pop",
  "unpop",
  "request-begin",
  "merge",
  "io-begin",
  "io-end",
  "request-end",
  "push",
  "interrupt",
  "get",
  "fault",
];

/** Where events go. */
export interface TraceSink {
  /** @param time microseconds from the start of tracing */
  record(time: number, device: string, event: TraceEvent): void;
}

/** Which events a sink gets; all unless said. */
export interface TraceFilter {
  /** Ids of devices, or names of their types. */
  readonly devices?: readonly string[];
  readonly kinds?: readonly TraceKind[];
}

interface Route {
  readonly sink: TraceSink;
  readonly devices: ReadonlySet<string> | undefined;
  readonly kinds: ReadonlySet<TraceKind> | undefined;
}

/** Brings the events of many devices to sinks. */
export class Tracing {
  readonly #now: () => number;
  readonly #start: number;
  readonly #routes: Route[] = [];
  readonly #names = new Set<string>();

  /** @param now milliseconds, never going back */
  constructor(now: () => number) {
    this.#now = now;
    this.#start = now();
  }

  /** For devices that are made from here on. */
  addSink(sink: TraceSink, filter: TraceFilter = {}): void {
    const { devices, kinds } = filter;
    this.#routes.push({ sink, devices: devices && new Set(devices), kinds: kinds && new Set(kinds) });
  }

  /**
   * A tracer for one device, or undefined when no sink wants anything of it. Of several with the same name the second is called
   * "NAME#2", and so on.
   * @param type also stands for the device in filters
   */
  tracer(name: string, type = name): DeviceTracer | undefined {
    const wanting = this.#routes.filter(
      ({ devices }) => devices === undefined || devices.has(name) || devices.has(type),
    );
    if (wanting.length === 0) return undefined;
    const unique = this.#unique(name);
    this.#names.add(unique);
    const time = () => (this.#now() - this.#start) * 1000;
    return new DeviceTracer(unique, wanting, time, () => this.#names.delete(unique));
  }

  #unique(name: string): string {
    if (!this.#names.has(name)) return name;
    let n = 2;
    while (this.#names.has(`${name}#${n}`)) n++;
    return `${name}#${n}`;
  }
}

/** Tells the sinks what one device does. */
export class DeviceTracer implements Tracer {
  readonly device: string;
  readonly #routes: readonly Route[];
  readonly #time: () => number;
  readonly #release: () => void;

  constructor(device: string, routes: readonly Route[], time: () => number, release: () => void) {
    this.device = device;
    this.#routes = routes;
    this.#time = time;
    this.#release = release;
  }

  emit(event: TraceEvent): void {
    const time = this.#time();
    for (const { sink, kinds } of this.#routes)
      if (kinds === undefined || kinds.has(event.kind)) sink.record(time, this.device, event);
  }

  /** The device is gone: its name may be used again. */
  close(): void {
    this.#release();
  }
}
