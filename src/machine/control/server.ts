import type { Environment } from "../../common/environment.ts";
import type { Command } from "./command.ts";
import { COMMANDS } from "./commands/index.ts";
import type { ControlledMachine } from "./controlled-machine.ts";
import { watchEvents } from "./events.ts";
import { type ControlPeer, ControlSession, type SessionHost } from "./session.ts";

export interface ControlServerOptions {
  readonly machine: ControlledMachine;
  readonly environment: Environment;
  /** Of the program, for the greeting: "1.2.3". */
  readonly version: string;
  /** Milliseconds since 1970, for the time stamps of events. */
  readonly now?: () => number;
}

/**
 * QMP, the QEMU Machine Protocol, over one machine: commands in, replies and events out. Transport-free; whoever has a
 * connection calls {@link connect}.
 */
export class ControlServer {
  readonly #host: SessionHost;
  readonly #sessions = new Set<ControlSession>();
  readonly #unwatch: () => void;

  constructor(options: ControlServerOptions) {
    const { machine, environment, version } = options;
    let quitting = false;
    this.#host = {
      machine,
      commands: new Map(COMMANDS.map((command): [string, Command] => [command.name, command])),
      version,
      quit: () => {
        quitting = true;
        void machine.kill();
      },
      now: options.now ?? Date.now,
      failed: (name, error) =>
        environment.log.log(
          "error",
          `control socket: ${name}: ${error instanceof Error ? error.stack : String(error)}`,
        ),
    };
    const isQuitting = (): boolean => quitting;
    this.#unwatch = watchEvents(machine, environment, isQuitting, (name, data) => {
      for (const session of this.#sessions) session.event(name, data);
    });
  }

  /** Greets a client. */
  connect(peer: ControlPeer): ControlSession {
    const session = new ControlSession(this.#host, peer);
    this.#sessions.add(session);
    return session;
  }

  disconnect(session: ControlSession): void {
    session.close();
    this.#sessions.delete(session);
  }

  /** No more events. */
  close(): void {
    this.#unwatch();
    for (const session of [...this.#sessions]) this.disconnect(session);
  }
}
