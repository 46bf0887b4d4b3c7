export { type ExecOptions, type ExecResult, GuestAgentClient } from "./client.ts";
export { withAgentPorts } from "./devices.ts";
