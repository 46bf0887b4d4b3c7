import { FeatureSet } from "../common/feature-set.ts";
import { DeviceCore, RING_FEATURES } from "../device/core.ts";
import type { RunningQueue } from "../device/running-queue.ts";
import { type DriverType, VirtioBus } from "../driver/bus.ts";
import type { VirtioDriver } from "../driver/core.ts";
import { DmaAllocator } from "../driver/dma.ts";
import type { DriverTransport } from "../driver/transport.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import type { MemoryRegion } from "../memory/memory-region.ts";
import { LoopbackTransport } from "../transport/loopback/index.ts";
import type { ChainBatch } from "../virtqueue/index.ts";
import { nodeEnvironment } from "./loop-device.ts";

/** A buffer of a chain, as the driver described it. */
export interface PeerPiece {
  readonly address: number;
  readonly length: number;
  readonly writable: boolean;
}

/** A chain that the driver made available. */
export interface PeerChain {
  readonly queue: number;
  readonly id: number;
  readonly pieces: readonly PeerPiece[];
  /** What was in the device-readable part when it came. */
  readonly out: Uint8Array;
  /** Bytes of the device-writable part. */
  readonly room: number;
}

/** The chains of a batch with what is in them. */
export function readChains(memory: GuestMemory, queue: number, batch: ChainBatch): PeerChain[] {
  return Array.from({ length: batch.count }, (_, c) => {
    const first = batch.first[c] as number;
    const readable = batch.readable[c] as number;
    const pieces = Array.from({ length: readable + (batch.writable[c] as number) }, (_, i) => {
      const region = memory.regions[batch.region[first + i] as number] as MemoryRegion;
      const address = region.base + (batch.offset[first + i] as number);
      return { address, length: batch.length[first + i] as number, writable: i >= readable };
    });
    const out = pieces
      .filter(({ writable }) => !writable)
      .map(({ address, length }) => bytesAt(memory, address, length));
    return { queue, id: batch.id[c] as number, pieces, out: concat(out), room: batch.writableBytes[c] as number };
  });
}

export function bytesAt(memory: GuestMemory, address: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  if (!memory.read(address, bytes)) throw new Error(`no ${length} bytes of memory at ${address}`);
  return bytes;
}

function concat(parts: readonly Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

export interface PeerOptions {
  readonly deviceId: number;
  readonly queues: number;
  readonly features: FeatureSet;
  readonly config: Uint8Array;
  /** Ranges of the configuration that the driver may write. */
  readonly writable?: readonly (readonly [offset: number, length: number])[];
}

/**
 * A device of any type that knows nothing of it: it keeps what the driver sends until the test answers, or answers at once by
 * {@link answer}.
 */
export class PeerDevice extends DeviceCore {
  /** Every chain that ever came. */
  readonly chains: PeerChain[] = [];
  /** Chains that were not used yet. */
  waiting: PeerChain[] = [];
  /** What is written into the chain's room at once; undefined to keep it for {@link use}. */
  answer: (chain: PeerChain) => Uint8Array | undefined = () => undefined;

  constructor(options: PeerOptions) {
    super({
      name: "peer",
      deviceId: options.deviceId,
      queueSizes: new Array<number>(options.queues).fill(64),
      features: options.features,
      ringFeatures: RING_FEATURES,
      configSize: options.config.length,
      environment: nodeEnvironment(),
    });
    for (let i = 0; i < options.config.length; i++) this.config.view.setUint8(i, options.config[i] as number);
    for (const [offset, length] of options.writable ?? []) this.config.allowWrite(offset, length);
  }

  /** Writes `bytes` into the chain's room and uses it. */
  use(chain: PeerChain, bytes: Uint8Array = new Uint8Array(0), written = bytes.length): void {
    this.waiting = this.waiting.filter((other) => other !== chain);
    let done = 0;
    for (const { address, length, writable } of chain.pieces) {
      if (!writable) continue;
      this.memory.write(address, bytes.subarray(done, done + length));
      done += length;
    }
    const running = this.queue(chain.queue);
    if (running === undefined) return;
    running.queue.push(chain.id, written);
    running.publish();
  }

  /** Chains that queue `index` has ever got. */
  of(index: number): PeerChain[] {
    return this.chains.filter(({ queue }) => queue === index);
  }

  protected override onChains(running: RunningQueue, batch: ChainBatch): boolean {
    for (const chain of readChains(this.memory, running.index, batch)) {
      this.chains.push(chain);
      this.waiting.push(chain);
      const bytes = this.answer(chain);
      if (bytes !== undefined) this.use(chain, bytes);
    }
    return true;
  }
}

/** What a driver does to its transport, one line a call, in order. */
export function record(inner: DriverTransport): { transport: DriverTransport; calls: string[] } {
  const calls: string[] = [];
  const transport = new Proxy(inner, {
    get(target, name: keyof DriverTransport) {
      const member: unknown = Reflect.get(target, name, target);
      if (typeof member !== "function") return member;
      return (...args: unknown[]) => {
        calls.push([name, ...args.filter((arg) => typeof arg === "number")].join(" "));
        return member.apply(target, args);
      };
    },
  });
  return { transport, calls };
}

const MEMORY = 4 * 1024 * 1024;

/** A bus with one device on it, what its driver calls written down. */
export function link(device: DeviceCore, ringFeatures: FeatureSet = FeatureSet.EMPTY) {
  const environment = nodeEnvironment();
  const memory = GuestMemory.allocate(MEMORY);
  const dma = new DmaAllocator(memory, 4096, MEMORY - 4096);
  const { transport, calls } = record(new LoopbackTransport(device, { memory, environment }));
  const bus = new VirtioBus({ dma, environment, ringFeatures });
  return { bus, transport, memory, dma, calls };
}

/** Brings a driver up against a device. */
export async function withPeer<D extends VirtioDriver>(device: DeviceCore, type: DriverType<D>) {
  const { bus, transport, memory, dma, calls } = link(device);
  const driver = await bus.bind(type, transport);
  return { driver, memory, dma, calls, close: () => bus.close() };
}

/** Waits in turns of the event loop. */
export async function until(condition: () => boolean): Promise<void> {
  for (let i = 0; !condition(); i++) {
    if (i > 50_000) throw new Error("waited in vain");
    await turn();
  }
}

export const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Enough turns for everything that is under way to arrive. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 20; i++) await turn();
}
