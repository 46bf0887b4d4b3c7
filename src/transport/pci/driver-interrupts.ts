import {
  PCI_CAP_ID_MSIX,
  PCI_COMMAND_INTX_DISABLE,
  PCI_INTERRUPT_PIN,
  PCI_MSIX_ENTRY_CTRL_MASKBIT,
  PCI_MSIX_ENTRY_DATA,
  PCI_MSIX_ENTRY_LOWER_ADDR,
  PCI_MSIX_ENTRY_SIZE,
  PCI_MSIX_ENTRY_UPPER_ADDR,
  PCI_MSIX_ENTRY_VECTOR_CTRL,
  PCI_MSIX_FLAGS,
  PCI_MSIX_FLAGS_ENABLE,
  PCI_MSIX_FLAGS_MASKALL,
  PCI_MSIX_FLAGS_QSIZE,
  PCI_MSIX_TABLE,
  VIRTIO_PCI_ISR_CONFIG,
  VIRTIO_PCI_ISR_QUEUE,
} from "../../spec/pci.ts";
import type { MsiMessage } from "./access.ts";
import type { DriverFunction, FoundBar } from "./driver-function.ts";
import type { Registers } from "./driver-structures.ts";

/** How interrupts come. */
export type InterruptMode =
  /** A vector for each queue and one for the configuration. */
  | "msix"
  /** One vector for all queues and one for the configuration, or one for everything. */
  | "msix-shared"
  | "intx";

/** The registers that interrupts need, wherever the interface in use has them. */
export interface InterruptRegisters {
  readonly vectors: Registers;
  /** Offsets in {@link vectors}. */
  readonly configVector: number;
  readonly queueVector: number;
  readIsr(): number;
}

/**
 * Interrupts of a virtio-pci function, driver side: MSI-X with a vector for each queue if the table and the machine have enough,
 * else with shared vectors, else INTx. Every mapping is read back (driver: MSI-X Vector Configuration).
 */
export class DriverInterrupts {
  readonly #pci: DriverFunction;
  readonly #registers: InterruptRegisters;
  readonly #table: MsixEntries | undefined;
  readonly #queues: ((() => void) | undefined)[] = [];
  #config: (() => void) | undefined;
  #mode: InterruptMode | undefined;
  /** The configuration's vector stands for queues too: there is only one, or a queue could not have its own. */
  #allOnZero = false;
  #detachIntx: (() => void) | undefined;

  /** @param msix false to use INTx even if the device has MSI-X */
  constructor(
    pci: DriverFunction,
    bars: readonly (FoundBar | undefined)[],
    registers: InterruptRegisters,
    msix: boolean,
  ) {
    this.#pci = pci;
    this.#registers = registers;
    this.#table = msix ? MsixEntries.find(pci, bars) : undefined;
  }

  get mode(): InterruptMode | undefined {
    return this.#mode;
  }

  /** MSI-X is enabled: a legacy device has its configuration elsewhere then. */
  get msix(): boolean {
    return this.#table?.enabled === true;
  }

  onConfig(listener: (() => void) | undefined): void {
    this.#config = listener;
  }

