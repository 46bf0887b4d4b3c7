import type { Environment } from "../common/environment.ts";
import { FeatureSet } from "../common/feature-set.ts";
import { type DeviceCore, RING_FEATURES } from "../device/core.ts";
import { type DriverType, VirtioBus } from "../driver/bus.ts";
import type { VirtioDriver } from "../driver/core.ts";
import { DmaAllocator } from "../driver/dma.ts";
import type { DriverTransport } from "../driver/transport.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import { MemoryRegion } from "../memory/memory-region.ts";
import {
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_RING_RESET,
  VIRTIO_F_VERSION_1,
} from "../spec/features.ts";
import { LoopbackTransport } from "../transport/loopback/index.ts";
import { MmioLink, openMmio, VirtioMmioDevice } from "../transport/mmio/index.ts";
import { PciHostBridge, PciScanner, VirtioPciDevice } from "../transport/pci/index.ts";
import { nodeEnvironment } from "./loop-device.ts";

/** How a device and its driver are brought together in a test. */
export interface RigConfig {
  readonly name: string;
  readonly ring: FeatureSet;
  readonly transport: "loopback" | "loopback-direct" | "pci" | "pci-legacy" | "mmio" | "mmio-legacy";
  /** Whether guest memory stays put; where it does not, it moves in every turn. */
  readonly fixed: boolean;
}

const BASE = FeatureSet.of(VIRTIO_F_VERSION_1, VIRTIO_F_RING_RESET);

/** Formats and ring features that every device is tried with, over each transport. */
export const RIG_CONFIGS: readonly RigConfig[] = [
  { name: "split", ring: BASE, transport: "loopback", fixed: true },
  { name: "split, moving memory", ring: BASE, transport: "loopback", fixed: false },
  { name: "split, indirect", ring: BASE.with(VIRTIO_F_INDIRECT_DESC), transport: "loopback", fixed: true },
  {
    name: "split, indirect, event idx",
    ring: BASE.with(VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX),
    transport: "loopback-direct",
    fixed: false,
  },
  { name: "split, in order", ring: BASE.with(VIRTIO_F_IN_ORDER), transport: "loopback", fixed: true },
  { name: "packed", ring: BASE.with(VIRTIO_F_RING_PACKED), transport: "loopback", fixed: true },
  {
    name: "packed, indirect, event idx",
    ring: BASE.with(VIRTIO_F_RING_PACKED, VIRTIO_F_INDIRECT_DESC, VIRTIO_F_EVENT_IDX),
    transport: "loopback-direct",
    fixed: false,
  },
  {
    name: "packed, in order, event idx",
    ring: BASE.with(VIRTIO_F_RING_PACKED, VIRTIO_F_IN_ORDER, VIRTIO_F_EVENT_IDX),
    transport: "loopback",
    fixed: true,
  },
  { name: "everything", ring: RING_FEATURES, transport: "loopback", fixed: false },
  { name: "split", ring: BASE, transport: "pci", fixed: true },
  { name: "everything", ring: RING_FEATURES, transport: "pci", fixed: false },
  { name: "split, all features", ring: RING_FEATURES, transport: "pci-legacy", fixed: true },
  { name: "split, bare", ring: FeatureSet.EMPTY, transport: "pci-legacy", fixed: false },
  { name: "everything", ring: RING_FEATURES, transport: "mmio", fixed: false },
  { name: "split, all features", ring: RING_FEATURES, transport: "mmio-legacy", fixed: false },
];

export const testEnvironment: Environment = nodeEnvironment();

export const MEMORY_BYTES = 16 * 1024 * 1024;

export interface Rig<D extends VirtioDriver> {
  readonly driver: D;
  readonly memory: GuestMemory;
  readonly dma: DmaAllocator;
  close(): Promise<void>;
}

/** Memory that has another buffer in every turn of the event loop, the old one full of rubbish. */
export class MovingMemory {
  readonly region: MemoryRegion;
  readonly memory: GuestMemory;
  #stopped = false;

  constructor(size = MEMORY_BYTES, base = 0) {
    this.region = new MemoryRegion(base, new ArrayBuffer(size));
    this.memory = new GuestMemory([this.region], { fixed: false });
  }

  /** Moves it now. */
  move(): void {
    const old = this.region.u8;
    this.region.setBuffer(old.slice().buffer, 0);
    old.fill(0xdb);
  }

  /** Moves it again and again until {@link stop}. */
  start(): void {
    if (this.#stopped) return;
    this.move();
    setTimeout(() => this.start(), 2).unref();
  }

  stop(): void {
    this.#stopped = true;
  }
}

export interface RigOptions {
  readonly memoryBytes?: number;
  /** Physical address at which memory begins. Default 0. */
  readonly base?: number;
  readonly environment?: Environment;
}

/** Brings a device and its driver up. The device must offer {@link RING_FEATURES}. */
export async function createRig<D extends VirtioDriver>(
  device: DeviceCore,
  type: DriverType<D>,
  config: RigConfig,
  options: RigOptions = {},
): Promise<Rig<D>> {
  const environment = options.environment ?? testEnvironment;
  const size = options.memoryBytes ?? MEMORY_BYTES;
  const base = options.base ?? 0;
  const moving = config.fixed ? undefined : new MovingMemory(size, base);
  const memory = moving?.memory ?? GuestMemory.allocate(size, base);
  const dma = new DmaAllocator(memory, base + 4096, size - 4096);
  const bus = new VirtioBus({ dma, environment, ringFeatures: config.ring });
  const driver = await bus.bind(type, transportOf(device, config, memory, environment));
  moving?.start();
  return {
    driver,
    memory,
    dma,
    async close() {
      moving?.stop();
      await bus.close();
      await device.close();
    },
  };
}

function transportOf(
  device: DeviceCore,
  config: RigConfig,
  memory: GuestMemory,
  environment: Environment,
): DriverTransport {
  if (config.transport === "mmio" || config.transport === "mmio-legacy") {
    const mmio = new VirtioMmioDevice(device, { memory, version: config.transport === "mmio" ? 2 : 1 });
    const found = openMmio(new MmioLink(mmio, { environment }), { memory, environment });
    if (found === undefined) throw new Error(`${device.name} has no device type`);
    return found;
  }
  if (config.transport === "loopback" || config.transport === "loopback-direct") {
    const delivery = config.transport === "loopback-direct" ? "direct" : "deferred";
    return new LoopbackTransport(device, { memory, environment, delivery });
  }
  const bridge = new PciHostBridge({ environment });
  const legacy = config.transport === "pci-legacy";
  bridge.bus.plug(new VirtioPciDevice(device, { memory, legacy, modern: !legacy }));
  const [transport] = new PciScanner(bridge, { memory, environment }).scan();
  if (transport === undefined) throw new Error(`${device.name} does not show up on the PCI bus`);
  return transport;
}
