import { V86Engine } from "./engine.ts";
import type { V86EngineOptions } from "./options.ts";
import { readV86Wasm } from "./wasm-file.ts";

/** A few instructions at a time, with labels: enough of an assembler for the monitor below. */
class Assembler {
  readonly #bytes: number[] = [];
  readonly #labels = new Map<string, number>();
  readonly #fixups: { at: number; label: string; relative: boolean }[] = [];
  readonly #origin: number;

  constructor(origin: number) {
    this.#origin = origin;
  }

  /** Bytes as hex text; a number is a dword. */
  emit(...parts: (string | number)[]): this {
    for (const part of parts) {
      if (typeof part === "number") for (let i = 0; i < 4; i++) this.#bytes.push((part >>> (8 * i)) & 0xff);
      else for (const byte of part.split(" ")) this.#bytes.push(Number.parseInt(byte, 16));
    }
    return this;
  }

  label(name: string): this {
    this.#labels.set(name, this.#bytes.length);
    return this;
  }

  /** `opcode` and the label as a relative (jumps) or absolute dword. */
  to(opcode: string, label: string, relative = true): this {
    if (opcode !== "") this.emit(opcode);
    this.#fixups.push({ at: this.#bytes.length, label, relative });
    return this.emit(0);
  }

  address(label: string): number {
    return this.#origin + (this.#labels.get(label) as number);
  }

