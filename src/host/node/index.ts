export { type NodeBackendOptions, NodeBackends } from "./backend-factory.ts";
export { ControlSocket, type ControlSocketOptions } from "./control-socket.ts";
export { createEntropySource } from "./entropy.ts";
export { createEnvironment, createLogger } from "./environment.ts";
export { FileBlockBackend } from "./file-block.ts";
export * from "./guest/index.ts";
