/** The part of WebAssembly's JavaScript interface that is used here (the types come with neither es2022 nor Node's). */
interface WebAssemblyApi {
  compile(bytes: Uint8Array): Promise<WasmModule>;
  instantiate(module: WasmModule, imports: object): Promise<{ readonly exports: object }>;
}

/** A compiled module. It can be shared by any number of machines. */
export type WasmModule = object;

const api = (globalThis as unknown as { WebAssembly: WebAssemblyApi }).WebAssembly;
const compiled = new WeakMap<Uint8Array, Promise<WasmModule>>();

/** Compiles once for each array of bytes. */
export function compileWasm(bytes: Uint8Array): Promise<WasmModule> {
  let module = compiled.get(bytes);
  if (module === undefined) {
    module = api.compile(bytes);
    compiled.set(bytes, module);
  }
  return module;
}

export async function instantiateWasm(module: WasmModule, imports: object): Promise<object> {
  return (await api.instantiate(module, imports)).exports;
}
