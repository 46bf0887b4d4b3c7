import { closeSync, constants, fstatSync, openSync, readSync } from "node:fs";
import { openDisk } from "../../backend/block/open-disk.ts";
import type { BlockBackend } from "../../backend/block/types.ts";
import { NullCharBackend } from "../../backend/char/null.ts";
import { RingCharBackend } from "../../backend/char/ringbuf.ts";
import type { CharBackend } from "../../backend/char/types.ts";
import type { EntropySource } from "../../backend/entropy/types.ts";
import type { Environment } from "../../common/environment.ts";
import { VirtkitError } from "../../common/error.ts";
import type { BackendFactory, EntropyOptions } from "../../machine/backend-factory.ts";
import type { ChardevOptions, DriveOptions, ModuleDrive, StdioChardev } from "../../machine/description.ts";
import { createEntropySource } from "./entropy.ts";
import { FileBlockBackend } from "./file-block.ts";
import { openFileChar, openPipeChar } from "./file-char.ts";
import { probeFormat } from "./image-format.ts";
import { openOverlay } from "./scratch-file.ts";
import { openSocketChar } from "./socket-char.ts";
import { Terminal, type TerminalOptions } from "./terminal.ts";
import { loadUserModule, waitAtMost } from "./user-module.ts";

export interface NodeBackendOptions extends Pick<TerminalOptions, "input" | "output" | "onQuit" | "onInterrupt"> {
  readonly environment: Environment;
  /** Ends the waiting for users' modules. */
  readonly signal?: AbortSignal;
}

/** Back ends of files, sockets and the terminal, in Node. */
export class NodeBackends implements BackendFactory {
  readonly #options: NodeBackendOptions;
  #terminal: Terminal | undefined;

  constructor(options: NodeBackendOptions) {
    this.#options = options;
  }

  /** The terminal, once a stdio chardev was opened. */
  get terminal(): Terminal | undefined {
    return this.#terminal;
  }

  /** @throws ERR_VIRTKIT_IMAGE_*, ERR_VIRTKIT_IMAGE_FORMAT when the image is not raw, ERR_VIRTKIT_MODULE */
  async openDrive(options: DriveOptions): Promise<BlockBackend> {
    const { source, locking, cache, format, discard } = options;
    if ("backend" in source) return source.backend;
    if ("module" in source) return this.#openModule(source, options);
    const { environment } = this.#options;
    const path = source.file;
    const { noFlush } = cache;
    const overlay = options.snapshot === true && !options.readOnly;
    const readOnly = options.readOnly || overlay;
    const backend = await FileBlockBackend.open({ path, environment, readOnly, locking, noFlush, discard });
    try {
      if (format === undefined) await this.#checkFormat(path);
    } catch (error) {
      await backend.close();
      throw error;
    }
    return overlay ? openOverlay(backend, { environment }) : backend;
  }

  async #openModule({ module, options, timeout }: ModuleDrive, drive: DriveOptions): Promise<BlockBackend> {
    const { signal } = this.#options;
    const environment = awake(this.#options.environment);
    const overlay = drive.snapshot === true && !drive.readOnly;
    const source = typeof module === "string" ? await loadUserModule(module, { limit: timeout, signal }) : module;
    const patience = waitAtMost(0, signal, () => new Error());
    const backend = await openDisk(source, {
      environment,
      name: typeof module === "string" ? module : `drive '${drive.id}'`,
      options,
      timeout,
      readOnly: drive.readOnly || overlay,
      noFlush: drive.cache.noFlush,
      stopped: patience.over,
    }).finally(() => patience.end());
    return overlay ? openOverlay(backend, { environment }) : backend;
  }

  /** @throws ERR_VIRTKIT_CHARDEV_OPEN */
  async openChardev({ id, backend }: ChardevOptions): Promise<CharBackend> {
    const { environment } = this.#options;
    switch (backend.type) {
      case "open":
        return backend.backend;
      case "null":
        return new NullCharBackend(id);
      case "ringbuf":
        return new RingCharBackend(backend.size, id);
      case "stdio":
        return this.#openTerminal(backend).channel(id);
      case "pipe":
        return openPipeChar(backend.path);
      case "socket":
        return openSocketChar({ ...backend, environment });
      case "file": {
        const { path, append, inputPath } = backend;
        return openFileChar({ path, append, environment, ...(inputPath === undefined ? {} : { inputPath }) });
      }
    }
  }

  /** @throws ERR_VIRTKIT_MODULE */
  async loadModule(file: string): Promise<unknown> {
    return loadUserModule(file, { signal: this.#options.signal });
  }

  /** @throws ERR_VIRTKIT_RNG_OPEN when a file cannot be read, or is no device */
  async openEntropy(options: EntropyOptions): Promise<EntropySource> {
    return options.type === "builtin" ? createEntropySource() : openRandomDevice(options.path);
  }

  #openTerminal({ mux, signal }: StdioChardev): Terminal {
    const { environment: _, signal: _abort, ...streams } = this.#options;
    this.#terminal = new Terminal({ ...streams, mux, signal });
    return this.#terminal;
  }

  async #checkFormat(path: string): Promise<void> {
    const format = await probeFormat(path);
    if (format !== "raw") {
      const raw = `${path.replace(/\.[^./]*$/, "")}.raw`;
      throw new VirtkitError(
        "ERR_VIRTKIT_IMAGE_FORMAT",
        `file=${path} is a ${format} image, and only raw ones are supported; convert it: qemu-img convert -O raw ${path} ${raw}`,
      );
    }
    const log = this.#options.environment.log;
    log.log("warn", `${path}: no format was given, and it looks raw; say so with format=raw`);
  }
}

/** With timers that keep the program alive: it must not end while a user's code is waited for. */
const awake = (environment: Environment): Environment => ({
  ...environment,
  after: (milliseconds, task) => {
    const timer = setTimeout(task, milliseconds);
    return () => clearTimeout(timer);
  },
});

/**
 * Random bytes from a device such as /dev/urandom or /dev/hwrng. One that has none at the moment must not stop the machine: the rest
 * comes from the operating system's generator, which is as good.
 */
function openRandomDevice(path: string): EntropySource {
  const fallback = createEntropySource();
  const open = (): number => openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
  checkRandomDevice(path, open);
  return {
    name: path,
    fill: (into) => {
      const filled = readSome(open, into);
      if (filled < into.length) fallback.fill(into.subarray(filled));
    },
  };
}

/** Reads what the device has; 0 when it cannot be read now. */
function readSome(open: () => number, into: Uint8Array): number {
  let filled = 0;
  let fd: number | undefined;
  try {
    fd = open();
    for (let read = -1; read !== 0 && filled < into.length; filled += read)
      read = readSync(fd, into, filled, into.length - filled, null);
  } catch {
    // It has no more at the moment (EAGAIN), or it failed.
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
  return filled;
}

function checkRandomDevice(path: string, open: () => number): void {
  const wrong = (why: string, cause?: unknown) =>
    new VirtkitError("ERR_VIRTKIT_RNG_OPEN", `filename=${path}: ${why}; give a device such as /dev/urandom`, { cause });
  let fd: number;
  try {
    fd = open();
  } catch (error) {
    throw wrong(error instanceof Error ? error.message : String(error), error);
  }
  try {
    if (!fstatSync(fd).isCharacterDevice()) throw wrong("it is no device");
  } finally {
    closeSync(fd);
  }
}
