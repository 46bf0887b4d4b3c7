import { Worker, type WorkerOptions } from "node:worker_threads";

/** A worker whose file is TypeScript: Node 20 gives workers no loader of their own. */
export function typescriptWorker(file: URL, options: WorkerOptions = {}): Worker {
  const loader = JSON.stringify(import.meta.resolve("tsx/esm/api"));
  const code = `import(${loader}).then(({ register }) => (register(), import(${JSON.stringify(file.href)})));`;
  return new Worker(code, { ...options, eval: true });
}
