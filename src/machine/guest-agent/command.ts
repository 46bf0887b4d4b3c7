import { VirtkitError } from "../../common/error.ts";

export interface CommandOptions {
  /** The folder to run in; default /root. */
  readonly cwd?: string | undefined;
  /** Added to the guest's own environment. */
  readonly env?: Readonly<Record<string, string>> | undefined;
}

/** A word that the shell takes as it is. */
export const quote = (word: string): string => `'${word.replaceAll("'", "'\\''")}'`;

/** The longest command that is taken, in bytes. */
export const COMMAND_MAX = 8 * 1024 * 1024;

/**
 * The text that the guest's shell runs: `command` itself, or a program with its arguments when it is a list.
 * @throws VirtkitError ERR_VIRTKIT_EXEC_COMMAND, ERR_VIRTKIT_EXEC_ENV
 */
export const buildCommand = (command: string | readonly string[], options: CommandOptions): Uint8Array => {
  const lines: string[] = [];
  for (const [name, value] of Object.entries(options.env ?? {})) {
    if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) {
      throw new VirtkitError(
        "ERR_VIRTKIT_EXEC_ENV",
        `env: ${JSON.stringify(name)} is no name of a variable; use letters, digits and _`,
      );
    }
    lines.push(`export ${name}=${quote(value)}`);
  }
  if (options.cwd !== undefined)
    lines.push(`cd ${quote(options.cwd.startsWith("-") ? `./${options.cwd}` : options.cwd)} || exit 126`);
  if (typeof command !== "string" && command.length === 0) {
    throw new VirtkitError("ERR_VIRTKIT_EXEC_COMMAND", "command: the list is empty; give a program and its arguments");
  }
  lines.push(typeof command === "string" ? command : `exec ${command.map(quote).join(" ")}`);
  const text = lines.join("\n");
  if (text.includes("\0")) {
    throw new VirtkitError(
      "ERR_VIRTKIT_EXEC_COMMAND",
      "command, cwd and env cannot hold the character NUL; pass such bytes as stdin",
    );
  }
  const bytes = new TextEncoder().encode(`${text}\n`);
  if (bytes.length > COMMAND_MAX) {
    throw new VirtkitError(
      "ERR_VIRTKIT_EXEC_COMMAND",
      `command: ${bytes.length} bytes are more than the ${COMMAND_MAX} that are taken; pass data as stdin`,
    );
  }
  return bytes;
};
