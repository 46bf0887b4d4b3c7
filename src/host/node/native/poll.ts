import { checked, describeErrno, loadNative } from "./load.ts";

const READABLE = 1;
const WRITABLE = 2;

export interface WatchOptions {
  /** Wait until there is something to read. Default true. */
  readonly readable?: boolean;
  /** Wait until there is room to write. Default false. */
  readonly writable?: boolean;
  /** Read the eight bytes of an event descriptor before the callback, which otherwise comes again at once. Default false. */
  readonly drain?: boolean;
  /** Whether the program runs on for this alone. Default true. */
  readonly keepAlive?: boolean;
}

export interface DescriptorEvents {
  readonly readable: boolean;
  readonly writable: boolean;
  /** Why there will be no more events, or undefined. */
  readonly error: string | undefined;
}

/**
 * Calls back on the event loop while a descriptor (a socket, an event descriptor, a pipe, a tap) is ready, level-triggered. The descriptor becomes
 * non-blocking. A descriptor has one watch in a thread.
 */
export class DescriptorWatch {
  readonly #id: number;
  #stopped = false;

  /**
   * @param callback called outside of any other code of the caller's; what it throws is an uncaught exception
   * @throws ERR_VIRTKIT_SYSTEM when the descriptor cannot be waited for (a regular file, or watched already)
   */
  constructor(fd: number, options: WatchOptions, callback: (events: DescriptorEvents) => void) {
    const wanted = bits(options.readable ?? true, options.writable ?? false);
    const native = loadNative();
    const onEvents = (events: number): void => {
      if (this.#stopped) return;
      const error = events < 0 ? describeErrno(events) : undefined;
      const ready = error === undefined ? events : 0;
      callback({ readable: (ready & READABLE) !== 0, writable: (ready & WRITABLE) !== 0, error });
    };
    const id = native.pollStart(fd, wanted, options.drain ?? false, onEvents);
    this.#id = checked(id, `waiting for descriptor ${fd}`);
    if (options.keepAlive === false) native.pollKeepAlive(this.#id, false);
  }

  /** Waits for something else from now on; for neither, it rests. */
  change(readable: boolean, writable: boolean): void {
    if (this.#stopped) return;
    checked(loadNative().pollChange(this.#id, bits(readable, writable)), "changing a watch");
  }

  /** Whether the program runs on for this alone. */
  keepAlive(yes: boolean): void {
    if (!this.#stopped) loadNative().pollKeepAlive(this.#id, yes);
  }

  /** No callback comes any more; the descriptor may be closed. */
  stop(): void {
    if (this.#stopped) return;
    this.#stopped = true;
    loadNative().pollStop(this.#id);
  }
}

function bits(readable: boolean, writable: boolean): number {
  return (readable ? READABLE : 0) | (writable ? WRITABLE : 0);
}
