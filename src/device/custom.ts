import type { Environment } from "../common/environment.ts";
import { VirtkitError } from "../common/error.ts";
import { baseName, faultText } from "../common/fault-text.ts";
import { FeatureSet } from "../common/feature-set.ts";
import { type ChainBatch, ChainReader } from "../virtqueue/index.ts";
import { DeviceCore } from "./core.ts";
import { checkDefinition, checkHandlers, DEFAULT_REQUEST } from "./custom/check.ts";
import type {
  DeviceContext,
  DeviceDefinition,
  DeviceHandlers,
  PropertyTable,
  PropertyValues,
} from "./custom/define.ts";
import type { RunningQueue } from "./running-queue.ts";
import { SegmentList } from "./segment-list.ts";

const MAX_HELD = 64 * 2 ** 20;

export interface CustomDeviceOptions {
  readonly definition: DeviceDefinition;
  readonly environment: Environment;
  /** For messages; default the definition's. */
  readonly name?: string;
  readonly ringFeatures?: FeatureSet;
  /** Those that are left out have their defaults. */
  readonly properties?: Partial<PropertyValues<PropertyTable>>;
  /** Bytes of requests that may wait for their answers; further ones wait in their rings. Default 64 MiB. */
  readonly maxHeld?: number;
  /** The module's file, to name places in it. */
  readonly file?: string;
}

/** A device that a user wrote. Whatever goes wrong in its code breaks the device and nothing else. */
export class CustomDevice extends DeviceCore {
  readonly #handlers: DeviceHandlers;
  readonly #file: string;
  readonly #maxRequest: number;
  readonly #maxHeld: number;
  #held = 0;
  #closed = false;
  readonly #parked = new Set<RunningQueue>();

  /** @throws ERR_VIRTKIT_MODULE when it cannot be created */
  constructor(options: CustomDeviceOptions) {
    const definition = checkDefinition(options.definition, options.name ?? "the definition");
    const { config = 0 } = definition;
    super({
      name: options.name ?? definition.name,
      deviceId: definition.deviceId,
      queueSizes: definition.queueSizes,
      features: FeatureSet.of(...(definition.features ?? [])),
      ...(options.ringFeatures === undefined ? {} : { ringFeatures: options.ringFeatures }),
      configSize: typeof config === "number" ? config : config.length,
      environment: options.environment,
    });
    this.#file = baseName(options.file ?? "");
    this.#maxHeld = options.maxHeld ?? MAX_HELD;
    this.#maxRequest = definition.maxRequest ?? DEFAULT_REQUEST;
    if (typeof config !== "number") this.#copyConfig(this.config.view, 0, config);
    for (const [offset, length] of definition.writableConfig ?? []) this.config.allowWrite(offset, length);
    this.#handlers = this.#create(definition, options);
  }

