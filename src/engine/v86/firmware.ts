import type { V86Cpu } from "./internals.ts";

/** Where SeaBIOS writes what it does, a byte at a time, if a read finds {@link DEBUG_PRESENT}. */
export const DEBUG_PORT = 0x402;
export const DEBUG_PRESENT = 0xe9;
/** A longer line is told in pieces. */
const LONGEST = 512;

/** What board and firmware tell each other beside the hardware: files for it (fw_cfg), and the lines it writes to its debug port. */
export class Firmware {
  readonly #files = new Map<string, Uint8Array>();
  #cpu: V86Cpu | undefined;
  #line = "";
  #lines: string[] = [];

  /** Goes on with a machine that was just made. */
  follow(cpu: V86Cpu): void {
    this.#cpu = cpu;
    for (const [name, data] of this.#files) cpu.option_roms.push({ name, data });
  }

  /** A file by its name in QEMU's fw_cfg, such as "bootorder"; the firmware reads it at power-on. */
  setFile(name: string, data: Uint8Array): void {
    this.#files.set(name, data);
    const there = this.#cpu?.option_roms.find((file) => file.name === name);
    if (there === undefined) this.#cpu?.option_roms.push({ name, data });
    else there.data = data;
  }

  /** A byte on the debug port. */
  write(byte: number): void {
    if (byte === 10 || this.#line.length >= LONGEST) {
      if (this.#line !== "") this.#lines.push(this.#line);
      this.#line = "";
    }
    if (byte >= 32 && byte < 127) this.#line += String.fromCharCode(byte);
  }

  /** The lines since the last time. */
  take(): readonly string[] {
    if (this.#lines.length === 0) return this.#lines;
    const lines = this.#lines;
    this.#lines = [];
    return lines;
  }
}
