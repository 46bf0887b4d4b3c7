import { unlink } from "node:fs/promises";
import * as net from "node:net";
import type { Environment } from "../../common/environment.ts";
import { chardevError } from "./file-char.ts";
import { StreamCharBackend } from "./stream-char.ts";

export type SocketAddress = { readonly path: string } | { readonly host: string; readonly port: number };

export interface SocketCharOptions {
  readonly address: SocketAddress;
  readonly environment: Environment;
  /** Listen, instead of connecting. Default false. */
  readonly server?: boolean;
  /** As a server: open only once somebody has connected. Default true. */
  readonly wait?: boolean;
  /** Send small pieces at once (TCP_NODELAY). Default true. */
  readonly noDelay?: boolean;
  /** As a client: seconds until the next attempt when the connection is lost; 0, the default, for none. */
  readonly reconnect?: number;
}

/** Clients that may wait until the one before them has gone. */
const MAX_WAITING = 16;

/**
 * A character back end over a Unix or TCP socket. A server has one client at a time; others wait their turn.
 * @throws ERR_VIRTKIT_CHARDEV_OPEN naming path= or host=,port=
 */
export async function openSocketChar(options: SocketCharOptions): Promise<StreamCharBackend> {
  const backend = new SocketCharBackend(options);
  await (options.server === true ? backend.listen() : backend.dial());
  return backend;
}

class SocketCharBackend extends StreamCharBackend {
  readonly #options: SocketCharOptions;
  readonly #where: string;
  #server: net.Server | undefined;
  #socket: net.Socket | undefined;
  readonly #waiting: net.Socket[] = [];
  #cancel: (() => void) | undefined;
  #closed = false;
  #firstClient: (() => void) | undefined;

  constructor(options: SocketCharOptions) {
    const { address } = options;
    const where = "path" in address ? `path=${address.path}` : `host=${address.host},port=${address.port}`;
    super(where);
    this.#options = options;
    this.#where = where;
  }

  async listen(): Promise<void> {
    await this.#listenOnce().catch(async (error: NodeJS.ErrnoException) => {
      if (!(await this.#removeStale(error))) throw chardevError(this.#where, error);
      await this.#listenOnce().catch((again: unknown) => {
        throw chardevError(this.#where, again);
      });
    });
    if (this.#options.wait === false || this.connected) return;
    this.#options.environment.log.log("info", `${this.#where}: waiting for a connection`);
    await new Promise<void>((resolve) => {
      this.#firstClient = resolve;
    });
  }

  async dial(): Promise<void> {
    const { reconnect = 0 } = this.#options;
    try {
      await this.#dialOnce();
    } catch (error) {
      if (reconnect === 0) throw chardevError(this.#where, error);
      this.#dialLater();
    }
  }

  override async close(): Promise<void> {
    this.#closed = true;
    this.#cancel?.();
    for (const waiting of this.#waiting.splice(0)) waiting.destroy();
    const socket = this.#socket;
    const server = this.#server;
    await super.close();
    socket?.destroy();
    if (server !== undefined) await new Promise<void>((resolve) => server.close(() => resolve()));
    this.#firstClient?.();
  }

  #listenOnce(): Promise<void> {
    const server = net.createServer((socket) => this.#accept(socket));
    return new Promise((resolve, reject) => {
      server.once("error", reject);
      server.listen(this.#options.address, () => {
        server.removeListener("error", reject);
        server.on("error", () => undefined);
        this.#server = server;
        resolve();
      });
    });
  }

  /** A socket file that nobody listens on any more is in the way: true when it was removed. */
  async #removeStale(error: NodeJS.ErrnoException): Promise<boolean> {
    const { address } = this.#options;
    if (error.code !== "EADDRINUSE" || !("path" in address)) return false;
    const alive = await new Promise<boolean>((resolve) => {
      const probe = net.connect(address.path);
      probe.once("connect", () => {
        probe.destroy();
        resolve(true);
      });
      probe.once("error", ({ code }: NodeJS.ErrnoException) => resolve(code !== "ECONNREFUSED"));
    });
    if (!alive) await unlink(address.path).catch(() => undefined);
    return !alive;
  }

  #accept(socket: net.Socket): void {
    if (this.#socket === undefined) this.#use(socket);
    else if (this.#waiting.length < MAX_WAITING) this.#hold(socket);
    else socket.destroy();
  }

  #hold(socket: net.Socket): void {
    socket.on("error", () => socket.destroy());
    socket.once("close", () => {
      const at = this.#waiting.indexOf(socket);
      if (at >= 0) this.#waiting.splice(at, 1);
    });
    this.#waiting.push(socket);
  }

  #dialOnce(): Promise<void> {
    return new Promise((resolve, reject) => {
      const socket = net.connect(this.#options.address as net.NetConnectOpts);
      socket.once("error", reject);
      socket.once("connect", () => {
        socket.removeListener("error", reject);
        this.#use(socket);
        resolve();
      });
    });
  }

  #dialLater(): void {
    const { environment, reconnect = 0 } = this.#options;
    if (this.#closed || reconnect === 0) return;
    this.#cancel = environment.after(reconnect * 1000, () => {
      this.#dialOnce().catch(() => this.#dialLater());
    });
  }

  #use(socket: net.Socket): void {
    if (this.#closed) {
      socket.destroy();
      return;
    }
    this.#socket = socket;
    socket.setNoDelay(this.#options.noDelay ?? true);
    socket.on("error", () => socket.destroy());
    socket.once("close", () => this.#gone(socket));
    socket.once("end", () => socket.end());
    this.connect(socket, socket);
    this.#firstClient?.();
    this.#firstClient = undefined;
  }

  #gone(socket: net.Socket): void {
    if (this.#socket !== socket) return;
    this.#socket = undefined;
    this.disconnect();
    const next = this.#waiting.shift();
    if (next !== undefined) this.#use(next);
    else if (this.#server === undefined) this.#dialLater();
  }
}
