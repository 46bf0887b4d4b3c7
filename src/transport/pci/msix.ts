import {
  PCI_MSIX_ENTRY_CTRL_MASKBIT,
  PCI_MSIX_ENTRY_DATA,
  PCI_MSIX_ENTRY_LOWER_ADDR,
  PCI_MSIX_ENTRY_SIZE,
  PCI_MSIX_ENTRY_UPPER_ADDR,
  PCI_MSIX_ENTRY_VECTOR_CTRL,
} from "../../spec/pci.ts";
import type { AccessSize } from "./function.ts";

const WORDS = PCI_MSIX_ENTRY_SIZE / 4;
const LOWER = PCI_MSIX_ENTRY_LOWER_ADDR / 4;
const UPPER = PCI_MSIX_ENTRY_UPPER_ADDR / 4;
const DATA = PCI_MSIX_ENTRY_DATA / 4;
const CONTROL = PCI_MSIX_ENTRY_VECTOR_CTRL / 4;

/** Largest table (PCI Local Bus 3.0 §6.8.2.3). */
export const MSIX_MAX_VECTORS = 2048;

/**
 * MSI-X table and pending bit array in a BAR of their own (PCI Local Bus 3.0 §6.8.2): table from offset 0, PBA behind it. A
 * vector that is raised while it, or the function, is masked leaves a pending bit and is sent when the mask goes.
 */
export class MsixTable {
  /** Vectors. */
  readonly count: number;
  /** Offset of the PBA in the BAR. */
  readonly pbaOffset: number;
  /** Bytes of the BAR. */
  readonly barSize: number;
  readonly #entries: Uint32Array;
  readonly #pending: Uint32Array;
  readonly #send: (address: number, data: number) => void;
  #enabled = false;
  #masked = false;

  constructor(count: number, send: (address: number, data: number) => void) {
    this.count = count;
    this.#send = send;
    this.#entries = new Uint32Array(count * WORDS);
    this.#pending = new Uint32Array(Math.ceil(count / 64) * 2);
    this.pbaOffset = Math.max(2048, Math.ceil((count * PCI_MSIX_ENTRY_SIZE) / 8) * 8);
    this.barSize = 2 ** Math.ceil(Math.log2(Math.max(4096, this.pbaOffset + this.#pending.length * 4)));
    this.reset();
  }

  /** The capability's MSI-X Enable bit. */
  get enabled(): boolean {
    return this.#enabled;
  }

  /** The capability's Enable and Function Mask bits as they are now. */
  configure(enabled: boolean, masked: boolean): void {
    this.#enabled = enabled;
    this.#masked = masked;
    for (let vector = 0; vector < this.count; vector++) this.#sendIfUnmasked(vector);
  }

  /** Raises a vector. Nothing happens while MSI-X is off. */
  notify(vector: number): void {
    if (!this.#enabled || vector >= this.count) return;
    if (this.#masked || this.#entryMasked(vector)) {
      this.#pending[vector >>> 5] = (this.#pending[vector >>> 5] as number) | (1 << (vector & 31));
      return;
    }
    const entry = vector * WORDS;
    const low = this.#entries[entry + LOWER] as number;
    const high = this.#entries[entry + UPPER] as number;
    this.#send(high * 2 ** 32 + low, this.#entries[entry + DATA] as number);
  }

  /** Forgets what is pending for a vector that no longer stands for anything. */
  forget(vector: number): void {
    if (vector < this.count)
      this.#pending[vector >>> 5] = (this.#pending[vector >>> 5] as number) & ~(1 << (vector & 31));
  }

  reset(): void {
    this.#enabled = false;
    this.#masked = false;
    this.#pending.fill(0);
    this.#entries.fill(0);
    for (let vector = 0; vector < this.count; vector++)
      this.#entries[vector * WORDS + CONTROL] = PCI_MSIX_ENTRY_CTRL_MASKBIT;
  }

  read(offset: number, size: AccessSize): number {
    let value = 0;
    for (let i = size - 1; i >= 0; i--) {
      const at = offset + i;
      value = value * 256 + ((this.#word(at) >>> (8 * (at & 3))) & 0xff);
    }
    return value;
  }

  /** The table takes writes of any width; the PBA is read-only. */
  write(offset: number, size: AccessSize, value: number): void {
    for (let i = 0; i < size; i++) {
      const at = offset + i;
      const word = at >>> 2;
      if (word >= this.#entries.length) return;
      const shift = 8 * (at & 3);
      const byte = Math.floor(value / 2 ** (8 * i)) & 0xff;
      this.#entries[word] = ((this.#entries[word] as number) & ~(0xff << shift)) | (byte << shift);
    }
    for (let i = 0; i < size; i += 1) this.#tidy((offset + i) >>> 2);
  }

  #tidy(word: number): void {
    const part = word % WORDS;
    // The lowest two bits of an address are zero, and of the control word only the mask exists.
    if (part === LOWER) this.#entries[word] = (this.#entries[word] as number) & ~3;
    if (part !== CONTROL) return;
    this.#entries[word] = (this.#entries[word] as number) & PCI_MSIX_ENTRY_CTRL_MASKBIT;
    this.#sendIfUnmasked(Math.floor(word / WORDS));
  }

  #word(offset: number): number {
    if (offset >= this.pbaOffset) return this.#pending[(offset - this.pbaOffset) >>> 2] ?? 0;
    return this.#entries[offset >>> 2] ?? 0;
  }

  #entryMasked(vector: number): boolean {
    return ((this.#entries[vector * WORDS + CONTROL] as number) & PCI_MSIX_ENTRY_CTRL_MASKBIT) !== 0;
  }

  #sendIfUnmasked(vector: number): void {
    const pending = ((this.#pending[vector >>> 5] as number) >>> (vector & 31)) & 1;
    if (pending === 0 || !this.#enabled || this.#masked || this.#entryMasked(vector)) return;
    this.forget(vector);
    this.notify(vector);
  }
}
