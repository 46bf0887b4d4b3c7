import { VirtkitError } from "../../../common/error.ts";
import { checked, describeErrno, EAGAIN, EMSGSIZE, loadNative } from "./load.ts";
import { DescriptorWatch } from "./poll.ts";

const NO_DESCRIPTORS = new Int32Array(0);

/** Descriptors that one message may carry: the limit of Linux. */
export const MAX_DESCRIPTORS = 253;

/** Closes descriptors that nobody took. */
export function closeDescriptors(fds: Iterable<number>): void {
  for (const fd of fds) loadNative().closeDescriptor(fd);
}

/** A second descriptor for the same open file, closed on exec. */
export function duplicateDescriptor(fd: number): number {
  return checked(loadNative().duplicate(fd), `duplicating descriptor ${fd}`);
}

interface Receiving {
  readonly into: Uint8Array;
  done: number;
  /** [number of descriptors, descriptors...] of one call. */
  readonly scratch: Int32Array;
  readonly fds: number[];
  resolve(fds: number[] | undefined): void;
  reject(error: Error): void;
}

interface Sending {
  readonly bytes: Uint8Array;
  done: number;
  readonly fds: Int32Array;
  resolve(): void;
  reject(error: Error): void;
}

/**
 * A connected UNIX stream socket whose messages may carry descriptors. It reads exactly what was asked for, so that no descriptor
 * comes with the bytes of another message. Nothing blocks.
 */
export class DescriptorSocket {
  readonly fd: number;
  #watch: DescriptorWatch | undefined;
  #receiving: Receiving | undefined;
  readonly #sending: Sending[] = [];
  #closed = false;

  /** @param fd a connected socket, which belongs to this from now on */
  constructor(fd: number) {
    this.fd = fd;
  }

  /**
   * Connects to a listening socket.
   * @param path of at most 107 bytes; one that begins with a zero byte is an abstract name
   * @throws ERR_VIRTKIT_SOCKET when nobody listens there
   */
  static connect(path: string): DescriptorSocket {
    return new DescriptorSocket(socketResult(loadNative().socketConnect(checkPath(path)), "connecting to", path));
  }

  /** Two sockets that are connected to each other. */
  static pair(): [DescriptorSocket, DescriptorSocket] {
    const fds = new Int32Array(2);
    checked(loadNative().socketPair(fds), "creating a pair of sockets");
    return [new DescriptorSocket(fds[0] as number), new DescriptorSocket(fds[1] as number)];
  }

  get closed(): boolean {
    return this.#closed;
  }

  /**
   * Fills `into`, one call at a time.
   * @param maxDescriptors how many may come with these bytes
   * @returns the descriptors that came, which are the caller's to close; undefined when the peer ended before the first byte
   * @throws ERR_VIRTKIT_SOCKET_SHORT when the peer ended in the middle, ERR_VIRTKIT_SOCKET_DESCRIPTORS when more descriptors came
   *   than may (they are closed), ERR_VIRTKIT_SOCKET when the connection broke, ERR_VIRTKIT_SOCKET_CLOSED after {@link close}
   */
  receive(into: Uint8Array, maxDescriptors = 0): Promise<number[] | undefined> {
    if (this.#closed) return Promise.reject(closedError());
    if (this.#receiving !== undefined)
      return Promise.reject(
        new VirtkitError("ERR_VIRTKIT_SOCKET_BUSY", "receive one message at a time: await the receive before this"),
      );
    return new Promise((resolve, reject) => {
      const scratch = new Int32Array(1 + Math.min(maxDescriptors, MAX_DESCRIPTORS));
      this.#receiving = { into, done: 0, scratch, fds: [], resolve, reject };
      this.#receive();
      this.#wait();
    });
  }

  /**
   * Sends all of `bytes`, after what was sent before; resolves once the kernel has them. The descriptors go with the first byte and stay
   * the caller's, who may close them after that.
   * @throws ERR_VIRTKIT_SOCKET when the peer is gone, ERR_VIRTKIT_SOCKET_CLOSED after {@link close}
   */
  send(bytes: Uint8Array, descriptors: readonly number[] = []): Promise<void> {
    if (this.#closed) return Promise.reject(closedError());
    return new Promise((resolve, reject) => {
      const fds = descriptors.length === 0 ? NO_DESCRIPTORS : Int32Array.from(descriptors);
      this.#sending.push({ bytes, done: 0, fds, resolve, reject });
      this.#send();
      this.#wait();
    });
  }

  /** Closes the descriptor; what waits is rejected with ERR_VIRTKIT_SOCKET_CLOSED. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#watch?.stop();
    this.#watch = undefined;
    loadNative().closeDescriptor(this.fd);
    this.#failReceive(closedError());
    for (const sending of this.#sending.splice(0)) sending.reject(closedError());
  }

  /** The loop waits only for what somebody waits for: a socket that nobody reads must not keep it busy. */
  #wait(): void {
    if (this.#closed) return;
    const readable = this.#receiving !== undefined;
    const writable = this.#sending.length > 0;
    if (this.#watch !== undefined) this.#watch.change(readable, writable);
    else if (readable || writable) {
      this.#watch = new DescriptorWatch(this.fd, { readable, writable }, ({ error }) => {
        if (error !== undefined) return this.#broken(error);
        this.#receive();
        this.#send();
        this.#wait();
      });
    }
  }

  #broken(why: string): void {
    const error = new VirtkitError("ERR_VIRTKIT_SOCKET", `the connection broke: ${why}`);
    this.#failReceive(error);
    for (const sending of this.#sending.splice(0)) sending.reject(error);
  }

  #receive(): void {
    const receiving = this.#receiving;
    if (receiving === undefined) return;
    const { into, scratch, fds } = receiving;
    while (receiving.done < into.length) {
      const n = loadNative().socketReceive(this.fd, into, receiving.done, into.length - receiving.done, scratch);
      if (n === -EAGAIN) return;
      for (let i = 1; n > 0 && i <= (scratch[0] as number); i++) fds.push(scratch[i] as number);
      if (n > 0 && fds.length < scratch.length) receiving.done += n;
      else if (n === -EMSGSIZE || n > 0) {
        const code = "ERR_VIRTKIT_SOCKET_DESCRIPTORS";
        this.#failReceive(new VirtkitError(code, "a message came with more descriptors than it may have"));
        return;
      } else if (n === 0) {
        this.#ended(receiving);
        return;
      } else {
        this.#broken(describeErrno(n));
        return;
      }
    }
    this.#received(fds);
  }

  #ended(receiving: Receiving): void {
    if (receiving.done === 0) {
      this.#received(undefined);
      return;
    }
    const message = `the peer ended in the middle of a message: ${receiving.done} of ${receiving.into.length} bytes came`;
    this.#failReceive(new VirtkitError("ERR_VIRTKIT_SOCKET_SHORT", message));
  }

