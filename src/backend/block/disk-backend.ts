import type { Environment, LogLevel } from "../../common/environment.ts";
import { VirtkitError } from "../../common/error.ts";
import { baseName, faultText } from "../../common/fault-text.ts";
import { type CheckedDisk, capacityProblem } from "./disk-check.ts";
import { DiskLog } from "./disk-log.ts";
import { type DiskPort, openPort } from "./disk-port.ts";
import { gather, scatter } from "./disk-slots.ts";
import {
  BLOCK_DISCARD,
  BLOCK_FLUSH,
  BLOCK_IO_ERROR,
  BLOCK_OK,
  BLOCK_READ,
  BLOCK_SECURE_ERASE,
  BLOCK_UNSUPPORTED,
  BLOCK_WRITE,
  BLOCK_WRITE_ZEROES,
  type BlockBackend,
  BlockRequests,
  type BlockSink,
  type IoVector,
} from "./types.ts";

/** Requests without an answer, given up, that the disk may still work on; with so many no further one is handed to it. */
const MAX_ABANDONED = 256;
/** Milliseconds that a request gets while the disk answers nothing at all. */
const SILENT_LIMIT = 1000;
/** Milliseconds that the end may take of a disk whose requests may take for ever. */
const CLOSE_LIMIT = 10_000;

const FREE = 0;
const BUSY = 1;
const ABANDONED = 2;

const OPERATIONS: Readonly<Record<number, string>> = {
  [BLOCK_READ]: "read",
  [BLOCK_WRITE]: "write",
  [BLOCK_FLUSH]: "flush",
  [BLOCK_DISCARD]: "discard",
  [BLOCK_WRITE_ZEROES]: "write of zeroes",
  [BLOCK_SECURE_ERASE]: "secure erase",
};

export interface DiskBackendOptions {
  /** For messages: the module's file, for instance. */
  readonly name: string;
  readonly environment: Environment;
  /** Milliseconds that a request may take; 0 for as long as it takes. */
  readonly timeout: number;
  /** Refuse writes whatever the disk says of itself. */
  readonly readOnly: boolean;
  /** Answer flushes without doing them. */
  readonly noFlush: boolean;
}

/** What went wrong so far. */
export interface DiskFaults {
  /** Requests that the disk failed. */
  errors: number;
  /** Requests that it did not answer in time. */
  timeouts: number;
  /** Answers to requests that were answered before, or never asked. */
  strays: number;
}

/**
 * A user's disk as a {@link BlockBackend}, kept at arm's length: it gets buffers of its own, so that nothing it does late or twice touches the
 * guest, and whatever goes wrong in it ends as an I/O error and a line in the log.
 *
 * A request has a slot of ours from when it is handed over until it is answered, even if nobody waits any longer; the slot that was free
 * for longest is taken next, so that a second answer finds it free.
 */
export class DiskBackend implements BlockBackend {
  readonly name: string;
  readonly readOnly: boolean;
  readonly blockSize: number;
  readonly physicalBlockSize: number;
  readonly inline = false;
  /** Of disks that can have another size. */
  readonly resize?: (capacity: number) => Promise<void>;
  readonly faults: DiskFaults = { errors: 0, timeouts: 0, strays: 0 };
  readonly #disk: CheckedDisk;
  readonly #environment: Environment;
  readonly #timeout: number;
  readonly #log: DiskLog;
  readonly #noFlush: boolean;
  #capacity: number;
  #port: DiskPort | undefined;
  #front: BlockRequests | undefined;
  #sink: BlockSink | undefined;
  /** Our own requests, and for each the one in front that it stands for. */
  #own = new BlockRequests(0);
  #owner = new Int32Array(0);
  #ownerGeneration = new Uint32Array(0);
  #state = new Uint8Array(0);
  #deadline = new Float64Array(0);
  /** Milliseconds that the request was given. */
  #limit = new Float64Array(0);
  #free: number[] = [];
  #inFlight = 0;
  #abandoned = 0;
  /** A request ran out of time, and nothing was answered since. */
  #silent = false;
  #submitting = false;
  #notifying = false;
  #alarm: { readonly at: number; readonly cancel: () => void } | undefined;
  #idle: (() => void) | undefined;
  #closing: Promise<void> | undefined;

