import type { TraceEvent } from "./types.ts";

/** No event may have a field of a line's own name. */
interface Unlike {
  readonly time?: never;
  readonly device?: never;
}

/**
 * An event as a line of a trace file: a JSON object with `time` (microseconds from the start of tracing, in tenths), `device`,
 * `kind` and what the kind has, and a newline.
 */
export function traceLine(time: number, device: string, event: TraceEvent & Unlike): string {
  const micros = Math.round(time * 10) / 10;
  return `{"time":${micros},"device":${JSON.stringify(device)},${JSON.stringify(event).slice(1)}\n`;
}
