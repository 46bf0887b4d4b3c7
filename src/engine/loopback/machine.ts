import type { Environment } from "../../common/environment.ts";
import { VirtkitError } from "../../common/error.ts";
import type { FeatureSet } from "../../common/feature-set.ts";
import type { DeviceCore } from "../../device/core.ts";
import { type DriverType, VirtioBus } from "../../driver/bus.ts";
import type { VirtioDriver } from "../../driver/core.ts";
import { DmaAllocator } from "../../driver/dma.ts";
import type { DriverTransport } from "../../driver/transport.ts";
import { GuestMemory } from "../../memory/guest-memory.ts";
import type { Tracer } from "../../trace/types.ts";
import { LoopbackTransport } from "../../transport/loopback/index.ts";
import { MmioLink, openMmio, VirtioMmioDevice, type VirtioMmioOptions } from "../../transport/mmio/index.ts";
import { PciHostBridge, PciScanner, VirtioPciDevice, type VirtioPciOptions } from "../../transport/pci/index.ts";

export interface LoopbackMachineOptions {
  readonly environment: Environment;
  /** Bytes of memory for rings and buffers, a multiple of 4096; 16 MiB unless said. */
  readonly memorySize?: number;
  /** When kicks and interrupts arrive: in a later turn ("deferred", unless said) or as calls ("direct"). */
  readonly delivery?: "deferred" | "direct";
  /** Ring features that drivers accept; all unless said. */
  readonly ringFeatures?: FeatureSet;
  /** Entries that a queue gets at most. */
  readonly maxQueueSize?: number;
  /** Interrupt messages of the machine; 0 leaves INTx to PCI devices. */
  readonly msis?: number;
  /** True to reach PCI devices through the configuration access capability only. */
  readonly window?: boolean;
  /** True to drive PCI devices through their legacy interface where they have one. */
  readonly legacy?: boolean;
  /** Gives each device and each driver whom to tell what it does, by its name. */
  readonly tracerOf?: (name: string) => Tracer | undefined;
}

/** How a device is attached. */
export type LoopbackAttachment =
  | { readonly transport: "loopback" }
  | ({ readonly transport: "mmio" } & Omit<VirtioMmioOptions, "memory">)
  | ({ readonly transport: "pci"; readonly slot?: number } & Omit<VirtioPciOptions, "memory">);

const PAGE = 4096;

/**
 * A machine without a processor: memory, a PCI bus, and drivers in this very process. For tests, and for programs that want a
 * device's service without a guest.
 *
 *     const machine = new LoopbackMachine({ environment });
 *     const rng = await machine.attach(new RngDevice(...), RngDriver.type, { transport: "pci" });
 */
export class LoopbackMachine {
  readonly memory: GuestMemory;
  readonly dma: DmaAllocator;
  readonly bridge: PciHostBridge;
  /** The virtio bus, where devices meet drivers. */
  readonly bus: VirtioBus;
  readonly #environment: Environment;
  readonly #delivery: "deferred" | "direct";
  readonly #scanner: PciScanner;
  readonly #tracerOf: ((name: string) => Tracer | undefined) | undefined;
  #mmioDevices = 0;

  constructor(options: LoopbackMachineOptions) {
    const size = options.memorySize ?? 16 * 2 ** 20;
    if (size % PAGE !== 0 || size < 2 * PAGE)
      throw new VirtkitError("ERR_VIRTKIT_MEMORY_SIZE", `memorySize must be a multiple of ${PAGE}, not ${size}`);
    const { environment, ringFeatures, maxQueueSize, msis } = options;
    this.#environment = environment;
    this.#tracerOf = options.tracerOf;
    this.#delivery = options.delivery ?? "deferred";
    this.memory = GuestMemory.allocate(size);
    // Address 0 stays unused: to a device it says "nothing here".
    this.dma = new DmaAllocator(this.memory, PAGE, size - PAGE);
    this.bridge = new PciHostBridge({ environment, delivery: this.#delivery, ...(msis === undefined ? {} : { msis }) });
    this.#scanner = new PciScanner(this.bridge, {
      memory: this.memory,
      environment,
      window: options.window ?? false,
      legacy: options.legacy ?? false,
    });
    this.bus = new VirtioBus({
      dma: this.dma,
      environment,
      tracerOf: options.tracerOf,
      ...(ringFeatures === undefined ? {} : { ringFeatures }),
      ...(maxQueueSize === undefined ? {} : { maxQueueSize }),
    });
  }

  /** Plugs a device in without a driver; `bus.scan` or `bus.bind` take what is returned. */
  plug(device: DeviceCore, how: LoopbackAttachment = { transport: "loopback" }): DriverTransport {
    device.tracer ??= this.#tracerOf?.(device.name);
    if (how.transport === "loopback")
      return new LoopbackTransport(device, {
        memory: this.memory,
        environment: this.#environment,
        delivery: this.#delivery,
      });
    if (how.transport === "mmio") return this.#plugMmio(device, how);
    const { transport: _transport, slot, ...options } = how;
    this.bridge.bus.plug(new VirtioPciDevice(device, { ...options, memory: this.memory }), slot);
    const [found] = this.#scanner.scan();
    if (found === undefined)
      throw new VirtkitError("ERR_VIRTKIT_NO_DEVICE", `${device.name} does not show up on the PCI bus`);
    return found;
  }

  #plugMmio(device: DeviceCore, options: Omit<VirtioMmioOptions, "memory">): DriverTransport {
    const environment = this.#environment;
    const mmio = new VirtioMmioDevice(device, { ...options, memory: this.memory });
    const link = new MmioLink(mmio, { environment, delivery: this.#delivery });
    const found = openMmio(link, { memory: this.memory, environment, name: String(this.#mmioDevices++) });
    if (found === undefined)
      throw new VirtkitError("ERR_VIRTKIT_NO_DEVICE", `${device.name} has device type 0, which stands for no device`);
    return found;
  }

  /** Plugs a device in and starts a driver for it. Throws what bring-up threw. */
  attach<D extends VirtioDriver>(device: DeviceCore, type: DriverType<D>, how?: LoopbackAttachment): Promise<D> {
    return this.bus.bind(type, this.plug(device, how));
  }

  /** Removes all drivers; the devices are reset. */
  close(): Promise<void> {
    return this.bus.close();
  }
}
