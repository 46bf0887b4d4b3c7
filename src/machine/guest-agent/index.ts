export {
  type ExecOptions,
  type ExecResult,
  GuestAgentClient,
  type GuestAgentOptions,
  type OutputHandler,
} from "./client.ts";
export { quote } from "./command.ts";
export { AGENT_PORT_NAMES } from "./ports.ts";