  constructor(disk: CheckedDisk, options: DiskBackendOptions) {
    this.name = options.name;
    this.readOnly = disk.readOnly || options.readOnly;
    this.blockSize = disk.blockSize;
    this.physicalBlockSize = disk.physicalBlockSize;
    this.#noFlush = options.noFlush;
    this.#disk = disk;
    this.#capacity = disk.capacity;
    this.#environment = options.environment;
    this.#timeout = options.timeout > 0 ? options.timeout : Number.POSITIVE_INFINITY;
    this.#log = new DiskLog(options.name, options.environment);
    const { form } = disk;
    if (("raw" in form ? form.raw : form.simple).resize !== undefined)
      this.resize = (capacity) => this.#resize(capacity);
  }

  get capacity(): number {
    return this.#capacity;
  }

  /** Milliseconds that an answer may take: few while nothing is answered at all. */
  get #patience(): number {
    return this.#silent ? Math.min(SILENT_LIMIT, this.#timeout) : this.#timeout;
  }

  get discard(): boolean {
    const { form } = this.#disk;
    return "raw" in form ? form.raw.discard === true : form.simple.discard !== undefined;
  }

  get writeZeroes(): boolean {
    const { form } = this.#disk;
    return "raw" in form ? form.raw.writeZeroes === true : form.simple.writeZeroes !== undefined;
  }

  get secureErase(): boolean {
    const { form } = this.#disk;
    return "raw" in form && form.raw.secureErase === true;
  }

  attach(requests: BlockRequests, sink: BlockSink): void {
    if (this.#sink !== undefined)
      throw new VirtkitError(
        "ERR_VIRTKIT_ATTACHED",
        `${this.name} serves a device already; open the disk once for each`,
      );
    const slots = requests.slots + MAX_ABANDONED;
    if (this.#port !== undefined && slots > this.#own.slots)
      throw new VirtkitError(
        "ERR_VIRTKIT_ATTACHED",
        `${this.name} was opened for a device with fewer requests at a time; give the new one the same queues`,
      );
    this.#front = requests;
    this.#sink = sink;
    // The disk keeps the requests that it was given first: it may still work on some that nobody waits for.
    if (this.#port !== undefined) return;
    this.#own = new BlockRequests(slots);
    this.#owner = new Int32Array(slots);
    this.#ownerGeneration = new Uint32Array(slots);
    this.#state = new Uint8Array(slots);
    this.#deadline = new Float64Array(slots);
    this.#limit = new Float64Array(slots);
    this.#free = Array.from({ length: slots }, (_, slot) => slot);
    this.#port = openPort(this.#disk, {
      requests: this.#own,
      answered: (slot, generation, result, problem) => this.#answered(slot, generation, result, problem),
      resized: (capacity) => this.#resized(capacity),
    });
  }

  detach(): void {
    this.#front = undefined;
    this.#sink = undefined;
  }

  submit(slots: ArrayLike<number>, count: number): void {
    this.#checkCapacity();
    const begun: number[] = [];
    const wasSubmitting = this.#submitting;
    this.#submitting = true;
    for (let i = 0; i < count; i++) this.#begin(slots[i] as number, begun);
    try {
      if (begun.length > 0) this.#port?.submit(begun);
    } catch (error) {
      for (const slot of begun)
        if (this.#state[slot] === BUSY)
          this.#answered(slot, this.#own.generation[slot] as number, BLOCK_IO_ERROR, error);
    }
    this.#submitting = wasSubmitting;
    this.#watch();
  }

  async #resize(capacity: number): Promise<void> {
    const { form } = this.#disk;
    await ("raw" in form ? form.raw : form.simple).resize?.(capacity);
    if ("simple" in form) this.#resized(capacity);
  }

  /** Waits for what is in flight, and then for the disk to flush and close; each at most as long as a request may take. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    if (this.#inFlight > 0) {
      await this.#within("answer what it was asked", new Promise<void>((resolve) => (this.#idle = resolve)));
      for (let slot = 0; slot < this.#state.length; slot++) if (this.#state[slot] === BUSY) this.#abandon(slot);
      this.#sink?.completed();
    }
    this.#alarm?.cancel();
    this.#alarm = undefined;
    const { form } = this.#disk;
    if ("simple" in form && !this.readOnly) await this.#last("flush", () => form.simple.flush?.());
    await this.#last("close", () => (this.#port === undefined ? this.#closeUnused() : this.#port.close()));
  }

  /** A disk that never got a device. */
  #closeUnused(): unknown {
    const { form } = this.#disk;
    return ("raw" in form ? form.raw : form.simple).close?.();
  }

  async #last(what: string, call: () => unknown): Promise<void> {
    try {
      await this.#within(what, Promise.resolve(call()));
    } catch (error) {
      this.#say("error", what, `${what} failed: ${this.#text(error)}`);
    }
  }

  /** Waits for `work`, but not for ever. */
  async #within(what: string, work: Promise<unknown>): Promise<void> {
    const limit = Number.isFinite(this.#patience) ? this.#patience : CLOSE_LIMIT;
    let cancel: (() => void) | undefined;
    const over = new Promise<void>((resolve) => {
      cancel = this.#environment.after(limit, () => {
        this.#say("error", what, `it did not ${what} within ${limit / 1000} s; the machine ends without it`);
        resolve();
      });
    });
    try {
      await Promise.race([work, over]);
    } finally {
      cancel?.();
    }
  }

  #begin(front: number, begun: number[]): void {
    const requests = this.#front as BlockRequests;
    const op = requests.op[front] as number;
    const refusal = this.#refusal(op);
    const slot = refusal === undefined && this.#abandoned < MAX_ABANDONED ? this.#free.shift() : undefined;
    if (slot === undefined) {
      if (refusal === undefined)
        this.#say("error", "stuck", `${MAX_ABANDONED} requests were never answered; the guest gets I/O errors`);
      this.#sink?.complete(front, requests.generation[front] as number, refusal ?? BLOCK_IO_ERROR);
      return;
    }
    const own = this.#own;
    const isTransfer = op === BLOCK_READ || op === BLOCK_WRITE;
    const buffer = new Uint8Array(isTransfer ? (requests.length[front] as number) : 0);
    if (op === BLOCK_WRITE) gather(requests.vector[front] as IoVector, buffer);
    own.op[slot] = op;
    own.offset[slot] = requests.offset[front] as number;
    own.length[slot] = requests.length[front] as number;
    own.flags[slot] = requests.flags[front] as number;
    own.generation[slot] = (own.generation[slot] as number) + 1;
    own.vector[slot]?.clear();
    own.vector[slot]?.add(buffer, 0, buffer.length);
    this.#owner[slot] = front;
    this.#ownerGeneration[slot] = requests.generation[front] as number;
    this.#state[slot] = BUSY;
    const limit = this.#patience;
    this.#limit[slot] = limit;
    this.#deadline[slot] = this.#environment.now() + limit;
    this.#inFlight++;
    begun.push(slot);
  }

  /** The answer to what is not handed on. */
  #refusal(op: number): number | undefined {
    if (this.#closing !== undefined) return BLOCK_IO_ERROR;
    if (OPERATIONS[op] === undefined) return BLOCK_UNSUPPORTED;
    if (op === BLOCK_FLUSH && (this.readOnly || this.#noFlush)) return BLOCK_OK;
    if (this.readOnly && op !== BLOCK_READ) return BLOCK_IO_ERROR;
    if (this.#port?.takes(op) === true) return undefined;
    return op === BLOCK_FLUSH ? BLOCK_OK : BLOCK_UNSUPPORTED;
  }

  #answered(slot: number, generation: number, result: number, problem?: unknown): void {
    const state = this.#state[slot];
    if (state === undefined || state === FREE || this.#own.generation[slot] !== generation) {
      this.faults.strays++;
      const what = state === undefined ? `slot ${slot}, which there is not` : this.#describe(slot);
      this.#say("error", "stray", `answered twice, or without being asked: ${what}; ignored`);
      return;
    }
    this.#silent = false;
    if (state === ABANDONED) {
      this.#abandoned--;
      this.#release(slot);
      return;
    }
    if (result === BLOCK_IO_ERROR) {
      this.faults.errors++;
      const why = problem === undefined ? "" : `: ${this.#text(problem)}`;
      this.#say("error", "failed", `${this.#describe(slot)} failed${why}; the guest gets an I/O error`);
    } else if (result === BLOCK_OK && this.#own.op[slot] === BLOCK_READ)
      scatter(bufferOf(this.#own, slot), this.#front?.vector[this.#owner[slot] as number] as IoVector);
    this.#complete(slot, result);
    this.#release(slot);
  }

  #complete(slot: number, result: number): void {
    this.#inFlight--;
    this.#sink?.complete(this.#owner[slot] as number, this.#ownerGeneration[slot] as number, result);
    if (this.#submitting || this.#notifying) return;
    // Several answers often come in one turn: the front side hears of them together.
    this.#notifying = true;
    void Promise.resolve().then(() => {
      this.#notifying = false;
      this.#sink?.completed();
      if (this.#inFlight === 0) this.#idle?.();
    });
  }

  #release(slot: number): void {
    this.#state[slot] = FREE;
    this.#own.vector[slot]?.clear();
    this.#free.push(slot);
  }

  /** Nobody waits for this request any longer. */
  #abandon(slot: number): void {
    this.#state[slot] = ABANDONED;
    this.#abandoned++;
    this.faults.timeouts++;
    this.#complete(slot, BLOCK_IO_ERROR);
  }

  /** Sees to it that somebody looks when the next request runs out of time. */
  #watch(): void {
    if (this.#inFlight === 0) return;
    let at = Number.POSITIVE_INFINITY;
    for (let slot = 0; slot < this.#state.length; slot++)
      if (this.#state[slot] === BUSY) at = Math.min(at, this.#deadline[slot] as number);
    if (at === Number.POSITIVE_INFINITY || (this.#alarm !== undefined && this.#alarm.at <= at)) return;
    this.#alarm?.cancel();
    const cancel = this.#environment.after(Math.max(1, Math.ceil(at - this.#environment.now())), () => this.#look());
    this.#alarm = { at, cancel };
  }

  #look(): void {
    this.#alarm = undefined;
    const now = this.#environment.now();
    for (let slot = 0; slot < this.#state.length; slot++) {
      if (this.#state[slot] !== BUSY || (this.#deadline[slot] as number) > now) continue;
      this.#silent = true;
      this.#say(
        "error",
        "timeout",
        `${this.#describe(slot)} was not answered within ${(this.#limit[slot] as number) / 1000} s; the guest gets an I/O error (the drive's timeout=SECONDS changes how long it waits)`,
      );
      this.#abandon(slot);
    }
    this.#watch();
  }

  /** A capacity that changes by itself is not followed: a device has the size that its guest knows. */
  #checkCapacity(): void {
    const { form } = this.#disk;
    if ("raw" in form) return;
    let now: unknown;
    try {
      now = form.simple.capacity;
    } catch (error) {
      now = this.#text(error);
    }
    if (now !== this.#capacity)
      this.#say("warn", "capacity", `its capacity was ${this.#capacity} and is ${now} now; the guest keeps the first`);
  }

  #resized(capacity: number): void {
    const problem = capacityProblem(capacity, this.blockSize);
    if (problem !== undefined) {
      this.#say("error", "capacity", `it cannot be resized: ${problem}`);
      return;
    }
    this.#capacity = capacity;
    this.#sink?.resized(capacity);
  }

  #describe(slot: number): string {
    const op = this.#own.op[slot] as number;
    if (op === BLOCK_FLUSH) return "a flush";
    return `a ${OPERATIONS[op]} of ${this.#own.length[slot]} bytes at ${this.#own.offset[slot]}`;
  }

  #text(problem: unknown): string {
    return faultText(problem, baseName(this.name));
  }

  #say(level: LogLevel, kind: string, text: string): void {
    this.#log.say(level, kind, text);
  }
}

const bufferOf = (requests: BlockRequests, slot: number): Uint8Array =>
  (requests.vector[slot] as IoVector).buffer[0] as Uint8Array;
