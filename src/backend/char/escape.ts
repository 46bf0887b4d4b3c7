/** What the user asked for with the escape character. */
export type EscapeCommand = "help" | "quit" | "switch" | "break";

/** Where the pieces of the input go, in their order. */
export interface EscapeTarget {
  /** Bytes for the guest; good only during the call. */
  data(bytes: Uint8Array): void;
  command(command: EscapeCommand): void;
}

/** Ctrl-A. */
export const DEFAULT_ESCAPE = 1;

const COMMANDS: Readonly<Record<string, EscapeCommand>> = {
  h: "help",
  "?": "help",
  x: "quit",
  c: "switch",
  b: "break",
};

/**
 * Finds the escape sequences in what a user types: Ctrl-A and a letter is a command, Ctrl-A twice is one Ctrl-A for the guest, and
 * Ctrl-A with anything else is swallowed. The two may come in different pieces of input.
 */
export class EscapeFilter {
  readonly #escape: number;
  #escaped = false;

  /** @param character the escape character's code, 1..26 for Ctrl-A to Ctrl-Z */
  constructor(character = DEFAULT_ESCAPE) {
    this.#escape = character;
  }

  feed(bytes: Uint8Array, target: EscapeTarget): void {
    let start = 0;
    for (let i = 0; i < bytes.length; i++) {
      const byte = bytes[i] as number;
      if (this.#escaped) {
        this.#escaped = false;
        // A doubled escape character stays where it is, as the first byte of what follows.
        start = byte === this.#escape ? i : i + 1;
        const command = COMMANDS[String.fromCharCode(byte).toLowerCase()];
        if (command !== undefined && byte !== this.#escape) target.command(command);
      } else if (byte === this.#escape) {
        if (i > start) target.data(bytes.subarray(start, i));
        this.#escaped = true;
        start = i + 1;
      }
    }
    if (start < bytes.length && !this.#escaped) target.data(bytes.subarray(start));
  }
}

/** Lines for the help command. */
export function escapeHelp(character = DEFAULT_ESCAPE): string {
  const key = `Ctrl-${String.fromCharCode(64 + character)}`;
  return [
    "",
    `${key} H      this help`,
    `${key} X      quit`,
    `${key} C      switch to the next console`,
    `${key} ${key} send ${key} to the guest`,
    "",
  ].join("\r\n");
}
