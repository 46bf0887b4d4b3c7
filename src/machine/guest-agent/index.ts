export { type ExecOptions, type ExecResult, GuestAgentClient } from "./client.ts";
export { GuestControl } from "./control.ts";
export { AGENT_BUS_ID, withAgentPorts } from "./devices.ts";
