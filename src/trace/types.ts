/** What the core knows of traces: events and whom to tell. Sinks are in the files beside; nothing below imports those. */

/** A driver wrote the device status. `names` are those of the bits in `value`, "" for a reset. */
export interface StatusEvent {
  readonly kind: "status";
  readonly value: number;
  readonly names: string;
}

/** Features came into force, or were refused by the device. */
export interface FeaturesEvent {
  readonly kind: "features";
  /** As hexadecimal digits, bit 0 last. */
  readonly features: string;
  readonly accepted: boolean;
}

/** A driver wrote a register of a queue. `register` is its name in the interface that was used. */
export interface QueueRegisterEvent {
  readonly kind: "queue";
  readonly queue: number;
  readonly register: string;
  readonly value: number;
}

/** A queue runs from here on. The areas are guest-physical addresses. */
export interface QueueStartEvent {
  readonly kind: "queue";
  readonly queue: number;
  readonly state: "start";
  readonly format: "split" | "packed";
  readonly size: number;
  readonly descriptorArea: number;
  readonly driverArea: number;
  readonly deviceArea: number;
}

/** A queue does not run any more. */
export interface QueueStopEvent {
  readonly kind: "queue";
  readonly queue: number;
  readonly state: "stop";
}

/** A driver wrote to the configuration, or the device changed it. */
export type ConfigEvent =
  | { readonly kind: "config"; readonly by: "driver"; readonly offset: number; readonly length: number }
  | { readonly kind: "config"; readonly by: "device" };

/** An available buffer notification. `register` is what the driver wrote to; left out where there is none. */
export interface KickEvent {
  readonly kind: "kick";
  readonly queue: number;
  readonly register?: string;
}

/** A chain was taken from the available ring and checked. `readable` and `writable` count its buffers. */
export interface PopEvent {
  readonly kind: "pop";
  readonly queue: number;
  /** Head, or buffer id in a packed ring. */
  readonly head: number;
  readonly readable: number;
  readonly writable: number;
  readonly readableBytes: number;
  readonly writableBytes: number;
}

/** The last `count` chains that were taken are put back; they are taken again later. */
export interface UnpopEvent {
  readonly kind: "unpop";
  readonly queue: number;
  readonly count: number;
}

/** A chain goes to the used ring with this many bytes written. */
export interface PushEvent {
  readonly kind: "push";
  readonly queue: number;
  readonly head: number;
  readonly written: number;
}

/** A notification of the driver, sent or (by a driver) taken: for a used buffer, or without `queue` for a change of configuration. */
export interface InterruptEvent {
  readonly kind: "interrupt";
  readonly queue?: number;
  /** The way it goes, where a device sends it; "none" when the driver mapped no vector. */
  readonly by?: "msix" | "intx" | "irq" | "call" | "none";
  /** MSI-X vector. */
  readonly vector?: number;
}

/** A rule was broken. `fatal`: the device needs a reset. */
export interface FaultEvent {
  readonly kind: "fault";
  readonly reason: string;
  readonly fatal: boolean;
}

/** A request of the device type begins: what the driver asks for. */
export interface RequestBeginEvent {
  readonly kind: "request-begin";
  readonly queue: number;
  readonly head: number;
  /** The spec's name without its prefix ("OUT"), or the number of a type that there is not. */
  readonly type: string | number;
  /** Unit of 512 bytes, where the request has one. */
  readonly sector?: number;
  /** Bytes of data. */
  readonly length: number;
}

/** A request goes along in the I/O that the request with head `into` began. */
export interface MergeEvent {
  readonly kind: "merge";
  readonly queue: number;
  readonly head: number;
  readonly into: number;
}

/** The back end gets an I/O; the same `slot` ends it. */
export interface IoBeginEvent {
  readonly kind: "io-begin";
  readonly slot: number;
  readonly op: string;
  /** Bytes; a flush has none. */
  readonly offset?: number;
  readonly length?: number;
}

export interface IoEndEvent {
  readonly kind: "io-end";
  readonly slot: number;
  readonly result: string;
}

/** A request is answered. */
export interface RequestEndEvent {
  readonly kind: "request-end";
  readonly queue: number;
  readonly head: number;
  /** The spec's name without its prefix ("OK"). */
  readonly status: string;
}

/** A driver added a chain with `out` device-readable and `in` device-writable buffers. */
export interface AddEvent {
  readonly kind: "add";
  readonly queue: number;
  readonly token: number;
  readonly out: number;
  readonly in: number;
}

/** A driver got a used chain back, with this many bytes written. */
export interface GetEvent {
  readonly kind: "get";
  readonly queue: number;
  readonly token: number;
  readonly written: number;
}

export type TraceEvent =
  | StatusEvent
  | FeaturesEvent
  | QueueRegisterEvent
  | QueueStartEvent
  | QueueStopEvent
  | ConfigEvent
  | KickEvent
  | PopEvent
  | UnpopEvent
  | RequestBeginEvent
  | MergeEvent
  | IoBeginEvent
  | IoEndEvent
  | RequestEndEvent
  | PushEvent
  | InterruptEvent
  | FaultEvent
  | AddEvent
  | GetEvent;

export type TraceKind = TraceEvent["kind"];

/**
 * Whom a device or a driver tells what it does; undefined where nobody asked. An event is made only for a tracer that is there: a hook
 * is the statement `this.tracer?.emit({...})`, which costs one comparison while tracing is off.
 */
export interface Tracer {
  emit(event: TraceEvent): void;
}