  /** Ends the user's part; may come twice. */
  dispose(): void {
    if (this.#closed) return;
    this.#closed = true;
    const failed = (error: unknown): void => this.#log(`close() failed: ${this.#text(error)}`);
    try {
      const { close } = this.#handlers;
      if (close !== undefined) Promise.resolve(close.call(this.#handlers)).catch(failed);
    } catch (error) {
      failed(error);
    }
  }

  override async close(): Promise<void> {
    await super.close();
    this.dispose();
  }

  protected override onQueueStop(stopped: RunningQueue): void {
    this.#parked.delete(stopped);
  }

  protected override onReset(): void {
    this.#guard("onReset", () => this.#handlers.onReset?.());
  }

  protected override onConfigWritten(offset: number, length: number): void {
    this.#guard("onConfigWritten", () => this.#handlers.onConfigWritten?.(offset, length));
  }

  protected override onChains(running: RunningQueue, batch: ChainBatch): boolean {
    let taken = 0;
    while (taken < batch.count && this.broken === undefined && running.live && this.#hasRoom(batch, taken))
      this.#take(running, batch, taken++);
    if (!running.live) return false;
    if (taken === batch.count) return true;
    running.queue.unpop(batch.count - taken);
    if (this.broken === undefined) this.#parked.add(running);
    return false;
  }

  #create(definition: DeviceDefinition, options: CustomDeviceOptions): DeviceHandlers {
    const context: DeviceContext = {
      name: this.name,
      properties: Object.assign(defaultsOf(definition.properties ?? {}), options.properties),
      hasFeature: (bit) => this.features.has(bit),
      config: () => {
        const bytes = new Uint8Array(this.config.size);
        this.config.readBytes(0, bytes);
        return bytes;
      },
      setConfig: (offset, bytes) => {
        if (!(Number.isInteger(offset) && offset >= 0 && offset + bytes.length <= this.config.size))
          throw new VirtkitError(
            "ERR_VIRTKIT_MODULE",
            `setConfig: ${bytes.length} bytes at ${offset} are not within the ${this.config.size} of the configuration`,
          );
        this.config.update((view) => this.#copyConfig(view, offset, bytes));
      },
      log: (message, level = "warn") => this.environment.log.log(level, `${this.name}: ${message}`),
    };
    let handlers: DeviceHandlers;
    try {
      handlers = definition.create(context);
    } catch (cause) {
      const why = this.#text(cause);
      throw new VirtkitError("ERR_VIRTKIT_MODULE", `${definition.name}: create() failed: ${why}`, { cause });
    }
    checkHandlers(handlers, definition.name);
    return handlers;
  }

  /** Requests that wait for answers hold memory of ours: there is a limit to it, but one request always goes. */
  #hasRoom(batch: ChainBatch, c: number): boolean {
    return this.#held === 0 || this.#held + (batch.readableBytes[c] as number) <= this.#maxHeld;
  }

  #take(running: RunningQueue, batch: ChainBatch, c: number): void {
    const bytes = batch.readableBytes[c] as number;
    const chain = batch.id[c] as number;
    if (bytes > this.#maxRequest) {
      this.fail(`queue ${running.index}: a request of ${bytes} bytes, and the device takes ${this.#maxRequest}`);
      return;
    }
    const data = new Uint8Array(bytes);
    new ChainReader(this.memory).from(batch, c).bytes(data);
    const room = batch.writableBytes[c] as number;
    const segments = new SegmentList();
    const first = (batch.first[c] as number) + (batch.readable[c] as number);
    segments.addFrom(this.memory, batch, first, first + (batch.writable[c] as number));
    this.#held += bytes;
    const settle = (answer: unknown): void => {
      this.#held -= bytes;
      if (running.live && this.broken === undefined) this.#answer(running, chain, segments, room, answer);
    };
    const failed = (error: unknown): void => {
      this.#held -= bytes;
      if (running.live) this.fail(`queue ${running.index}: onRequest() failed: ${this.#text(error)}`);
    };
    let answer: unknown;
    try {
      answer = this.#handlers.onRequest({ queue: running.index, data, room });
    } catch (error) {
      failed(error);
      return;
    }
    if (!isThenable(answer)) {
      settle(answer);
      return;
    }
    Promise.resolve(answer)
      .then(settle, failed)
      .then(() => this.#goOn(running));
  }

  /** After answers that came later. */
  #goOn(running: RunningQueue): void {
    running.publish();
    const parked = [...this.#parked];
    this.#parked.clear();
    for (const waiting of parked) if (waiting.live && this.broken === undefined) this.service(waiting);
  }

  #answer(running: RunningQueue, chain: number, segments: SegmentList, room: number, answer: unknown): void {
    const where = `queue ${running.index}: onRequest() returned`;
    if (answer !== undefined && !(answer instanceof Uint8Array))
      this.fail(`${where} ${answer === null ? "null" : `a ${typeof answer}`}; return a Uint8Array, or nothing`);
    else if (answer !== undefined && answer.length > room)
      this.fail(`${where} ${answer.length} bytes where the driver has room for ${room}`);
    else {
      const length = answer?.length ?? 0;
      if (answer !== undefined && !segments.copyFrom(answer, length, this.memory)) return;
      running.queue.push(chain, length);
    }
  }

  #guard(what: string, call: () => void): void {
    try {
      call();
    } catch (error) {
      if (what === "onReset") this.#log(`${what}() failed: ${this.#text(error)}`);
      else this.fail(`${what}() failed: ${this.#text(error)}`);
    }
  }

  #copyConfig(view: DataView, offset: number, bytes: Uint8Array): void {
    new Uint8Array(view.buffer, view.byteOffset).set(bytes, offset);
  }

  #text(error: unknown): string {
    return faultText(error, this.#file === "" ? undefined : this.#file);
  }

  #log(message: string): void {
    this.environment.log.log("error", `${this.name}: ${message}`);
  }
}

/** The properties as they are when nobody sets them. */
export function defaultsOf(table: PropertyTable): PropertyValues<PropertyTable> {
  const nothing = { string: "", number: 0, size: 0, boolean: false };
  return Object.fromEntries(
    Object.entries(table).map(([name, property]) => [name, property.default ?? nothing[property.type]]),
  ) as PropertyValues<PropertyTable>;
}

const isThenable = (value: unknown): value is PromiseLike<unknown> =>
  typeof value === "object" && value !== null && typeof (value as { then?: unknown }).then === "function";
