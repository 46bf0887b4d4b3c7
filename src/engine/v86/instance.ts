import { VirtkitError } from "../../common/error.ts";
import { assertImports, assertInstance, type V86Imports, type V86Instance, v86Constructor } from "./internals.ts";
import { compileWasm, instantiateWasm } from "./wasm.ts";

/** What v86 itself has to know of the PC. */
export interface InstanceOptions {
  /** The module namespace of the `v86` package. */
  readonly library: unknown;
  readonly wasm: Uint8Array;
  readonly memorySize: number;
  readonly bios: Uint8Array;
  readonly vgaBios: Uint8Array | undefined;
  readonly acpi: boolean;
  readonly bootOrder: number;
  readonly serialPorts: number;
  readonly videoMemory: number;
  /** Called before the WebAssembly module is instantiated, to put functions in front of v86's. */
  readonly intercept: (imports: V86Imports) => void;
}

/** Growing WebAssembly memory replaces its buffer; this much is taken from it once and given back to v86's allocator. */
const HEAP_RESERVE = 48 << 20;

/**
 * A fresh v86 that has not run an instruction, with none of the host adapters it would make for a browser.
 * @throws ERR_VIRTKIT_V86_INTERNALS, ERR_VIRTKIT_V86_WASM
 */
export async function createInstance(options: InstanceOptions): Promise<V86Instance> {
  const V86 = v86Constructor(options.library);
  const module = await compileWasm(options.wasm).catch((cause: unknown) => {
    throw new VirtkitError("ERR_VIRTKIT_V86_WASM", "the bytes given as v86's WebAssembly module do not compile", {
      cause,
    });
  });
  const { promise, resolve, reject } = deferred<V86Instance>();
  const wasmFunction = async (imports: { env: unknown }): Promise<object> => {
    try {
      assertImports(imports.env);
      options.intercept(imports.env);
      return await instantiateWasm(module, imports);
    } catch (error) {
      reject(error);
      return new Promise(() => {});
    }
  };
  const emulator = new V86({ ...settings(options), wasm_fn: wasmFunction });
  if (typeof Object(emulator).add_listener !== "function") assertInstance(emulator);
  (emulator as V86Instance).add_listener("emulator-loaded", () => {
    try {
      assertInstance(emulator);
      reserveHeap(emulator);
      resolve(emulator);
    } catch (error) {
      reject(error);
    }
  });
  return promise;
}

function settings(options: InstanceOptions): object {
  return {
    memory_size: options.memorySize,
    vga_memory_size: options.videoMemory,
    bios: { buffer: exactBuffer(options.bios) },
    vga_bios: options.vgaBios === undefined ? undefined : { buffer: exactBuffer(options.vgaBios) },
    acpi: options.acpi,
    boot_order: options.bootOrder,
    uart1: options.serialPorts > 1,
    uart2: options.serialPorts > 2,
    uart3: options.serialPorts > 3,
    net_device: { type: "none" },
    autostart: false,
    disable_keyboard: true,
    disable_mouse: true,
    disable_speaker: true,
  };
}

function reserveHeap(emulator: V86Instance): void {
  const { cpu } = emulator.v86;
  cpu.zstd_free_ctx(cpu.zstd_create_ctx(HEAP_RESERVE));
}

/** v86 takes whole ArrayBuffers. */
function exactBuffer(bytes: Uint8Array): ArrayBuffer {
  return bytes.slice().buffer;
}

function deferred<T>(): { promise: Promise<T>; resolve: (value: T) => void; reject: (reason: unknown) => void } {
  let resolve!: (value: T) => void;
  let reject!: (reason: unknown) => void;
  const promise = new Promise<T>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}
