import { connect, type NetConnectOpts, type Socket } from "node:net";

export interface QmpEvent {
  readonly event: string;
  readonly data?: Readonly<Record<string, unknown>>;
  readonly timestamp: { readonly seconds: number; readonly microseconds: number };
}

interface Message {
  readonly return?: unknown;
  readonly error?: { readonly class: string; readonly desc: string };
  readonly event?: string;
  readonly QMP?: object;
  readonly id?: unknown;
}

/** Milliseconds between two attempts to reach a program that is starting. */
const RETRY = 50;

/** A client of a control socket, as simple as can be: it believes nothing that it did not read. */
export class QmpClient {
  readonly socket: Socket;
  /** Resolves when the server has closed the connection. */
  readonly closed: Promise<void>;
  readonly messages: Message[] = [];
  #text = "";
  #taken = 0;
  #isOver = false;
  readonly #events: QmpEvent[] = [];
  #changed: () => void = () => {};

  private constructor(socket: Socket) {
    this.socket = socket;
    this.closed = new Promise((resolve) =>
      socket.once("close", () => {
        this.#isOver = true;
        this.#changed();
        resolve();
      }),
    );
    socket.on("error", () => socket.destroy());
    socket.on("data", (bytes) => this.#received(bytes.toString()));
  }

  /** Connects to a program that may still be starting. Fails after a minute. */
  static async reach(address: string | NetConnectOpts): Promise<QmpClient> {
    for (let attempt = 0; ; attempt++) {
      const socket = typeof address === "string" ? connect(address) : connect(address);
      const error = await new Promise<Error | undefined>((resolve) => {
        socket.once("connect", () => resolve(undefined));
        socket.once("error", resolve);
      });
      if (error === undefined) return new QmpClient(socket);
      if (attempt * RETRY > 60_000) throw error;
      await new Promise((resolve) => setTimeout(resolve, RETRY));
    }
  }

  /** {@link reach}, and the negotiation. */
  static async open(address: string | NetConnectOpts): Promise<QmpClient> {
    const client = await QmpClient.reach(address);
    await client.next();
    await client.execute("qmp_capabilities");
    return client;
  }

  /** The next message that is no event. */
  async next(): Promise<Message> {
    for (;;) {
      const message = this.messages[this.#taken];
      if (message !== undefined) {
        this.#taken++;
        return message;
      }
      await this.#change("a message");
    }
  }

  /** A command's result. @throws Error "CLASS: DESC" */
  async execute(name: string, given?: object): Promise<unknown> {
    this.send(`${JSON.stringify({ execute: name, ...(given === undefined ? {} : { arguments: given }) })}\n`);
    const reply = await this.next();
    if (reply.error !== undefined) throw new Error(`${reply.error.class}: ${reply.error.desc}`);
    return reply.return;
  }

  /** The next event of that name that was not taken yet. */
  async event(name: string, fits: (event: QmpEvent) => boolean = () => true): Promise<QmpEvent> {
    for (;;) {
      const at = this.#events.findIndex((event) => event.event === name && fits(event));
      const [found] = at < 0 ? [] : this.#events.splice(at, 1);
      if (found !== undefined) return found;
      await this.#change(`the event ${name}`);
    }
  }

  send(text: string | Uint8Array): void {
    this.socket.write(text);
  }

  close(): void {
    this.socket.destroy();
  }

  #change(what: string): Promise<void> {
    if (this.#isOver) throw new Error(`the connection was closed before ${what}; got ${JSON.stringify(this.messages)}`);
    return new Promise((resolve) => {
      const before = this.#changed;
      this.#changed = () => {
        before();
        resolve();
      };
    });
  }

  #received(text: string): void {
    this.#text += text;
    const lines = this.#text.split("\r\n");
    this.#text = lines.pop() ?? "";
    for (const line of lines) {
      const message = JSON.parse(line) as Message;
      if (message.event === undefined) this.messages.push(message);
      else this.#events.push(message as unknown as QmpEvent);
    }
    const changed = this.#changed;
    this.#changed = () => {};
    changed();
  }
}
