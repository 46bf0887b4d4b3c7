import { lstatSync, rmSync, unlinkSync } from "node:fs";
import * as net from "node:net";
import { dirname } from "node:path";
import type { Environment } from "../../common/environment.ts";
import { VirtkitError } from "../../common/error.ts";
import type { ControlServer } from "../../machine/control/server.ts";
import type { ControlSession } from "../../machine/control/session.ts";
import type { SocketAddress } from "./socket-char.ts";

export interface ControlSocketOptions {
  readonly server: ControlServer;
  readonly address: SocketAddress;
  readonly environment: Environment;
}

/** Clients that may wait until the one before them has gone. */
const MAX_WAITING = 16;
/** Bytes that a client may leave unread before it is let go. */
const MAX_UNREAD = 4 * 1024 * 1024;
/** Bytes of a Unix socket's path, of 108 with the zero at its end. */
const PATH_MAX = 107;
/** Milliseconds that the last client gets to read what was sent, at the end. */
const LINGER = 1000;
/** What a web browser sends first: a page must not command a machine through a port of the loopback interface. */
const HTTP = /^[A-Z]+ \S+ HTTP\/\d/;

/**
 * A Unix or TCP socket in front of a {@link ControlServer}: one client at a time, others wait for their turn. The file of a Unix
 * socket goes when it is closed; one that a program of before left behind is replaced.
 */
