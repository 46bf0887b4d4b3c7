import type { FoundSharedMemory } from "../../driver/transport.ts";
import {
  PCI_CAP_ID_VNDR,
  VIRTIO_PCI_CAP_BAR,
  VIRTIO_PCI_CAP_CFG_TYPE,
  VIRTIO_PCI_CAP_COMMON_CFG,
  VIRTIO_PCI_CAP_DEVICE_CFG,
  VIRTIO_PCI_CAP_ID,
  VIRTIO_PCI_CAP_ISR_CFG,
  VIRTIO_PCI_CAP_LEN,
  VIRTIO_PCI_CAP_LENGTH,
  VIRTIO_PCI_CAP_NOTIFY_CFG,
  VIRTIO_PCI_CAP_OFFSET,
  VIRTIO_PCI_CAP_PCI_CFG,
  VIRTIO_PCI_CAP_SHARED_MEMORY_CFG,
  VIRTIO_PCI_CAP_SIZE,
  VIRTIO_PCI_CAP64_LENGTH_HI,
  VIRTIO_PCI_CAP64_OFFSET_HI,
  VIRTIO_PCI_CAP64_SIZE,
  VIRTIO_PCI_CFG_CAP_DATA,
  VIRTIO_PCI_COMMON_Q_NDATA,
  VIRTIO_PCI_NOTIFY_CAP_MULT,
} from "../../spec/pci.ts";
import type { DriverFunction, FoundBar } from "./driver-function.ts";
import type { AccessSize } from "./function.ts";

/** BARs of a function; a higher number in a capability is reserved (driver: Virtio Structure PCI Capabilities #3). */
const BARS = 6;

/** Registers of one virtio structure, wherever they are. */
export interface Registers {
  read(offset: number, size: AccessSize): number;
  write(offset: number, size: AccessSize, value: number): void;
}

/** The structures that a modern device must have, and those it may have. */
export interface ModernStructures {
  readonly common: Registers;
  readonly isr: Registers;
  readonly notify: Registers;
  readonly notifyMultiplier: number;
  readonly notifyLength: number;
  /** Missing for a device type without configuration. */
  readonly device: Registers | undefined;
  readonly sharedMemory: readonly FoundSharedMemory[];
}

interface Structure {
  readonly capability: number;
  readonly bar: number;
  readonly offset: number;
  readonly length: number;
}

/**
 * Finds a modern device's structures: of each type the first one that can be used (driver: Virtio Structure PCI Capabilities). With
 * `window` every access goes through the PCI configuration access capability, and no BAR needs an address. Undefined when
 * one is missing: then the device is a legacy one, or none at all.
 */
export function findStructures(
  pci: DriverFunction,
  bars: readonly (FoundBar | undefined)[],
  window: boolean,
): ModernStructures | undefined {
  const windowAt = window ? findWindow(pci) : undefined;
  const find = (type: number, least: number, capability = VIRTIO_PCI_CAP_SIZE): Structure | undefined =>
    structuresOf(pci, type, capability).find(({ bar, length }) => bars[bar] !== undefined && length >= least);
  const registers = (structure: Structure): Registers =>
    windowAt === undefined ? barRegisters(pci, bars, structure) : windowRegisters(pci, windowAt, structure);
  // Before VIRTIO 1.2 the structure ended here; what follows is only used with features that say it exists.
  const common = find(VIRTIO_PCI_CAP_COMMON_CFG, VIRTIO_PCI_COMMON_Q_NDATA);
  const isr = find(VIRTIO_PCI_CAP_ISR_CFG, 1);
  const notify = find(VIRTIO_PCI_CAP_NOTIFY_CFG, 2, VIRTIO_PCI_CAP_SIZE + 4);
  const device = find(VIRTIO_PCI_CAP_DEVICE_CFG, 0);
  if (common === undefined || isr === undefined || notify === undefined || (window && windowAt === undefined))
    return undefined;
  return {
    common: registers(common),
    isr: registers(isr),
    notify: registers(notify),
    notifyMultiplier: pci.read(notify.capability + VIRTIO_PCI_NOTIFY_CAP_MULT, 4),
    notifyLength: notify.length,
    device: device && registers(device),
    sharedMemory: findSharedMemory(pci, bars),
  };
}

