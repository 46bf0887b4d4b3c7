import type { MmioAccessSize } from "./device.ts";

/** How a driver reaches the registers of one virtio-mmio device, and hears of its interrupt. */
export interface MmioAccess {
  /** @param offset from the start of the register block */
  read(offset: number, size: MmioAccessSize): number;
  write(offset: number, size: MmioAccessSize, value: number): void;
  /** Adds a handler for the level-triggered interrupt; returns how to take it away. */
  onIrq(handler: () => void): () => void;
}
