import { type Command, versionInfo } from "./command.ts";
import type { ControlledMachine } from "./controlled-machine.ts";
import { ControlError } from "./errors.ts";
import { type JsonItem, JsonStream } from "./json-stream.ts";

/** Messages that may wait for the one that is being carried out; the client is not read meanwhile. */
const QUEUE_MAX = 8;

/** A client's end of the connection. */
export interface ControlPeer {
  /** Sends text; a promise asks for patience before more is sent. */
  send(text: string): Promise<void> | undefined;
  /** The session takes input again. */
  resume(): void;
}

/** What all sessions of a server have in common. */
export interface SessionHost {
  readonly machine: ControlledMachine;
  readonly commands: ReadonlyMap<string, Command>;
  readonly version: string;
  readonly quit: () => void;
  /** Milliseconds since 1970. */
  now(): number;
  /** A handler failed in a way that it should not. */
  failed(command: string, error: unknown): void;
}

/** A message that a client sent, or what is wrong with it. */
type Request = { readonly id?: unknown } & (
  | { readonly execute: string; readonly given: Readonly<Record<string, unknown>> }
  | { readonly error: ControlError }
);

const isObject = (value: unknown): value is Readonly<Record<string, unknown>> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** One line of the protocol. */
const line = (message: object): string => `${JSON.stringify(message)}\r\n`;

/**
 * One client of the control socket: the greeting, the negotiation, and then commands, carried out one at a time in the order in which
 * they came. Knows no transport: bytes come in with {@link receive}, text goes out through the peer.
 */
export class ControlSession {
  readonly #host: SessionHost;
  readonly #peer: ControlPeer;
  readonly #stream = new JsonStream((item) => this.#queue.push(item));
  readonly #queue: JsonItem[] = [];
  #negotiated = false;
  #working = false;
  #done: Promise<void> = Promise.resolve();
  #paused = false;
  #closed = false;

  constructor(host: SessionHost, peer: ControlPeer) {
    this.#host = host;
    this.#peer = peer;
    void peer.send(line({ QMP: { version: versionInfo(host.version), capabilities: [] } }));
  }

  /** Takes what the client sent. False when no more should be read before {@link ControlPeer.resume}. */
  receive(bytes: Uint8Array): boolean {
    if (this.#closed) return false;
    this.#stream.push(bytes);
    if (!this.#working) this.#done = this.#work();
    this.#paused = this.#queue.length >= QUEUE_MAX;
    return !this.#paused;
  }

  /** Sends an event, if the client has come that far. */
  event(name: string, data: object | undefined): void {
    if (!this.#negotiated || this.#closed) return;
    const now = this.#host.now();
    const timestamp = { seconds: Math.floor(now / 1000), microseconds: Math.floor((now % 1000) * 1000) };
    void this.#peer.send(line({ timestamp, event: name, ...(data === undefined ? {} : { data }) }));
  }

  /** Resolves when everything that came so far is answered. */
  async idle(): Promise<void> {
    await this.#done;
  }

  /** The client is gone: what it asked for and was not begun is forgotten. */
  close(): void {
    this.#closed = true;
    this.#queue.length = 0;
  }

  async #work(): Promise<void> {
    this.#working = true;
    for (let item = this.#queue.shift(); item !== undefined; item = this.#queue.shift()) {
      const after: (() => void)[] = [];
      const reply = await this.#answer(readRequest(item), after);
      if (!this.#closed) await this.#peer.send(line(reply));
      for (const act of after) act();
      if (this.#paused && this.#queue.length < QUEUE_MAX && !this.#closed) {
        this.#paused = false;
        this.#peer.resume();
      }
    }
    this.#working = false;
  }

  async #answer(request: Request, after: (() => void)[]): Promise<object> {
    const id = request.id === undefined ? {} : { id: request.id };
    try {
      if ("error" in request) throw request.error;
      return { return: (await this.#execute(request.execute, request.given, after)) ?? {}, ...id };
    } catch (error) {
      const { errorClass, message } = ControlError.of(error);
      return { error: { class: errorClass, desc: message }, ...id };
    }
  }

  async #execute(name: string, given: Readonly<Record<string, unknown>>, after: (() => void)[]): Promise<unknown> {
    const { machine, commands, version, quit } = this.#host;
    if (name === "qmp_capabilities") return this.#negotiate(given);
    if (!this.#negotiated)
      throw new ControlError("Expecting capabilities negotiation with 'qmp_capabilities'", "CommandNotFound");
    const command = commands.get(name);
    if (command === undefined) throw new ControlError(`The command ${name} has not been found`, "CommandNotFound");
    if (command.waits) await machine.whenUp;
    try {
      const commandNames = ["qmp_capabilities", ...commands.keys()];
      return await command.run(given, {
        machine,
        commandNames,
        version,
        quit,
        afterReply: (act) => void after.push(act),
      });
    } catch (error) {
      if (!(error instanceof Error) || !("code" in error)) this.#host.failed(name, error);
      throw error;
    }
  }

  #negotiate(given: Readonly<Record<string, unknown>>): undefined {
    if (this.#negotiated)
      throw new ControlError("Capabilities negotiation is already complete, command ignored", "CommandNotFound");
    const { enable = [], ...rest } = given;
    const [extra] = Object.keys(rest);
    if (extra !== undefined) throw new ControlError(`Parameter '${extra}' is unexpected`);
    if (!Array.isArray(enable)) throw new ControlError("Invalid parameter type for 'enable', expected: array");
    const [wanted] = enable;
    if (wanted !== undefined) throw new ControlError(`Capability '${String(wanted)}' is not available`);
    this.#negotiated = true;
    return undefined;
  }
}

const REQUEST_MEMBERS = ["execute", "arguments", "id"];

function readRequest(item: JsonItem): Request {
  const wrong = (why: string, id?: unknown): Request => ({
    error: new ControlError(why),
    ...(id === undefined ? {} : { id }),
  });
  if ("error" in item) return wrong(item.error);
  const message = item.value;
  if (!isObject(message)) return wrong("QMP input must be a JSON object");
  const { id, execute, arguments: given = {} } = message;
  const extra = Object.keys(message).find((name) => !REQUEST_MEMBERS.includes(name));
  if (extra !== undefined) return wrong(`QMP input member '${extra}' is unexpected`, id);
  if (execute === undefined) return wrong("QMP input lacks member 'execute'", id);
  if (typeof execute !== "string") return wrong("QMP input member 'execute' must be a string", id);
  if (!isObject(given)) return wrong("QMP input member 'arguments' must be an object", id);
  return { execute, given, ...(id === undefined ? {} : { id }) };
}
