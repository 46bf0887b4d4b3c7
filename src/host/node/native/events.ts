import { checked, EAGAIN, loadNative } from "./load.ts";
import { type DescriptorEvents, DescriptorWatch } from "./poll.ts";

/** An eventfd: a counter that one side adds to and the other takes. vhost-user's kick, call and err descriptors. */
export class EventDescriptor {
  readonly fd: number;
  #watch: DescriptorWatch | undefined;
  #closed = false;

  /** @param fd an event descriptor that came from elsewhere, which is closed with this; without one, a new one */
  constructor(fd?: number) {
    this.fd = fd ?? checked(loadNative().eventfdCreate(0), "creating an event descriptor");
  }

  /** Adds one. Safe in a hot path; a peer that closed its end is no error. */
  signal(): void {
    if (!this.#closed) loadNative().eventfdWrite(this.fd, 1);
  }

  /** What was added since the last time; 0 when nothing was. */
  take(): number {
    const value = loadNative().eventfdRead(this.fd);
    return value === -EAGAIN ? 0 : checked(value, "reading an event descriptor");
  }

  /** Calls back after each time something was added, which is taken by then. One watch at a time. */
  watch(callback: (events: DescriptorEvents) => void, options: { keepAlive?: boolean } = {}): void {
    this.#watch?.stop();
    this.#watch = new DescriptorWatch(this.fd, { ...options, drain: true }, callback);
  }

  unwatch(): void {
    this.#watch?.stop();
    this.#watch = undefined;
  }

  close(): void {
    if (this.#closed) return;
    this.unwatch();
    this.#closed = true;
    loadNative().closeDescriptor(this.fd);
  }
}