/** Each region once: the first capability with its id that can be used (VIRTIO 1.4 §4.1.4.7). */
function findSharedMemory(pci: DriverFunction, bars: readonly (FoundBar | undefined)[]): FoundSharedMemory[] {
  const found = new Map<number, FoundSharedMemory>();
  for (const { capability, bar, offset, length } of structuresOf(
    pci,
    VIRTIO_PCI_CAP_SHARED_MEMORY_CFG,
    VIRTIO_PCI_CAP64_SIZE,
  )) {
    const id = pci.read(capability + VIRTIO_PCI_CAP_ID, 1);
    const from = offset + pci.read(capability + VIRTIO_PCI_CAP64_OFFSET_HI, 4) * 2 ** 32;
    const bytes = length + pci.read(capability + VIRTIO_PCI_CAP64_LENGTH_HI, 4) * 2 ** 32;
    const place = bars[bar];
    if (place === undefined || place.kind === "io" || from + bytes > place.size || found.has(id)) continue;
    found.set(id, { id, address: place.address + from, length: bytes });
  }
  return [...found.values()];
}

function structuresOf(pci: DriverFunction, type: number, least: number): Structure[] {
  return pci
    .capabilities(PCI_CAP_ID_VNDR)
    .filter((at) => pci.read(at + VIRTIO_PCI_CAP_CFG_TYPE, 1) === type && pci.read(at + VIRTIO_PCI_CAP_LEN, 1) >= least)
    .map((at) => ({
      capability: at,
      bar: pci.read(at + VIRTIO_PCI_CAP_BAR, 1),
      offset: pci.read(at + VIRTIO_PCI_CAP_OFFSET, 4),
      length: pci.read(at + VIRTIO_PCI_CAP_LENGTH, 4),
    }))
    .filter(({ bar }) => bar < BARS);
}

const findWindow = (pci: DriverFunction): number | undefined =>
  structuresOf(pci, VIRTIO_PCI_CAP_PCI_CFG, VIRTIO_PCI_CFG_CAP_DATA + 4)[0]?.capability;

function barRegisters(pci: DriverFunction, bars: readonly (FoundBar | undefined)[], structure: Structure): Registers {
  const { access } = pci;
  const bar = bars[structure.bar];
  const base = (bar?.address ?? 0) + structure.offset;
  if (bar?.kind === "io")
    return {
      read: (offset, size) => access.ioRead(base + offset, size),
      write: (offset, size, value) => access.ioWrite(base + offset, size, value),
    };
  return {
    read: (offset, size) => access.memRead(base + offset, size),
    write: (offset, size, value) => access.memWrite(base + offset, size, value),
  };
}

function windowRegisters(pci: DriverFunction, window: number, structure: Structure): Registers {
  const aim = (offset: number, size: AccessSize) => {
    pci.write(window + VIRTIO_PCI_CAP_BAR, 1, structure.bar);
    // The length first: at no time may the offset be no multiple of it (driver: PCI configuration access capability #1).
    pci.write(window + VIRTIO_PCI_CAP_LENGTH, 4, size);
    pci.write(window + VIRTIO_PCI_CAP_OFFSET, 4, structure.offset + offset);
  };
  return {
    read: (offset, size) => {
      aim(offset, size);
      return pci.read(window + VIRTIO_PCI_CFG_CAP_DATA, size);
    },
    write: (offset, size, value) => {
      aim(offset, size);
      pci.write(window + VIRTIO_PCI_CFG_CAP_DATA, size, value);
    },
  };
}