  #received(fds: number[] | undefined): void {
    const receiving = this.#receiving;
    this.#receiving = undefined;
    receiving?.resolve(fds);
  }

  #failReceive(error: Error): void {
    const receiving = this.#receiving;
    if (receiving === undefined) return;
    this.#receiving = undefined;
    closeDescriptors(receiving.fds);
    receiving.reject(error);
  }

  #send(): void {
    const native = loadNative();
    for (let sending = this.#sending[0]; sending !== undefined; sending = this.#sending[0]) {
      const { bytes, fds } = sending;
      const count = sending.done === 0 ? fds.length : 0;
      const n = native.socketSend(this.fd, bytes, sending.done, bytes.length - sending.done, fds, count);
      if (n === -EAGAIN) return;
      if (n < 0) {
        this.#broken(describeErrno(n));
        return;
      }
      sending.done += n;
      if (sending.done < bytes.length) continue;
      this.#sending.shift();
      sending.resolve();
    }
  }
}

/** A UNIX socket that others connect to. */
export class DescriptorListener {
  readonly fd: number;
  #watch: DescriptorWatch | undefined;
  #closed = false;

  /** @param fd a listening socket, which belongs to this from now on (socket activation) */
  constructor(fd: number) {
    this.fd = fd;
  }

  /**
   * Creates the socket file and listens.
   * @throws ERR_VIRTKIT_SOCKET when that cannot be done; a file that is there already is not replaced
   */
  static listen(path: string, backlog = 16): DescriptorListener {
    const fd = socketResult(loadNative().socketListen(checkPath(path), backlog), "listening on", path);
    return new DescriptorListener(fd);
  }

  /** Calls back with each connection. A failure of one (no descriptors left) goes to `onError`, and it listens on. */
  accept(onConnection: (socket: DescriptorSocket) => void, onError: (error: Error) => void): void {
    this.#watch?.stop();
    this.#watch = new DescriptorWatch(this.fd, {}, ({ error }) => {
      if (error !== undefined) return onError(new VirtkitError("ERR_VIRTKIT_SOCKET", `no more connections: ${error}`));
      const fd = loadNative().socketAccept(this.fd);
      if (fd >= 0) onConnection(new DescriptorSocket(fd));
      else if (fd !== -EAGAIN)
        onError(new VirtkitError("ERR_VIRTKIT_SOCKET", `accepting a connection: ${describeErrno(fd)}`));
    });
  }

  /** Stops listening; the socket file stays. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#watch?.stop();
    loadNative().closeDescriptor(this.fd);
  }
}

const MAX_PATH = 107;

function checkPath(path: string): string {
  if (Buffer.byteLength(path) <= MAX_PATH) return path;
  throw new VirtkitError("ERR_VIRTKIT_SOCKET", `the socket's path has more than ${MAX_PATH} bytes; use a shorter one`);
}

function socketResult(result: number, what: string, path: string): number {
  if (result >= 0) return result;
  const cause = { errno: result };
  const name = path.replace("\0", "@");
  throw new VirtkitError("ERR_VIRTKIT_SOCKET", `${what} ${name}: ${describeErrno(result)}`, { cause });
}

function closedError(): VirtkitError {
  return new VirtkitError("ERR_VIRTKIT_SOCKET_CLOSED", "the socket is closed");
}
