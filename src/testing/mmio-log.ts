import type { LogLevel } from "../common/environment.ts";
import type { FeatureSet } from "../common/feature-set.ts";
import { DmaAllocator } from "../driver/dma.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import {
  type MmioAccess,
  type MmioAccessSize,
  MmioLink,
  openMmio,
  VirtioMmioDevice,
  type VirtioMmioTransport,
} from "../transport/mmio/index.ts";
import { LoopDevice, LoopDriver, nodeEnvironment } from "./loop-device.ts";

/** A register access that a driver made. */
export interface MmioRegisterAccess {
  readonly write: boolean;
  readonly offset: number;
  readonly size: MmioAccessSize;
  readonly value: number;
}

/** Stands between a driver and its register block: writes down every access, and may tell lies. */
export class MmioLog implements MmioAccess {
  readonly log: MmioRegisterAccess[] = [];
  /** What a read answers in the end. */
  answer: (access: MmioRegisterAccess) => number = ({ value }) => value;
  /** Called before a write arrives. */
  onWrite: (access: MmioRegisterAccess) => void = () => undefined;
  /** Called around each interrupt's handler. */
  onInterrupt: (begins: boolean) => void = () => undefined;
  readonly #inner: MmioAccess;

  constructor(inner: MmioAccess) {
    this.#inner = inner;
  }

  read(offset: number, size: MmioAccessSize): number {
    const value = this.answer({ write: false, offset, size, value: this.#inner.read(offset, size) });
    this.log.push({ write: false, offset, size, value });
    return value;
  }

  write(offset: number, size: MmioAccessSize, value: number): void {
    const access = { write: true, offset, size, value };
    this.log.push(access);
    this.onWrite(access);
    this.#inner.write(offset, size, value);
  }

  onIrq(handler: () => void): () => void {
    return this.#inner.onIrq(() => {
      this.onInterrupt(true);
      handler();
      this.onInterrupt(false);
    });
  }
}

/** A virtio-mmio device, and its driver behind a {@link MmioLog}. */
export class MmioDriverRig {
  readonly device: LoopDevice;
  readonly access: MmioLog;
  readonly memory = GuestMemory.allocate(0x400000);
  readonly dma = new DmaAllocator(this.memory, 4096, 0x3ff000);
  readonly messages: string[] = [];
  readonly environment = nodeEnvironment({
    log: (level: LogLevel, message: string) => void this.messages.push(`${level}: ${message}`),
  });

  constructor(device = new LoopDevice()) {
    this.device = device;
    const mmio = new VirtioMmioDevice(device, { memory: this.memory });
    this.access = new MmioLog(new MmioLink(mmio, { environment: this.environment }));
  }

  get log(): MmioRegisterAccess[] {
    return this.access.log;
  }

  open(legacy = true): VirtioMmioTransport | undefined {
    return openMmio(this.access, { memory: this.memory, environment: this.environment, legacy });
  }

  /** A driver that was not started. */
  driver(ring?: FeatureSet): LoopDriver {
    const transport = this.open();
    if (transport === undefined) throw new Error("there is no device");
    return new LoopDriver({
      transport,
      dma: this.dma,
      environment: this.environment,
      ...(ring === undefined ? {} : { ringFeatures: ring }),
    });
  }

  async start(ring?: FeatureSet): Promise<LoopDriver> {
    const driver = this.driver(ring);
    await driver.start();
    return driver;
  }
}
