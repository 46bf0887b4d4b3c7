export { type CharStream, MemoryCharBackend } from "./memory.ts";
export { NullCharBackend } from "./null.ts";
export { RingCharBackend } from "./ringbuf.ts";
export type { CharBackend, CharSink } from "./types.ts";
