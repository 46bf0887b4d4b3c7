import type { EventEmitter } from "node:events";
import * as fs from "node:fs";
import { Socket } from "node:net";
import type { Environment } from "../../common/environment.ts";
import { VirtkitError } from "../../common/error.ts";
import { RateLimitedLog } from "./environment.ts";
import { StreamCharBackend } from "./stream-char.ts";

export interface FileCharOptions {
  readonly path: string;
  readonly environment: Environment;
  /** Keep what is in the file. Default false: it is emptied. */
  readonly append?: boolean;
  /** A file whose bytes the guest reads. */
  readonly inputPath?: string;
}

/**
 * A character back end that writes to a file and, with `inputPath`, reads from another.
 * @throws ERR_VIRTKIT_CHARDEV_OPEN naming the path
 */
export async function openFileChar(options: FileCharOptions): Promise<StreamCharBackend> {
  const { path, environment, append = false, inputPath } = options;
  const output = fs.createWriteStream(path, { flags: append ? "a" : "w" });
  await opened(output, `path=${path}`);
  const input = inputPath === undefined ? undefined : fs.createReadStream(inputPath);
  try {
    if (input !== undefined) await opened(input, `input-path=${inputPath}`);
  } catch (error) {
    output.destroy();
    throw error;
  }
  const log = new RateLimitedLog(environment);
  const backend = new StreamCharBackend(path);
  output.on("error", (error) => {
    log.log("warn", `${path}: ${error.message}; what the guest writes is lost`);
    backend.disconnect();
  });
  input?.on("error", (error) => log.log("warn", `${inputPath}: ${error.message}`));
  backend.connect(input, output);
  return backend;
}

/**
 * A character back end over two FIFOs: the guest reads `path`.in and writes `path`.out.
 * @throws ERR_VIRTKIT_CHARDEV_OPEN naming the path
 */
export async function openPipeChar(path: string): Promise<StreamCharBackend> {
  const input = await openFifo(`${path}.in`, true);
  const output = await openFifo(`${path}.out`, false).catch((error: unknown) => {
    input.destroy();
    throw error;
  });
  const backend = new StreamCharBackend(path);
  for (const socket of [input, output]) {
    socket.on("error", () => socket.destroy());
    socket.on("close", () => backend.disconnect());
  }
  backend.connect(input, output);
  return backend;
}

async function openFifo(path: string, reads: boolean): Promise<Socket> {
  // Both ways, so that it neither waits for somebody at the other end nor ends with them.
  const flags = fs.constants.O_RDWR | fs.constants.O_NONBLOCK;
  try {
    if (!(await fs.promises.stat(path)).isFIFO()) throw new Error("it is no FIFO");
    const handle = await new Promise<number>((resolve, reject) =>
      fs.open(path, flags, (error, fd) => (error ? reject(error) : resolve(fd))),
    );
    return new Socket({ fd: handle, readable: reads, writable: !reads });
  } catch (error) {
    throw chardevError(`path=${path}`, error, `make it with: mkfifo ${path}`);
  }
}

function opened(stream: fs.ReadStream | fs.WriteStream, what: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const emitter: EventEmitter = stream;
    emitter.once("error", (error: Error) => reject(chardevError(what, error)));
    emitter.once("open", () => {
      emitter.removeAllListeners("error");
      resolve();
    });
  });
}

/** The error of a character back end that cannot be opened. `what` is the option. */
export function chardevError(what: string, cause: unknown, hint?: string): VirtkitError {
  const why = cause instanceof Error ? cause.message : String(cause);
  const more = hint === undefined ? "" : `; ${hint}`;
  return new VirtkitError("ERR_VIRTKIT_CHARDEV_OPEN", `${what} cannot be opened: ${why}${more}`, { cause });
}
