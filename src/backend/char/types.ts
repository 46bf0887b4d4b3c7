/** Byte streams with an open state at both ends: a console's terminal, a file, a socket, the port of an agent. */

/** The guest's side of a stream, as a back end sees it. */
export interface CharSink {
  /** Bytes for the guest. Returns how many were taken; for the rest wait for {@link CharBackend.drained}. The bytes are copied. */
  receive(bytes: Uint8Array): number;
  /** The host's end was opened (somebody listens) or closed (the guest reads end-of-file). */
  setOpen(open: boolean): void;
  /** The back end can take bytes again after {@link CharBackend.write} took fewer than it was given. */
  writable(): void;
}

export interface CharBackend {
  readonly name: string;
  /** Connects the guest's side; once. */
  attach(sink: CharSink): void;
  /** Bytes from the guest, valid only during the call. Returns how many were taken; 0..bytes.length. */
  write(bytes: Uint8Array): number;
  /** The guest can take bytes again after {@link CharSink.receive} took fewer than it was given. */
  drained(): void;
  /** The guest opened or closed its end. */
  guestOpen(open: boolean): void;
  close(): Promise<void>;
}
