export { traceLine } from "./json-lines.ts";
export { LatencyHistogram } from "./latency.ts";
export { type QueueStats, TraceStats } from "./stats.ts";
export { statsTable } from "./stats-table.ts";
export { DeviceTracer, TRACE_KINDS, type TraceFilter, type TraceSink, Tracing } from "./tracing.ts";
export type * from "./types.ts";
