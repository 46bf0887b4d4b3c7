/** What the core needs of the world around it; host/node and host/web implement it from above. */
export interface Environment {
  /** Runs `task` in a later turn of the event loop, as soon as there is one. */
  defer(task: () => void): void;
  /** Runs `task` once, `milliseconds` from now or a little later; does not keep the program alive. Returns how to call it off. */
  after(milliseconds: number, task: () => void): () => void;
  /** Milliseconds from some fixed point, never going back. */
  now(): number;
  readonly log: Logger;
}

export type LogLevel = "debug" | "info" | "warn" | "error";

export interface Logger {
  log(level: LogLevel, message: string): void;
}

/** A logger that says nothing. */
export const SILENT: Logger = { log: () => undefined };
