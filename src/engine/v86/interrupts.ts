import type { V86Cpu } from "./internals.ts";
import type { MemoryWindow } from "./memory-window.ts";

const FLAG_INTERRUPT = 1 << 9;
const IRR = 16;
const TMR = 32;
/** PIRQ route control registers of the PIIX3's function 0; bit 7 set means not routed. */
const PIRQ_ROUTE = 0x60;
const PIRQ_DISABLED = 0x80;
const FIRST_VECTOR = 0x10;
const LAST_VECTOR = 0xfe;

/** An interrupt pin of a function: who drives it. */
interface Source {
  readonly link: number;
  asserted: boolean;
}

/**
 * Interrupts into v86's controllers. Nothing here makes the CPU take an interrupt: it may be in the middle of compiled
 * code that called our handler. Levels and request bits are set with interrupts masked, and the CPU looks at them at its
 * next safe point; `changed` tells the engine that there is something to look at.
 */
export class Interrupts {
  readonly #window: MemoryWindow;
  readonly #changed: () => void;
  readonly #sources = new Map<number, Source>();
  #cpu: V86Cpu | undefined;
  /** The ISA interrupts that we hold up, one bit each. */
  #levels = 0;

  constructor(window: MemoryWindow, changed: () => void) {
    this.#window = window;
    this.#changed = changed;
  }

  /** Goes on with another instance, in which no line is up; undefined while there is none. */
  follow(cpu: V86Cpu | undefined): void {
    this.#cpu = cpu;
    this.#levels = 0;
    for (const source of this.#sources.values()) source.asserted = false;
  }

  /** Drives pin `pin` (1..4) of the function at `devfn`. Functions that share a line keep it up together. */
  setLevel(devfn: number, pin: number, asserted: boolean): void {
    if (pin < 1 || pin > 4) return;
    let source = this.#sources.get(devfn);
    if (source === undefined) {
      source = { link: link(devfn, pin), asserted: false };
      this.#sources.set(devfn, source);
    }
    if (source.asserted === asserted) return;
    source.asserted = asserted;
    this.reroute();
  }

  /** Lets go of the line of a function that is unplugged. */
  remove(devfn: number): void {
    if (this.#sources.delete(devfn)) this.reroute();
  }

  /** Raises an ISA interrupt that no pin of ours drives; its own device takes it down again. */
  pulse(irq: number): void {
    const cpu = this.#cpu;
    if (cpu === undefined) return;
    this.#masked(() => cpu.device_raise_irq(irq));
    this.#changed();
  }

  /** Sets the ISA lines as the pins and the route registers say; to be called when the guest changes a route. */
  reroute(): void {
    const cpu = this.#cpu;
    if (cpu === undefined) return;
    let levels = 0;
    for (const source of this.#sources.values()) {
      if (!source.asserted) continue;
      const irq = this.#route(source.link);
      if (irq !== undefined) levels |= 1 << irq;
    }
    const changes = levels ^ this.#levels;
    if (changes === 0) return;
    this.#levels = levels;
    this.#masked(() => {
      for (let irq = 0; irq < 16; irq++) {
        if ((changes & (1 << irq)) === 0) continue;
        if ((levels & (1 << irq)) !== 0) cpu.device_raise_irq(irq);
        else cpu.device_lower_irq(irq);
      }
    });
    this.#changed();
  }

  /** Touches interrupt lines while the CPU cannot take what comes of it. */
  #masked(act: () => void): void {
    const flags = this.#window.flags;
    const enabled = (flags[0] as number) & FLAG_INTERRUPT;
    flags[0] = (flags[0] as number) & ~FLAG_INTERRUPT;
    act();
    this.#window.sync();
    this.#window.flags[0] = (this.#window.flags[0] as number) | enabled;
  }

  /** The ISA interrupt that the firmware routed a function's pin to, or undefined. */
  irqOf(devfn: number, pin: number): number | undefined {
    return pin < 1 || pin > 4 ? undefined : this.#route(link(devfn, pin));
  }

  /**
   * A message in the local APIC's window: fixed or lowest-priority delivery to the one CPU there is. Other delivery modes
   * and vectors the architecture reserves are the guest's mistake and do nothing.
   */
  deliverMessage(data: number): void {
    const vector = data & 0xff;
    const mode = (data >>> 8) & 7;
    if (vector < FIRST_VECTOR || vector > LAST_VECTOR || mode > 1) return;
    const apic = this.#window.apic;
    const word = vector >>> 5;
    const bit = 1 << (vector & 31);
    apic[IRR + word] = (apic[IRR + word] as number) | bit;
    apic[TMR + word] = (apic[TMR + word] as number) & ~bit;
    this.#changed();
  }

  #route(index: number): number | undefined {
    const route = this.#cpu?.devices.pci.isa_bridge_space8[PIRQ_ROUTE + index] ?? PIRQ_DISABLED;
    return (route & PIRQ_DISABLED) !== 0 || (route & 15) === 0 ? undefined : route & 15;
  }
}

/** PIRQ A..D as 0..3: pins are swizzled by slot, as SeaBIOS's tables for this chipset say. */
function link(devfn: number, pin: number): number {
  return (pin - 1 + (devfn >>> 3) - 1) & 3;
}
