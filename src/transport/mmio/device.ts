import { VirtkitError } from "../../common/error.ts";
import type { DeviceCore } from "../../device/core.ts";
import {
  QUEUE_DESC_HIGH,
  QUEUE_DESC_LOW,
  QUEUE_DEVICE_HIGH,
  QUEUE_DEVICE_LOW,
  QUEUE_DRIVER_HIGH,
  QUEUE_DRIVER_LOW,
} from "../../device/queue-registers.ts";
import { StatusMachine } from "../../device/status-machine.ts";
import type { GuestMemory } from "../../memory/guest-memory.ts";
import {
  VIRTIO_MMIO_CONFIG,
  VIRTIO_MMIO_CONFIG_GENERATION,
  VIRTIO_MMIO_DEVICE_FEATURES,
  VIRTIO_MMIO_DEVICE_FEATURES_SEL,
  VIRTIO_MMIO_DEVICE_ID,
  VIRTIO_MMIO_DRIVER_FEATURES,
  VIRTIO_MMIO_DRIVER_FEATURES_SEL,
  VIRTIO_MMIO_GUEST_PAGE_SIZE,
  VIRTIO_MMIO_INT_CONFIG,
  VIRTIO_MMIO_INT_VRING,
  VIRTIO_MMIO_INTERRUPT_ACK,
  VIRTIO_MMIO_INTERRUPT_STATUS,
  VIRTIO_MMIO_MAGIC,
  VIRTIO_MMIO_MAGIC_VALUE,
  VIRTIO_MMIO_QUEUE_ALIGN,
  VIRTIO_MMIO_QUEUE_DESC_HIGH,
  VIRTIO_MMIO_QUEUE_DESC_LOW,
  VIRTIO_MMIO_QUEUE_DEVICE_HIGH,
  VIRTIO_MMIO_QUEUE_DEVICE_LOW,
  VIRTIO_MMIO_QUEUE_DRIVER_HIGH,
  VIRTIO_MMIO_QUEUE_DRIVER_LOW,
  VIRTIO_MMIO_QUEUE_NOTIFY,
  VIRTIO_MMIO_QUEUE_PFN,
  VIRTIO_MMIO_QUEUE_READY,
  VIRTIO_MMIO_QUEUE_RESET,
  VIRTIO_MMIO_QUEUE_SEL,
  VIRTIO_MMIO_QUEUE_SIZE,
  VIRTIO_MMIO_QUEUE_SIZE_MAX,
  VIRTIO_MMIO_SHM_BASE_HIGH,
  VIRTIO_MMIO_SHM_BASE_LOW,
  VIRTIO_MMIO_SHM_LEN_HIGH,
  VIRTIO_MMIO_SHM_LEN_LOW,
  VIRTIO_MMIO_SHM_SEL,
  VIRTIO_MMIO_STATUS,
  VIRTIO_MMIO_VENDOR_ID,
  VIRTIO_MMIO_VERSION,
} from "../../spec/mmio.ts";

export type MmioAccessSize = 1 | 2 | 4;
/** 2, or 1 for the legacy interface. */
export type MmioVersion = 1 | 2;

export interface VirtioMmioOptions {
  /** Guest memory that the device's queues lie in. */
  readonly memory: GuestMemory;
  /** 2 unless said. */
  readonly version?: MmioVersion;
  /** "QEMU" as a little-endian number unless said: guests are used to it. */
  readonly vendorId?: number;
  /** Where the machine maps the device's shared memory regions, by id; those left out do not exist for the driver. */
  readonly sharedMemoryAt?: ReadonlyMap<number, number>;
}