  finish(): Uint8Array {
    const bytes = Uint8Array.from(this.#bytes);
    const view = new DataView(bytes.buffer);
    for (const { at, label, relative } of this.#fixups) {
      const target = this.#labels.get(label) as number;
      view.setUint32(at, relative ? target - at - 4 : this.#origin + target, true);
    }
    return bytes;
  }
}

const ROM = 0xf0000;
const CODE = 0x100;
/** Mailbox: command, address, value, result. A command of 0 says that the last one is done. */
const COMMAND = 0x5000;
const ADDRESS = 0x5004;
const VALUE = 0x5008;
const RESULT = 0x5010;
/** Read as a byte by the handler of the legacy interrupts, to make the device let go of its line. */
const ACKNOWLEDGE = 0x5020;
const INTX_COUNT = 0x5100;
const MSI_COUNT = 0x5108;
const IDT = ROM + 0x8000;
const READY = 0x5030;

const OPERATIONS = [
  "idle",
  "read8",
  "read16",
  "read32",
  "write8",
  "write16",
  "write32",
  "in8",
  "in16",
  "in32",
  "out8",
  "out16",
  "out32",
  "halt",
  "call",
  "die",
  "tripleFault",
  "spin",
  "write64",
  "write32Enabled",
] as const;

/** What the monitor does on command. */
export type Operation = (typeof OPERATIONS)[number];

/** 64 KiB of firmware: protected mode, interrupt controllers, then commands from the mailbox for ever. */
function rom(): Uint8Array {
  const code = new Assembler(ROM + CODE);
  code.emit("66 b8 10 00 8e d8 8e c0 8e d0", "bc", 0x7000); // data segments, esp
  code.to("0f 01 1d", "idtr", false); // lidt
  code.emit("0f 20 e0", "0d", 0x200, "0f 22 e0"); // cr4.OSFXSR, for 64-bit stores
  const out = (port: number, value: number) =>
    code.emit("66 ba", `${(port & 0xff).toString(16)} ${(port >> 8).toString(16)}`, "b0", value.toString(16), "ee");
  // PICs: vectors 0x20 and 0x28, IRQ 10 and 11 level-triggered and open.
  for (const [port, value] of [
    [0x20, 0x11],
    [0x21, 0x20],
    [0x21, 4],
    [0x21, 1],
    [0xa0, 0x11],
    [0xa1, 0x28],
    [0xa1, 2],
    [0xa1, 1],
    [0x4d1, 0x0c],
    [0x21, 0xfb],
    [0xa1, 0xf3],
  ] as const)
    out(port, value);
  code.emit("c7 05", 0xfee000f0, 0x1ff); // local APIC on
  code.emit("c7 05", READY, 1);
  code.label("loop").emit("a1", COMMAND, "85 c0").to("0f 84", "loop");
  code.emit("8b 15", ADDRESS, "8b 0d", VALUE);
  code.to("ff 24 85", "table", false); // jmp [table + 4 * eax]
  code.label("done").emit("a3", RESULT);
  code.label("idle").emit("c7 05", COMMAND, 0).to("e9", "loop");
  const operations: [Operation, string][] = [
    ["read8", "0f b6 02"],
    ["read16", "0f b7 02"],
    ["read32", "8b 02"],
    ["write8", "88 0a"],
    ["write16", "66 89 0a"],
    ["write32", "89 0a"],
    ["in8", "31 c0 ec"],
    ["in16", "31 c0 66 ed"],
    ["in32", "ed"],
    ["out8", "89 c8 ee"],
    ["out16", "89 c8 66 ef"],
    ["out32", "89 c8 ef"],
    ["halt", "fb f4 fa"],
    ["call", "ff d2"],
    ["die", "fa f4"],
    ["write64", "f3 0f 7e 05 08 50 00 00 66 0f d6 02"],
    ["write32Enabled", "fb 89 0a 90 90 90 90 fa"],
  ];
  for (const [name, bytes] of operations) code.label(name).emit(bytes).to("e9", "done");
  // Interrupts on until the counters say that `value` of them came.
  code.label("spin").emit("fb").label("spinning");
  code.emit("a1", INTX_COUNT, "03 05", MSI_COUNT, "39 c8").to("0f 82", "spinning").emit("fa").to("e9", "done");
  code.label("tripleFault").to("0f 01 1d", "nothing", false).emit("cc");
  code.label("intx").emit("60", "ff 05", INTX_COUNT, "8b 15", ACKNOWLEDGE, "8a 02");
  code.emit("b0 20 e6 a0 e6 20 61 cf");
  code.label("msi").emit("ff 05", MSI_COUNT, "c7 05", 0xfee000b0, 0, "cf");
  code.label("table");
  for (const name of OPERATIONS) code.to("", name, false);
  code.label("idtr").emit("ff 07", IDT);
  code.label("nothing").emit(0, 0);

  const image = new Uint8Array(0x10000);
  const start = new Assembler(ROM);
  // lgdt cs:[0xe0]; cr0.PE; jmp 8:CODE
  start.emit("fa 2e 66 0f 01 16 e0 00 0f 20 c0 0c 01 0f 22 c0", "66 ea", ROM + CODE, "08 00");
  image.set(start.finish(), 0);
  image.set(new Assembler(0).emit("17 00", ROM + 0xc0).finish(), 0xe0);
  image.set(new Assembler(0).emit(0, 0, 0x0000ffff, 0x00cf9a00, 0x0000ffff, 0x00cf9200).finish(), 0xc0);
  image.set(code.finish(), CODE);
  image.set([0xea, 0, 0, 0, 0xf0], 0xfff0);
  const gates = new DataView(image.buffer, IDT - ROM, 256 * 8);
  for (let vector = 0; vector < 256; vector++) {
    const handler = code.address(vector < 0x30 ? "intx" : "msi");
    gates.setUint16(8 * vector, handler & 0xffff, true);
    gates.setUint16(8 * vector + 2, 8, true);
    gates.setUint16(8 * vector + 4, 0x8e00, true);
    gates.setUint16(8 * vector + 6, handler >>> 16, true);
  }
  return image;
}

/** A machine that runs the monitor: the test is the program, the guest does single accesses on its behalf. */
export class Monitor {
  readonly engine: V86Engine;
  #fault: Error | undefined;

  static async create(options: Partial<V86EngineOptions> = {}): Promise<Monitor> {
    const engine = await V86Engine.create({
      memorySize: 16 << 20,
      bios: rom(),
      wasm: await wasm(),
      ...options,
    });
    return new Monitor(engine);
  }

  private constructor(engine: V86Engine) {
    this.engine = engine;
    engine.on("fault", (error) => {
      this.#fault = error;
    });
  }

  /** Starts the guest and waits until it takes commands. */
  async start(): Promise<void> {
    this.engine.start();
    await this.until(() => this.peek(READY) === 1);
  }

  /** Waits for a turn of the event loop at a time. */
  async until(condition: () => boolean): Promise<void> {
    while (!condition()) {
      if (this.#fault !== undefined) throw this.#fault;
      await new Promise((resolve) => setImmediate(resolve));
    }
  }

  /** Gives the guest a command without waiting for it. */
  post(operation: Operation, address = 0, value = 0, high = 0): void {
    this.poke(ADDRESS, address);
    this.poke(VALUE, value);
    this.poke(VALUE + 4, high);
    this.poke(COMMAND, OPERATIONS.indexOf(operation));
  }

  /** Waits for the command to be done; its result, unsigned. */
  async result(): Promise<number> {
    await this.until(() => this.peek(COMMAND) === 0);
    return this.peek(RESULT);
  }

  async run(operation: Operation, address = 0, value = 0, high = 0): Promise<number> {
    this.post(operation, address, value, high);
    return this.result();
  }

  /** A configuration access as the guest's drivers make it. */
  async config(
    operation: "in8" | "in16" | "in32" | "out8" | "out16" | "out32",
    devfn: number,
    offset: number,
    value = 0,
  ) {
    await this.run("out32", 0xcf8, (0x80000000 | (devfn << 8) | (offset & 0xfc)) >>> 0);
    return this.run(operation, 0xcfc + (offset & 3), value);
  }

  /** Where the legacy handler reads, as a device's interrupt status. */
  acknowledgeAt(address: number): void {
    this.poke(ACKNOWLEDGE, address);
  }

  get intxCount(): number {
    return this.peek(INTX_COUNT);
  }

  get msiCount(): number {
    return this.peek(MSI_COUNT);
  }

  peek(address: number): number {
    const bytes = new Uint8Array(4);
    this.engine.memory.read(address, bytes);
    return new DataView(bytes.buffer).getUint32(0, true);
  }

  poke(address: number, value: number): void {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, value, true);
    this.engine.memory.write(address, bytes);
  }
}

let cached: Promise<Uint8Array> | undefined;

function wasm(): Promise<Uint8Array> {
  cached ??= readV86Wasm();
  return cached;
}
