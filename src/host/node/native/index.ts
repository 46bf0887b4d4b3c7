/**
 * The native add-on, typed: descriptors over sockets, shared memory, event descriptors, io_uring and what else Node lacks on Linux.
 * Importing it loads nothing; the first call does, and throws ERR_VIRTKIT_NATIVE where the add-on is not built.
 *
 * All of it belongs to the thread that made it. A worker that ends, or is terminated, gives its watches, rings and mappings back, but
 * descriptors are numbers of the process: close them before.
 */
export { EventDescriptor } from "./events.ts";
export * from "./files.ts";
export { nativeProblem } from "./load.ts";
export * from "./memory.ts";
export { type DescriptorEvents, DescriptorWatch, type WatchOptions } from "./poll.ts";
export * from "./sockets.ts";
export * from "./table.ts";
export * from "./tap.ts";
export { type OnCompletions, Uring } from "./uring.ts";
