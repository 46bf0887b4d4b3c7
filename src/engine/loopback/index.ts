export { type LoopbackAttachment, LoopbackMachine, type LoopbackMachineOptions } from "./machine.ts";
