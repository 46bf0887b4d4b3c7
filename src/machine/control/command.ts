import { type ArgumentSpecs, type ArgumentValues, checkArguments } from "./arguments.ts";
import type { ControlledMachine } from "./controlled-machine.ts";

/** What a command's handler is given besides its arguments. */
export interface CommandContext {
  readonly machine: ControlledMachine;
  /** Names of all commands. */
  readonly commandNames: readonly string[];
  /** The program's. */
  readonly version: string;
  /** Ends the machine on the client's behalf. */
  quit(): void;
  /** Runs `act` when the reply is on its way. */
  afterReply(act: () => void): void;
}

type Given = Readonly<Record<string, unknown>>;

/** A command of the control socket. */
export interface Command {
  readonly name: string;
  /** One sentence, for the documentation. */
  readonly help: string;
  readonly arguments: ArgumentSpecs;
  /** Other arguments than those declared may be given. */
  readonly open: boolean;
  /** Waits until the machine is up. */
  readonly waits: boolean;
  /** @throws ControlError, VirtkitError */
  run(given: Given, context: CommandContext): unknown;
}

interface CommandParts<S extends ArgumentSpecs> {
  readonly name: string;
  readonly help: string;
  readonly arguments?: S;
  readonly open?: boolean;
  /** Default true. */
  readonly waits?: boolean;
  /** `all` has the arguments as they came. What it returns, an empty object for nothing, is the reply. */
  readonly run: (values: ArgumentValues<S>, context: CommandContext, all: Given) => unknown;
}

/** Declares a command: its arguments are checked before its handler sees them. */
export function command<const S extends ArgumentSpecs>(parts: CommandParts<S>): Command {
  const specs: ArgumentSpecs = parts.arguments ?? {};
  const { open = false } = parts;
  return {
    name: parts.name,
    help: parts.help,
    arguments: specs,
    open,
    waits: parts.waits ?? true,
    run(given, context) {
      checkArguments(specs, given, open);
      return parts.run(given as ArgumentValues<S>, context, given);
    },
  };
}

/** Our own version in the place of QEMU's; `package` tells who is talking. */
export function versionInfo(version: string): object {
  const [major = 0, minor = 0, micro = 0] = version.split(".").map((part) => Number.parseInt(part, 10) || 0);
  return { qemu: { major, minor, micro }, package: `virtkit ${version}` };
}
