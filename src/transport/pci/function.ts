/**
 * The border between a PCI function and the machine it is plugged into. The engine (v86, KVM) or our in-process bus decodes
 * addresses; the function knows its registers and BARs. Nothing here knows virtio.
 */

/** 1, 2 or 4 bytes: the widths of a configuration or BAR access. Wider ones arrive split. */
export type AccessSize = 1 | 2 | 4;

export type BarKind = "io" | "mem32" | "mem64";

/** A base address register as the function declares it and the guest has programmed it. */
export interface PciBar {
  /** 0..5; a mem64 BAR takes this register and the next one. */
  readonly index: number;
  readonly kind: BarKind;
  /** Bytes, a power of two: at least 4 for io, 16 for memory. */
  readonly size: number;
  /**
   * Where the guest put it, or undefined while it does not decode: the command register's bit is off, or the BAR was
   * never programmed (address 0 or, during sizing, all ones).
   */
  readonly address: number | undefined;
}

/** What the machine gives a function that is plugged in. */
export interface PciHost {
  /** Drives the function's INTx pin: true asserts, false deasserts. Level-triggered; repeated calls are harmless. */
  setIntx(asserted: boolean): void;
  /** Delivers a message-signalled interrupt: a 32-bit write of `data` to the 64-bit `address`. */
  sendMsi(address: number, data: number): void;
  /** The guest moved, enabled or disabled a BAR: {@link PciFunction.bars} has changed. */
  barsChanged(): void;
}

/** One function of a PCI device. All values are unsigned; an access outside what exists reads 0 and writes nothing. */
export interface PciFunction {
  /** For messages: the device's id or type name. */
  readonly name: string;
  /** 0 when the function has no pin, else 1 (INTA#) to 4. */
  readonly interruptPin: number;
  readonly bars: readonly PciBar[];
  /** `offset` 0..255 (type 0 header, capabilities), naturally aligned. */
  configRead(offset: number, size: AccessSize): number;
  configWrite(offset: number, size: AccessSize, value: number): void;
  barRead(bar: number, offset: number, size: AccessSize): number;
  barWrite(bar: number, offset: number, size: AccessSize, value: number): void;
  /** Plugged in; called once before any access. */
  connect(host: PciHost): void;
  /** Bus reset (RST#): registers and BARs go back to their start values, the device resets. */
  reset(): void;
}