export class ControlSocket {
  readonly #options: ControlSocketOptions;
  readonly #where: string;
  readonly #waiting: net.Socket[] = [];
  #server: net.Server | undefined;
  #socket: net.Socket | undefined;
  #closed = false;
  /** For a program that ends without closing. */
  readonly #remove = (): void => {
    const { address } = this.#options;
    if ("path" in address) rmSync(address.path, { force: true });
  };
  /** While the client's end is full: resolves when it takes more. */
  #full: Promise<void> | undefined;
  #connected: () => void = () => {};
  /** Resolves when the first client is there, or the socket is closed. */
  readonly firstClient: Promise<void>;

  /** @throws ERR_VIRTKIT_CONTROL_SOCKET naming the address, and why it cannot be listened on */
  static async open(options: ControlSocketOptions): Promise<ControlSocket> {
    const socket = new ControlSocket(options);
    await socket.#listen();
    return socket;
  }

  private constructor(options: ControlSocketOptions) {
    const { address } = options;
    this.#options = options;
    this.#where = "path" in address ? `unix:${address.path}` : `tcp:${address.host}:${address.port}`;
    this.firstClient = new Promise((resolve) => {
      this.#connected = resolve;
    });
  }

  /** The port that is listened on; undefined for a Unix socket. */
  get port(): number | undefined {
    const address = this.#server?.address();
    return typeof address === "object" ? address?.port : undefined;
  }

  /** No more clients; the present one gets what was sent to it. Idempotent. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    this.#connected();
    for (const waiting of this.#waiting.splice(0)) waiting.destroy();
    const socket = this.#socket;
    const server = this.#server;
    const closed = new Promise<void>((resolve) => (server === undefined ? resolve() : server.close(() => resolve())));
    if (socket !== undefined && !socket.destroyed) {
      const timer = setTimeout(() => socket.destroy(), LINGER);
      socket.once("close", () => clearTimeout(timer));
      // The client may have more to say, which nobody will read.
      socket.end(() => socket.destroy());
    }
    await closed;
    process.off("exit", this.#remove);
  }

  async #listen(): Promise<void> {
    const { address } = this.#options;
    // Node would cut it off without a word.
    if ("path" in address && Buffer.byteLength(address.path) > PATH_MAX)
      throw inTheWay(address.path, `a socket's path has at most ${PATH_MAX} bytes`);
    // Node calls this a lack of permission.
    if ("path" in address && lstatSync(dirname(address.path), { throwIfNoEntry: false }) === undefined)
      throw inTheWay(address.path, "no such directory");
    try {
      await this.#listenOnce().catch(async (error: NodeJS.ErrnoException) => {
        if (error.code !== "EADDRINUSE" || !("path" in address)) throw error;
        await removeStale(address.path);
        await this.#listenOnce();
      });
    } catch (error) {
      if (error instanceof VirtkitError) throw error;
      const why = error instanceof Error ? error.message : String(error);
      throw new VirtkitError("ERR_VIRTKIT_CONTROL_SOCKET", `${this.#where} cannot be listened on: ${why}`, {
        cause: error,
      });
    }
  }

  #listenOnce(): Promise<void> {
    const server = net.createServer({ allowHalfOpen: true }, (socket) => this.#accept(socket));
    return new Promise((resolve, reject) => {
      server.once("error", reject);
      server.listen(this.#options.address, () => {
        server.removeListener("error", reject);
        server.on("error", () => undefined);
        this.#server = server;
        process.on("exit", this.#remove);
        resolve();
      });
    });
  }

  #accept(socket: net.Socket): void {
    socket.on("error", () => socket.destroy());
    if (this.#closed || this.#waiting.length >= MAX_WAITING) socket.destroy();
    else if (this.#socket === undefined) this.#serve(socket);
    else {
      socket.once("close", () => {
        const at = this.#waiting.indexOf(socket);
        if (at >= 0) this.#waiting.splice(at, 1);
      });
      this.#waiting.push(socket);
    }
  }

  #serve(socket: net.Socket): void {
    const { server } = this.#options;
    this.#socket = socket;
    socket.setNoDelay(true);
    const session = server.connect({
      send: (text) => this.#send(socket, text),
      resume: () => socket.resume(),
    });
    let isFirst = true;
    socket.on("data", (bytes: Uint8Array) => {
      if (isFirst && HTTP.test(new TextDecoder("latin1").decode(bytes.subarray(0, 256)))) {
        socket.destroy();
        return;
      }
      isFirst = false;
      if (!session.receive(bytes)) socket.pause();
    });
    socket.once("end", () => void this.#ended(session, socket));
    socket.once("close", () => this.#gone(session));
    this.#connected();
  }

  /** The client has said all: it still gets the replies that are due. */
  async #ended(session: ControlSession, socket: net.Socket): Promise<void> {
    await session.idle();
    socket.end();
  }

  #send(socket: net.Socket, text: string): Promise<void> | undefined {
    if (socket.destroyed || socket.writableEnded) return undefined;
    if (socket.writableLength > MAX_UNREAD) {
      this.#options.environment.log.log("warn", `control socket ${this.#where}: the client does not read; let go`);
      socket.destroy();
      return undefined;
    }
    if (!socket.write(text)) this.#full ??= this.#drained(socket);
    return this.#full;
  }

  #drained(socket: net.Socket): Promise<void> {
    return new Promise((resolve) => {
      const done = (): void => {
        this.#full = undefined;
        socket.off("drain", done).off("close", done);
        resolve();
      };
      socket.on("drain", done).on("close", done);
    });
  }

  #gone(session: ControlSession): void {
    this.#options.server.disconnect(session);
    this.#socket = undefined;
    const next = this.#waiting.shift();
    if (next !== undefined && !this.#closed) this.#serve(next);
  }
}

const inTheWay = (path: string, why: string): VirtkitError =>
  new VirtkitError("ERR_VIRTKIT_CONTROL_SOCKET", `unix:${path} cannot be listened on: ${why}`);

/** Removes a socket that nobody listens on any more. @throws ERR_VIRTKIT_CONTROL_SOCKET when that is not what is in the way */
async function removeStale(path: string): Promise<void> {
  const stat = lstatSync(path, { throwIfNoEntry: false });
  if (stat === undefined) return;
  if (!stat.isSocket()) throw inTheWay(path, "there is a file of that name that is no socket; choose another path");
  const alive = await new Promise<boolean>((resolve) => {
    const probe = net.connect(path);
    probe.once("connect", () => {
      probe.destroy();
      resolve(true);
    });
    probe.once("error", ({ code }: NodeJS.ErrnoException) => resolve(code !== "ECONNREFUSED"));
  });
  if (alive) throw inTheWay(path, "another program listens there; choose another path");
  unlinkSync(path);
}
