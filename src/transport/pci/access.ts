import type { AccessSize } from "./function.ts";

/** A message that raises an interrupt here when it is written. */
export interface MsiMessage {
  readonly address: number;
  readonly data: number;
}

/** A range of addresses that BARs may be put into. */
export interface AddressRange {
  readonly base: number;
  /** Bytes. */
  readonly size: number;
}

/** Where a driver may put BARs that nobody placed yet. */
export interface PciResources {
  readonly io: AddressRange;
  /** Below 4 GiB. */
  readonly mem32: AddressRange;
  /** For 64-bit BARs; they go into `mem32` where this is missing. */
  readonly mem64?: AddressRange;
}

/**
 * How a driver reaches PCI: the counterpart of what a kernel gives its drivers. The bus in this process implements it; so could
 * anything that can reach a device's registers (a VM's API, VFIO).
 */
export interface PciAccess {
  configRead(device: number, fn: number, offset: number, size: AccessSize): number;
  configWrite(device: number, fn: number, offset: number, size: AccessSize, value: number): void;
  memRead(address: number, size: AccessSize): number;
  memWrite(address: number, size: AccessSize, value: number): void;
  ioRead(port: number, size: AccessSize): number;
  ioWrite(port: number, size: AccessSize, value: number): void;
  /** A message for {@link handler}; undefined when there are no more, and then the driver does with fewer. */
  allocateMsi(handler: () => void): MsiMessage | undefined;
  freeMsi(message: MsiMessage): void;
  /** Adds a handler for the level-triggered line of a device's pin (1..4); returns how to take it away. */
  onIntx(device: number, pin: number, handler: () => void): () => void;
  readonly resources: PciResources;
}
