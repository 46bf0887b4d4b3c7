import { VirtkitError } from "../../common/error.ts";
import type { CharSink } from "./types.ts";

/** Keeps the one sink that a back end may have. */
export class AttachedSink {
  readonly #name: string;
  #sink: CharSink | undefined;

  constructor(name: string) {
    this.#name = name;
  }

  get sink(): CharSink | undefined {
    return this.#sink;
  }

  /** @throws ERR_VIRTKIT_ATTACHED the second time */
  attach(sink: CharSink): void {
    if (this.#sink !== undefined)
      throw new VirtkitError("ERR_VIRTKIT_ATTACHED", `${this.#name} serves a port already; give each its own back end`);
    this.#sink = sink;
  }
}
