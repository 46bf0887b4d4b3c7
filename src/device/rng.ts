import type { EntropySource } from "../backend/entropy/types.ts";
import type { Environment } from "../common/environment.ts";
import { VirtkitError } from "../common/error.ts";
import { FeatureSet } from "../common/feature-set.ts";
import { VIRTIO_ID_RNG } from "../spec/ids.ts";
import { type ChainBatch, ChainWriter } from "../virtqueue/index.ts";
import { DeviceCore } from "./core.ts";
import type { RunningQueue } from "./running-queue.ts";

/** Random bytes that one request gets at most; the device may leave the rest of its buffer alone. */
const MAX_BYTES = 64 * 1024;

export interface RngDeviceOptions {
  readonly source: EntropySource;
  readonly environment: Environment;
  /** For messages; default "virtio-rng". */
  readonly name?: string;
  readonly ringFeatures?: FeatureSet;
  /** Entries of the queue: a power of two, 2..32768. Default 8. */
  readonly queueSize?: number;
  /** Random bytes handed out in a period: 1 or more. Default no limit. */
  readonly maxBytes?: number;
  /** Length of a period in milliseconds: 1..2^31-1. Default 65536. */
  readonly period?: number;
}

/** Entropy device (VIRTIO 1.4 §5.4). */
export class RngDevice extends DeviceCore {
  /** Random bytes handed out since the device was made. */
  bytes = 0;
  readonly #source: EntropySource;
  readonly #maxBytes: number;
  readonly #period: number;
  readonly #buffer = new Uint8Array(MAX_BYTES);
  #quota: number;
  #cancel: (() => void) | undefined;
  #parked: RunningQueue | undefined;

  /** @throws ERR_VIRTKIT_RNG_OPTION for an option out of range */
  constructor(options: RngDeviceOptions) {
    const queueSize = options.queueSize ?? 8;
    if (!Number.isInteger(Math.log2(queueSize)) || queueSize < 2 || queueSize > 32768)
      throw optionError(`queue-size=${queueSize}`, "a power of two, 2..32768");
    super({
      name: options.name ?? "virtio-rng",
      deviceId: VIRTIO_ID_RNG,
      queueSizes: [queueSize],
      features: FeatureSet.EMPTY,
      ...(options.ringFeatures === undefined ? {} : { ringFeatures: options.ringFeatures }),
      configSize: 0,
      environment: options.environment,
    });
    this.#source = options.source;
    this.#maxBytes = options.maxBytes ?? Number.POSITIVE_INFINITY;
    this.#period = options.period ?? 65536;
    if (!(this.#maxBytes >= 1)) throw optionError(`max-bytes=${options.maxBytes}`, "1 or more");
    if (!(this.#period >= 1 && this.#period < 2 ** 31))
      throw optionError(`period=${options.period}`, "1..2147483647 milliseconds");
    this.#quota = this.#maxBytes;
  }

  override async close(): Promise<void> {
    this.#cancel?.();
    this.#cancel = undefined;
    await super.close();
  }

  protected override onQueueStop(): void {
    this.#parked = undefined;
  }

  protected override onChains(running: RunningQueue, batch: ChainBatch): boolean {
    const writer = new ChainWriter(this.memory);
    for (let c = 0; c < batch.count; c++) {
      if (this.#quota <= 0) {
        running.queue.unpop(batch.count - c);
        this.#parked = running;
        return false;
      }
      if ((batch.readable[c] as number) > 0) this.driverFault("a request for random bytes with a readable part", false);
      if (batch.writableBytes[c] === 0) this.driverFault("a request for random bytes without room for any", false);
      running.queue.push(batch.id[c] as number, this.#fill(writer.to(batch, c)));
    }
    return true;
  }

  #fill(writer: ChainWriter): number {
    const bytes = this.#buffer.subarray(0, Math.min(writer.remaining, MAX_BYTES, this.#quota));
    if (bytes.length === 0) return 0;
    this.#source.fill(bytes);
    writer.bytes(bytes);
    this.bytes += bytes.length;
    this.#quota -= bytes.length;
    if (this.#maxBytes !== Number.POSITIVE_INFINITY)
      this.#cancel ??= this.environment.after(this.#period, () => this.#refill());
    return bytes.length;
  }

  #refill(): void {
    this.#cancel = undefined;
    this.#quota = this.#maxBytes;
    const running = this.#parked;
    this.#parked = undefined;
    if (running?.live && this.broken === undefined) this.service(running);
  }
}

function optionError(what: string, range: string): VirtkitError {
  return new VirtkitError("ERR_VIRTKIT_RNG_OPTION", `entropy device: ${what} is out of range; give ${range}`);
}
