import type { FeatureSet } from "../common/feature-set.ts";
import type { DeviceCore } from "../device/core.ts";
import { type DriverContext, VirtioDriver } from "../driver/core.ts";
import { DmaAllocator, type DmaBuffer } from "../driver/dma.ts";
import type { DriverTransport } from "../driver/transport.ts";
import type { VirtQueue } from "../driver/virtqueue.ts";
import { GuestMemory } from "../memory/guest-memory.ts";
import { LoopbackTransport } from "../transport/loopback/index.ts";
import type { QueueConfig } from "../virtqueue/index.ts";
import { LOOP_CFG_VALUE, LOOP_CFG_WRITABLE, LOOP_DEVICE_ID, LoopDevice, nodeEnvironment } from "./loop-device.ts";

export interface Enabled {
  readonly config: QueueConfig;
  readonly interrupt: () => void;
}

/**
 * A context on a device, a loop device unless another is given, whose transport writes down every call that changes something, in order. What is put into
 * `overrides` is called in place of the transport's own.
 */
export function setUpDriver<D extends DeviceCore = LoopDevice>(
  // Without an argument D is what its default says.
  device: D = new LoopDevice() as DeviceCore as D,
  delivery: "deferred" | "direct" = "deferred",
) {
  const environment = nodeEnvironment();
  const bytes = 4 << 20;
  const memory = GuestMemory.allocate(bytes);
  const dma = new DmaAllocator(memory, 4096, bytes - 4096);
  const inner = new LoopbackTransport(device, { memory, environment, delivery });
  const calls: string[] = [];
  const enabled: Enabled[] = [];
  const recorded = [
    "reset",
    "setStatus",
    "setDriverFeatures",
    "deviceFeatures",
    "enableQueue",
    "notify",
    "writeConfig",
    "resetQueue",
  ];
  const overrides: Partial<DriverTransport> = {};
  const transport = new Proxy<DriverTransport>(inner, {
    get(target, name: keyof DriverTransport) {
      const member: unknown = overrides[name] ?? Reflect.get(target, name, target);
      if (typeof member !== "function") return member;
      return (...args: unknown[]) => {
        if (name === "enableQueue") enabled.push({ config: args[1] as QueueConfig, interrupt: args[2] as () => void });
        if (recorded.includes(name)) calls.push(name === "setStatus" ? `status ${args[0]}` : name);
        return member.apply(target, args);
      };
    },
  });
  const context: DriverContext = { transport, dma, environment };
  return { device, dma, calls, overrides, enabled, inner, transport, context, free: dma.free };
}

/** A driver whose hooks a test fills in. */
export class Scripted extends VirtioDriver {
  validate: (offered: FeatureSet) => FeatureSet = (features) => features;
  setUp: (driver: Scripted) => void | Promise<void> = () => undefined;
  readonly log: string[] = [];

  constructor(context: DriverContext) {
    super(context, { name: "scripted", deviceIds: [LOOP_DEVICE_ID], features: [] });
  }
  queue(index: number): VirtQueue {
    return this.setUpQueue(index);
  }
  read(size: 1 | 2 | 4 | 8): number {
    return this.readConfig(LOOP_CFG_VALUE, size);
  }
  fields<T>(read: () => T): T {
    return this.readConfigFields(read);
  }
  write(value: number): void {
    this.writeConfig(LOOP_CFG_WRITABLE, 4, value);
  }
  resetOf(queue: VirtQueue): Promise<void> {
    return this.resetQueue(queue);
  }
  buffer(length: number): DmaBuffer {
    return this.dma.alloc(length);
  }
  protected override onValidate(features: FeatureSet): FeatureSet {
    return this.validate(features);
  }
  protected override onSetUp(): void | Promise<void> {
    return this.setUp(this);
  }
  protected override onUsed(_queue: VirtQueue, token: number, written: number): void {
    this.log.push(`used ${token} ${written}`);
  }
  protected override onUnused(_queue: VirtQueue, token: number): void {
    this.log.push(`unused ${token}`);
  }
  protected override onTearDown(): void {
    this.log.push("torn down");
  }
}