  /** After a device reset, which unmapped everything: decides on the mode and maps the configuration's vector. */
  setUp(queues: number): void {
    this.#queues.length = 0;
    this.#free();
    if (this.#table !== undefined && this.#setUpMsix(this.#table, queues)) return;
    this.#useIntx();
  }

  /** Maps the queue that queue_select names to a vector. */
  attach(index: number, handler: () => void): void {
    this.#queues[index] = handler;
    if (this.#mode === "intx") return;
    const own = this.#mode === "msix" ? 1 + index : Math.min(1, (this.#table?.inUse ?? 1) - 1);
    if (this.#map(this.#registers.queueVector, own)) return;
    if (this.#map(this.#registers.queueVector, 0)) {
      this.#allOnZero = true;
      return;
    }
    // Queues that have a vector lose it now, and the ISR status serves all.
    this.#useIntx();
  }

  detach(index: number): void {
    this.#queues[index] = undefined;
  }

  close(): void {
    this.#free();
    this.#queues.length = 0;
    this.#config = undefined;
  }

  #setUpMsix(table: MsixEntries, queues: number): boolean {
    const wanted = table.count > queues ? queues + 1 : Math.min(table.count, 2);
    const vectors = table.enable(wanted, (vector) => this.#message(vector));
    this.#mode = vectors > queues ? "msix" : "msix-shared";
    if (vectors < wanted) table.shrink(2);
    this.#allOnZero = vectors === 1;
    if (vectors > 0 && this.#map(this.#registers.configVector, 0)) return true;
    table.disable();
    return false;
  }

  #useIntx(): void {
    this.#table?.disable();
    this.#mode = "intx";
    this.#pci.command(0, PCI_COMMAND_INTX_DISABLE);
    const pin = this.#pci.read(PCI_INTERRUPT_PIN, 1);
    this.#detachIntx = this.#pci.access.onIntx(this.#pci.device, pin, () => this.#line());
  }

  #map(register: number, vector: number): boolean {
    const { vectors } = this.#registers;
    vectors.write(register, 2, vector);
    return vectors.read(register, 2) === vector;
  }

  /** With a vector of its own a queue is called alone; a shared one may mean any of them. */
  #message(vector: number): void {
    if (vector === 0) this.#config?.();
    else if (this.#mode === "msix") this.#queues[vector - 1]?.();
    if (vector === 0 ? this.#allOnZero : this.#mode === "msix-shared") this.#allQueues();
  }

  #line(): void {
    const isr = this.#registers.readIsr();
    if ((isr & VIRTIO_PCI_ISR_CONFIG) !== 0) this.#config?.();
    if ((isr & VIRTIO_PCI_ISR_QUEUE) !== 0) this.#allQueues();
  }

  #allQueues(): void {
    for (const queue of this.#queues) queue?.();
  }

  #free(): void {
    this.#table?.disable();
    this.#detachIntx?.();
    this.#detachIntx = undefined;
    this.#mode = undefined;
  }
}

/** The MSI-X table of a function, driver side. */
class MsixEntries {
  /** Entries in the table. */
  readonly count: number;
  readonly #pci: DriverFunction;
  readonly #capability: number;
  readonly #base: number;
  readonly #messages: MsiMessage[] = [];

  private constructor(pci: DriverFunction, capability: number, base: number) {
    this.#pci = pci;
    this.#capability = capability;
    this.#base = base;
    this.count = (pci.read(capability + PCI_MSIX_FLAGS, 2) & PCI_MSIX_FLAGS_QSIZE) + 1;
  }

  static find(pci: DriverFunction, bars: readonly (FoundBar | undefined)[]): MsixEntries | undefined {
    const [capability] = pci.capabilities(PCI_CAP_ID_MSIX);
    if (capability === undefined) return undefined;
    const table = pci.read(capability + PCI_MSIX_TABLE, 4);
    const bar = bars[table % 8];
    if (bar === undefined || bar.kind === "io") return undefined;
    return new MsixEntries(pci, capability, bar.address + table - (table % 8));
  }

  /** Entries that are programmed. */
  get inUse(): number {
    return this.#messages.length;
  }

  /** Programs up to `wanted` entries and switches MSI-X on; returns how many there are messages for, maybe 0. */
  enable(wanted: number, handler: (vector: number) => void): number {
    const { access } = this.#pci;
    // Masked as a whole while entries are half written.
    this.#flags(PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    for (let vector = 0; vector < wanted; vector++) {
      const message = access.allocateMsi(() => handler(vector));
      if (message === undefined) break;
      this.#messages.push(message);
      const entry = this.#base + vector * PCI_MSIX_ENTRY_SIZE;
      access.memWrite(entry + PCI_MSIX_ENTRY_LOWER_ADDR, 4, message.address % 2 ** 32);
      access.memWrite(entry + PCI_MSIX_ENTRY_UPPER_ADDR, 4, Math.floor(message.address / 2 ** 32));
      access.memWrite(entry + PCI_MSIX_ENTRY_DATA, 4, message.data);
      access.memWrite(this.#control(vector), 4, 0);
    }
    this.#flags(this.inUse > 0 ? PCI_MSIX_FLAGS_ENABLE : 0);
    return this.inUse;
  }

  /** Gives back all messages but the first `keep`. */
  shrink(keep: number): void {
    const { access } = this.#pci;
    while (this.#messages.length > keep) {
      access.freeMsi(this.#messages.pop() as MsiMessage);
      access.memWrite(this.#control(this.#messages.length), 4, PCI_MSIX_ENTRY_CTRL_MASKBIT);
    }
  }

  get enabled(): boolean {
    return (this.#pci.read(this.#capability + PCI_MSIX_FLAGS, 2) & PCI_MSIX_FLAGS_ENABLE) !== 0;
  }

  disable(): void {
    this.#flags(0);
    this.shrink(0);
  }

  #control(vector: number): number {
    return this.#base + vector * PCI_MSIX_ENTRY_SIZE + PCI_MSIX_ENTRY_VECTOR_CTRL;
  }

  #flags(value: number): void {
    this.#pci.write(this.#capability + PCI_MSIX_FLAGS, 2, value);
  }
}