const QEMU = 0x554d4551;
/** Registers of the selected queue, as traces call them. */
const QUEUE_REGISTERS: ReadonlyMap<number, string> = new Map([
  [VIRTIO_MMIO_QUEUE_SIZE, "QUEUE_SIZE"],
  [VIRTIO_MMIO_QUEUE_ALIGN, "QUEUE_ALIGN"],
  [VIRTIO_MMIO_QUEUE_PFN, "QUEUE_PFN"],
  [VIRTIO_MMIO_QUEUE_READY, "QUEUE_READY"],
  [VIRTIO_MMIO_QUEUE_DESC_LOW, "QUEUE_DESC_LOW"],
  [VIRTIO_MMIO_QUEUE_DESC_HIGH, "QUEUE_DESC_HIGH"],
  [VIRTIO_MMIO_QUEUE_DRIVER_LOW, "QUEUE_DRIVER_LOW"],
  [VIRTIO_MMIO_QUEUE_DRIVER_HIGH, "QUEUE_DRIVER_HIGH"],
  [VIRTIO_MMIO_QUEUE_DEVICE_LOW, "QUEUE_DEVICE_LOW"],
  [VIRTIO_MMIO_QUEUE_DEVICE_HIGH, "QUEUE_DEVICE_HIGH"],
  [VIRTIO_MMIO_QUEUE_RESET, "QUEUE_RESET"],
]);
const ALL_ONES = 0xffffffff;

interface Register {
  readonly read?: () => number;
  readonly write?: (value: number) => void;
}
type Registers = readonly (readonly [offset: number, register: Register])[];

/**
 * virtio-mmio: a {@link DeviceCore} behind a block of registers in memory (VIRTIO 1.4 §4.2), of which the machine decides where it
 * is. Control registers take aligned 32-bit accesses only; others read 0 and write nothing, as do accesses outside. One level
 * interrupt. Knows no concrete device.
 */
export class VirtioMmioDevice {
  readonly name: string;
  readonly device: DeviceCore;
  readonly version: MmioVersion;
  /** Bytes of the register block: those before the configuration, and the configuration. */
  readonly size: number;
  readonly #machine: StatusMachine;
  readonly #registers = new Map<number, Register>();
  #setIrq: ((asserted: boolean) => void) | undefined;
  #interruptStatus = 0;
  #irq = false;
  #pageSize = 0;
  readonly #align: Uint32Array;
  #sharedMemory = 0;

