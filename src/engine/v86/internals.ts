import { VirtkitError } from "../../common/error.ts";

/** The one release of the `v86` package whose internals this engine was written against. */
export const V86_VERSION = "0.5.462";

export type ReadAccess = (address: number) => number;
/** What it returns is ignored. */
export type WriteAccess = (address: number, value: number) => unknown;

/** The functions v86 hands to its WebAssembly module: every access of the guest's to a device passes here. */
export interface V86Imports {
  io_port_read8: ReadAccess;
  io_port_read16: ReadAccess;
  io_port_read32: ReadAccess;
  io_port_write8: WriteAccess;
  io_port_write16: WriteAccess;
  io_port_write32: WriteAccess;
  mmap_read8: ReadAccess;
  mmap_read32: ReadAccess;
  mmap_write8: WriteAccess;
  mmap_write16: WriteAccess;
  mmap_write32: WriteAccess;
  mmap_write64: (address: number, v0: number, v1: number) => unknown;
  mmap_write128: (address: number, v0: number, v1: number, v2: number, v3: number) => unknown;
  cpu_event_halt: () => void;
  stop_idling: () => void;
  console_log_from_wasm: (offset: number, length: number) => void;
}

/** The part of v86's PCI host bridge that decides where an interrupt pin goes and which function exists. */
export interface V86Pci {
  readonly pci_addr32: Int32Array;
  readonly isa_bridge_space8: Uint8Array;
  readonly device_spaces: readonly (Int32Array | undefined)[];
}

export interface V86Uart {
  readonly input: number[];
}

/** The part of v86's CPU object that the engine uses. */
export interface V86Cpu {
  readonly wasm_memory: { readonly buffer: ArrayBuffer };
  readonly memory_size: Uint32Array;
  readonly mem8: Uint8Array;
  readonly flags: Int32Array;
  readonly in_hlt: Uint8Array;
  readonly idtr_size: Int32Array;
  readonly option_roms: { name: string; data: Uint8Array }[];
  readonly devices: {
    readonly pci: V86Pci;
    readonly uart0: V86Uart;
    readonly uart1?: V86Uart;
    readonly uart2?: V86Uart;
    readonly uart3?: V86Uart;
    /** There with ACPI only. */
    readonly acpi?: { pm1_status: number; readonly pm1_enable: number };
  };
  main_loop(): number;
  handle_irqs(): void;
  device_raise_irq(irq: number): void;
  device_lower_irq(irq: number): void;
  jit_dirty_cache(start: number, end: number): void;
  get_apic_addr(): number;
  zstd_create_ctx(size: number): number;
  zstd_free_ctx(context: number): void;
  codegen_finalize_finished(index: number, start: number, flags: number): void;
  zero_memory(address: number, size: number): void;
  reboot_internal(): void;
}

/** An instance of v86's `V86` class after its event "emulator-loaded". */
export interface V86Instance {
  readonly v86: {
    readonly cpu: V86Cpu;
    save_state(): ArrayBuffer;
    restore_state(state: ArrayBuffer): void;
  };
  readonly bus: { send(event: string, value: number): void };
  add_listener(event: string, listener: (value: number) => void): void;
  destroy(): Promise<void>;
}

type Kind = "function" | "array" | "ArrayBuffer" | "view of bytes" | "view of words";
type Row = readonly [name: string, kind: Kind];

const IMPORTS: readonly Row[] = [
  "io_port_read8",
  "io_port_read16",
  "io_port_read32",
  "io_port_write8",
  "io_port_write16",
  "io_port_write32",
  "mmap_read8",
  "mmap_read32",
  "mmap_write8",
  "mmap_write16",
  "mmap_write32",
  "mmap_write64",
  "mmap_write128",
  "cpu_event_halt",
  "stop_idling",
  "console_log_from_wasm",
].map((name) => [name, "function"] as const);

const INSTANCE: readonly Row[] = [
  ["add_listener", "function"],
  ["destroy", "function"],
  ["bus.send", "function"],
  ["v86.save_state", "function"],
  ["v86.restore_state", "function"],
  ["v86.cpu.main_loop", "function"],
  ["v86.cpu.handle_irqs", "function"],
  ["v86.cpu.device_raise_irq", "function"],
  ["v86.cpu.device_lower_irq", "function"],
  ["v86.cpu.jit_dirty_cache", "function"],
  ["v86.cpu.get_apic_addr", "function"],
  ["v86.cpu.zstd_create_ctx", "function"],
  ["v86.cpu.zstd_free_ctx", "function"],
  ["v86.cpu.codegen_finalize_finished", "function"],
  ["v86.cpu.zero_memory", "function"],
  ["v86.cpu.reboot_internal", "function"],
  ["v86.cpu.wasm_memory.buffer", "ArrayBuffer"],
  ["v86.cpu.memory_size", "view of words"],
  ["v86.cpu.mem8", "view of bytes"],
  ["v86.cpu.flags", "view of words"],
  ["v86.cpu.in_hlt", "view of bytes"],
  ["v86.cpu.idtr_size", "view of words"],
  ["v86.cpu.option_roms", "array"],
  ["v86.cpu.devices.uart0.input", "array"],
  ["v86.cpu.devices.pci.pci_addr32", "view of words"],
  ["v86.cpu.devices.pci.isa_bridge_space8", "view of bytes"],
  ["v86.cpu.devices.pci.device_spaces", "array"],
];

/**
 * Checks the functions v86 gives to its WebAssembly module.
 * @throws ERR_VIRTKIT_V86_INTERNALS naming what is missing
 */
export function assertImports(value: unknown): asserts value is V86Imports {
  check(value, IMPORTS, "wasm import ");
}

/**
 * Checks every name the engine reaches for inside a loaded v86.
 * @throws ERR_VIRTKIT_V86_INTERNALS naming what is missing
 */
export function assertInstance(value: unknown): asserts value is V86Instance {
  check(value, INSTANCE, "");
}

/**
 * The constructor of an imported v86 module.
 * @throws ERR_VIRTKIT_V86_INTERNALS when it has none
 */
export function v86Constructor(module: unknown): new (options: object) => unknown {
  check(module, [["V86", "function"]], "export ");
  return (module as { V86: new (options: object) => unknown }).V86;
}

function check(root: unknown, rows: readonly Row[], prefix: string): void {
  const missing: string[] = [];
  for (const [name, kind] of rows) {
    let value = root;
    for (const part of name.split(".")) value = Object(value)[part];
    if (!isKind(value, kind)) missing.push(`${prefix}${name} (${kind})`);
  }
  if (missing.length > 0) {
    throw new VirtkitError(
      "ERR_VIRTKIT_V86_INTERNALS",
      `this build of v86 is not the one virtkit drives: it lacks ${missing.join(", ")}; install exactly v86@${V86_VERSION}`,
    );
  }
}

function isKind(value: unknown, kind: Kind): boolean {
  switch (kind) {
    case "function":
      return typeof value === "function";
    case "array":
      return Array.isArray(value);
    case "ArrayBuffer":
      return value instanceof ArrayBuffer;
    // v86 shows parts of its memory through proxies, which are no instances of a typed array.
    case "view of bytes":
      return Object(value).BYTES_PER_ELEMENT === 1;
    case "view of words":
      return Object(value).BYTES_PER_ELEMENT === 4;
  }
}
