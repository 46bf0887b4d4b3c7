import type { CharBackend } from "../../backend/char/types.ts";
import { VirtkitError } from "../../common/error.ts";
import { OutgoingPort } from "./ports.ts";

/** The name of the helper's virtio port. */
export const CONTROL_PORT_NAME = "org.virtkit.control.0";

const LINE_MAX = 4096;
const text = new TextEncoder();

interface Question {
  readonly resolve: () => void;
  readonly reject: (error: VirtkitError) => void;
}

const failure = (message: string): VirtkitError => new VirtkitError("ERR_VIRTKIT_GUEST_CONTROL", message);

/**
 * The host's half of the helper that a prepared guest has beside the agent (docs/guest-agent.md): it does at once, whatever command runs
 * meanwhile, what plugging and powering down need of the guest.
 */
export class GuestControl {
  readonly #port: OutgoingPort;
  readonly #questions = new Map<number, Question>();
  #nextId = 1;
  #line = "";
  #isReady = false;

  constructor() {
    this.#port = new OutgoingPort(
      CONTROL_PORT_NAME,
      (open) => {
        if (!open) this.close("the guest's helper went away");
      },
      (bytes) => this.#received(bytes),
    );
    this.#port.setOpen(true);
  }

  get port(): CharBackend {
    return this.#port;
  }

  /** Whether the helper has said that it is there. */
  get isReady(): boolean {
    return this.#isReady;
  }

  /** Looks for new PCI devices. @throws ERR_VIRTKIT_GUEST_CONTROL */
  rescan(): Promise<void> {
    return this.#ask("rescan");
  }

  /** Lets go of a PCI function, "0000:00:05.0". Settled when its driver has. @throws ERR_VIRTKIT_GUEST_CONTROL */
  remove(address: string): Promise<void> {
    return this.#ask(`remove ${address}`);
  }

  /** Switches the guest off in order. @throws ERR_VIRTKIT_GUEST_CONTROL */
  powerOff(): Promise<void> {
    return this.#ask("poweroff");
  }

  /** Everything that was asked fails. */
  close(why: string): void {
    this.#isReady = false;
    this.#line = "";
    const questions = [...this.#questions.values()];
    this.#questions.clear();
    for (const { reject } of questions) reject(failure(why));
  }

  #ask(what: string): Promise<void> {
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#questions.set(id, { resolve, reject });
      // Kept until the helper opens its port.
      this.#port.send(text.encode(`${id} ${what}\n`));
    });
  }

  #received(bytes: Uint8Array): void {
    for (const byte of bytes) {
      if (byte !== 0x0a) {
        if (this.#line.length < LINE_MAX) this.#line += String.fromCharCode(byte);
        continue;
      }
      const line = this.#line;
      this.#line = "";
      this.#receivedLine(line);
    }
  }

  #receivedLine(line: string): void {
    const [, verb = "", id = "", why = ""] = /^(\w+) (\d+) ?(.*)$/.exec(line) ?? [];
    if (verb === "control") this.#isReady = true;
    const question = this.#questions.get(Number(id));
    if (question === undefined || (verb !== "done" && verb !== "failed")) return;
    this.#questions.delete(Number(id));
    if (verb === "done") question.resolve();
    else question.reject(failure(`the guest could not do it: ${why}`));
  }
}