  constructor(device: DeviceCore, options: VirtioMmioOptions) {
    const version = options.version ?? 2;
    if (version !== 1 && version !== 2)
      throw new VirtkitError("ERR_VIRTKIT_MMIO_VERSION", `${device.name}: virtio-mmio has versions 1 and 2`);
    this.name = device.name;
    this.device = device;
    this.version = version;
    this.size = VIRTIO_MMIO_CONFIG + device.config.size;
    this.#align = new Uint32Array(device.queueSizes.length);
    this.#machine = new StatusMachine(device, {
      memory: options.memory,
      doorbell: "QUEUE_NOTIFY",
      queueInterrupt: (queue) => {
        this.device.tracer?.emit({ kind: "interrupt", queue, by: "irq" });
        this.#interrupt(VIRTIO_MMIO_INT_VRING);
      },
      configInterrupt: () => {
        this.device.tracer?.emit({ kind: "interrupt", by: "irq" });
        this.#interrupt(VIRTIO_MMIO_INT_CONFIG);
      },
      deviceReset: () => this.#deviceReset(),
      queueReset: () => undefined,
    });
    const machine = this.#machine;
    const own =
      version === 2
        ? [...modernRegisters(machine), ...this.#sharedMemoryRegisters(options.sharedMemoryAt ?? new Map())]
        : [...legacyRegisters(machine), ...this.#pageRegisters(machine)];
    const identity = identityRegisters(device, version, options.vendorId ?? QEMU);
    for (const [offset, register] of [...identity, ...this.#interruptRegisters(), ...own])
      this.#registers.set(offset, register);
  }

  /** Says where the interrupt goes: true asserts the level, false deasserts it. Once, before any access. */
  connect(setIrq: (asserted: boolean) => void): void {
    this.#setIrq = setIrq;
    setIrq(this.#irq);
  }

  /** @param offset from the start of the block */
  read(offset: number, size: MmioAccessSize): number {
    if (offset >= VIRTIO_MMIO_CONFIG) return this.device.config.read(offset - VIRTIO_MMIO_CONFIG, size);
    return size === 4 ? (this.#registers.get(offset)?.read?.() ?? 0) : 0;
  }

  write(offset: number, size: MmioAccessSize, value: number): void {
    if (offset >= VIRTIO_MMIO_CONFIG) this.device.config.write(offset - VIRTIO_MMIO_CONFIG, size, value);
    else if (size === 4) {
      // The doorbell first: it is written for every batch of requests, everything else only at set-up.
      if (offset !== VIRTIO_MMIO_QUEUE_NOTIFY) this.#writeRegister(offset, value);
      else if (this.version === 2) this.#machine.kick(value & 0xffff);
      else this.#machine.legacyKick(value);
    }
  }

  #writeRegister(offset: number, value: number): void {
    const register = QUEUE_REGISTERS.get(offset);
    const queue = this.#machine.queues.select;
    if (register !== undefined) this.device.tracer?.emit({ kind: "queue", queue, register, value });
    this.#registers.get(offset)?.write?.(value);
  }

  /** The machine is reset: all that the driver told the device is forgotten. */
  reset(): void {
    this.#machine.reset();
    // A driver's reset keeps the page size: Linux says it once, before its first reset.
    this.#pageSize = 0;
    this.#sharedMemory = 0;
  }

  #interruptRegisters(): Registers {
    const acknowledge = (value: number) => {
      this.#interruptStatus &= ~value;
      this.#updateIrq();
    };
    return [
      [VIRTIO_MMIO_INTERRUPT_STATUS, { read: () => this.#interruptStatus }],
      [VIRTIO_MMIO_INTERRUPT_ACK, { write: acknowledge }],
    ];
  }

  #sharedMemoryRegisters(places: ReadonlyMap<number, number>): Registers {
    const select = (value: number) => {
      this.#sharedMemory = value;
    };
    // A region that does not exist has all ones for its length and its address.
    const word = (wide: number | undefined, high: boolean): number => {
      if (wide === undefined) return ALL_ONES;
      return high ? Math.floor(wide / 2 ** 32) : wide % 2 ** 32;
    };
    const base = () => places.get(this.#sharedMemory);
    const length = () => {
      const region = this.device.sharedMemory.find(({ id }) => id === this.#sharedMemory);
      return base() === undefined ? undefined : region?.memory.length;
    };
    const found = () => (length() === undefined ? undefined : base());
    return [
      [VIRTIO_MMIO_SHM_SEL, { write: select }],
      [VIRTIO_MMIO_SHM_LEN_LOW, { read: () => word(length(), false) }],
      [VIRTIO_MMIO_SHM_LEN_HIGH, { read: () => word(length(), true) }],
      [VIRTIO_MMIO_SHM_BASE_LOW, { read: () => word(found(), false) }],
      [VIRTIO_MMIO_SHM_BASE_HIGH, { read: () => word(found(), true) }],
    ];
  }

  #pageRegisters(machine: StatusMachine): Registers {
    const { queues } = machine;
    const setPageSize = (value: number) => {
      this.#pageSize = value;
    };
    const setAlign = (value: number) => {
      this.#align[queues.select] = value;
    };
    const setPage = (value: number) => {
      if (machine.useLegacy()) queues.writePage(value, this.#pageSize, this.#align[queues.select] ?? 0);
    };
    return [
      [VIRTIO_MMIO_GUEST_PAGE_SIZE, { write: setPageSize }],
      [VIRTIO_MMIO_QUEUE_ALIGN, { write: setAlign }],
      [VIRTIO_MMIO_QUEUE_PFN, { read: () => queues.page, write: setPage }],
    ];
  }

  #interrupt(cause: number): void {
    this.#interruptStatus |= cause;
    this.#updateIrq();
  }

  #updateIrq(): void {
    const irq = this.#interruptStatus !== 0;
    if (irq === this.#irq) return;
    this.#irq = irq;
    this.#setIrq?.(irq);
  }

  #deviceReset(): void {
    this.#interruptStatus = 0;
    this.#align.fill(0);
    this.#updateIrq();
  }
}

function identityRegisters(device: DeviceCore, version: MmioVersion, vendorId: number): Registers {
  return [
    [VIRTIO_MMIO_MAGIC_VALUE, { read: () => VIRTIO_MMIO_MAGIC }],
    [VIRTIO_MMIO_VERSION, { read: () => version }],
    [VIRTIO_MMIO_DEVICE_ID, { read: () => device.deviceId }],
    [VIRTIO_MMIO_VENDOR_ID, { read: () => vendorId }],
  ];
}

function modernRegisters(machine: StatusMachine): Registers {
  const { queues } = machine;
  const address = (half: number): Register => ({ write: (value) => queues.writeAddress(half, value) });
  const ready = (value: number) => {
    if (value === 0) queues.disable();
    else queues.writeEnable(value);
  };
  return [
    ...selectRegisters(machine),
    [VIRTIO_MMIO_DEVICE_FEATURES, { read: () => machine.deviceFeature }],
    [VIRTIO_MMIO_DRIVER_FEATURES, { write: (value) => machine.writeDriverFeature(value) }],
    [VIRTIO_MMIO_QUEUE_SIZE, { write: (value) => queues.writeSize(value) }],
    [VIRTIO_MMIO_QUEUE_READY, { read: () => (queues.enabled ? 1 : 0), write: ready }],
    [VIRTIO_MMIO_STATUS, { read: () => machine.status, write: (value) => machine.writeStatus(value) }],
    [VIRTIO_MMIO_QUEUE_DESC_LOW, address(QUEUE_DESC_LOW)],
    [VIRTIO_MMIO_QUEUE_DESC_HIGH, address(QUEUE_DESC_HIGH)],
    [VIRTIO_MMIO_QUEUE_DRIVER_LOW, address(QUEUE_DRIVER_LOW)],
    [VIRTIO_MMIO_QUEUE_DRIVER_HIGH, address(QUEUE_DRIVER_HIGH)],
    [VIRTIO_MMIO_QUEUE_DEVICE_LOW, address(QUEUE_DEVICE_LOW)],
    [VIRTIO_MMIO_QUEUE_DEVICE_HIGH, address(QUEUE_DEVICE_HIGH)],
    [VIRTIO_MMIO_QUEUE_RESET, { read: () => (queues.resetting ? 1 : 0), write: (value) => queues.writeReset(value) }],
    [VIRTIO_MMIO_CONFIG_GENERATION, { read: () => machine.device.config.generation }],
  ];
}

function legacyRegisters(machine: StatusMachine): Registers {
  const { queues } = machine;
  const deviceFeature = () => (machine.deviceFeatureSelect === 0 ? machine.device.legacyFeatures.word(0) : 0);
  const driverFeature = (value: number) => {
    if (machine.driverFeatureSelect === 0) machine.writeLegacyFeatures(value);
  };
  const size = (value: number) => {
    if (machine.useLegacy()) queues.writeSize(value);
  };
  return [
    ...selectRegisters(machine),
    [VIRTIO_MMIO_DEVICE_FEATURES, { read: deviceFeature }],
    [VIRTIO_MMIO_DRIVER_FEATURES, { write: driverFeature }],
    [VIRTIO_MMIO_QUEUE_SIZE, { write: size }],
    [VIRTIO_MMIO_STATUS, { read: () => machine.status, write: (value) => machine.writeLegacyStatus(value) }],
  ];
}

function selectRegisters(machine: StatusMachine): Registers {
  const { queues } = machine;
  const selectDeviceFeatures = (value: number) => {
    machine.deviceFeatureSelect = value;
  };
  const selectDriverFeatures = (value: number) => {
    machine.driverFeatureSelect = value;
  };
  const selectQueue = (value: number) => {
    queues.select = value;
  };
  return [
    [VIRTIO_MMIO_DEVICE_FEATURES_SEL, { write: selectDeviceFeatures }],
    [VIRTIO_MMIO_DRIVER_FEATURES_SEL, { write: selectDriverFeatures }],
    [VIRTIO_MMIO_QUEUE_SEL, { write: selectQueue }],
    [VIRTIO_MMIO_QUEUE_SIZE_MAX, { read: () => queues.maxSize }],
  ];
}
