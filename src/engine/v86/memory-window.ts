import { GuestMemory } from "../../memory/guest-memory.ts";
import { MemoryRegion } from "../../memory/memory-region.ts";
import type { V86Cpu } from "./internals.ts";

/** Size of v86's local APIC structure. */
const APIC_WORDS = 46;

/**
 * Guest memory over v86's WebAssembly memory. The buffer is replaced whenever that memory grows, which only code inside
 * v86 does: {@link sync} is called at each entry from the guest and after each call into v86, so that a device always
 * finds live views.
 */
export class MemoryWindow {
  readonly memory: GuestMemory;
  readonly #region: MemoryRegion;
  #cpu: V86Cpu | undefined;
  /** Flags register and HLT state, which v86 shows through slow proxies. */
  flags!: Int32Array;
  halted!: Uint8Array;
  /** Local APIC registers as 32-bit words; IRR at 16..23, TMR at 32..39. */
  apic!: Int32Array;
  #apicAddress = 0;

  constructor(cpu: V86Cpu) {
    const size = cpu.memory_size[0] as number;
    this.#cpu = cpu;
    this.#region = new MemoryRegion(0, cpu.wasm_memory.buffer, { byteOffset: cpu.mem8.byteOffset, size });
    this.memory = new GuestMemory([this.#region], { fixed: false });
    this.memory.observeWrites((address, length) => this.#written(address, length));
    this.follow(cpu);
  }

  /** Moves the window to another instance with as much memory (the machine was reset). */
  follow(cpu: V86Cpu): void {
    this.#cpu = cpu;
    this.#apicAddress = cpu.get_apic_addr();
    this.#refresh(cpu);
  }

  /**
   * Lets go of the instance, so that its memory can be freed. Until {@link follow} there is memory that reads zero, and what is
   * written to it is lost.
   */
  release(): void {
    this.#cpu = undefined;
    this.#region.setBuffer(new ArrayBuffer(this.size), 0);
    this.flags = new Int32Array(1);
    this.halted = new Uint8Array(1);
    this.apic = new Int32Array(APIC_WORDS);
  }

  /** Makes the views live again if v86's memory moved. A detached buffer shows as length 0. */
  sync(): void {
    if (this.flags.length === 0 && this.#cpu !== undefined) this.#refresh(this.#cpu);
  }

  /** Bytes of RAM. */
  get size(): number {
    return this.#region.size;
  }

  #refresh(cpu: V86Cpu): void {
    const buffer = cpu.wasm_memory.buffer;
    this.#region.setBuffer(buffer, cpu.mem8.byteOffset);
    this.flags = new Int32Array(buffer, cpu.flags.byteOffset, 1);
    this.halted = new Uint8Array(buffer, cpu.in_hlt.byteOffset, 1);
    this.apic = new Int32Array(buffer, this.#apicAddress, APIC_WORDS);
  }

  #written(address: number, length: number): void {
    if (length > 0) this.#cpu?.jit_dirty_cache(address, address + length);
    this.sync();
  }
}
