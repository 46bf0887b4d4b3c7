export { type LoopbackOptions, LoopbackTransport } from "./transport.ts";
