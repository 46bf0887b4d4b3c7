import assert from "node:assert/strict";
import { test } from "node:test";
import { V86Engine } from "./engine.ts";
import { assertImports, assertInstance, v86Constructor } from "./internals.ts";
import { readV86Wasm } from "./wasm-file.ts";

const LIMIT = { timeout: 20_000 };
const code = "ERR_VIRTKIT_V86_INTERNALS";

test("what is missing in v86 is listed, with the version that has it", LIMIT, () => {
  const message =
    /lacks .*v86\.cpu\.main_loop \(function\), .*v86\.cpu\.jit_dirty_cache \(function\), .*v86@0\.5\.462$/;
  assert.throws(() => assertInstance({}), { code, message });
  assert.throws(() => assertInstance(undefined), { code });
  assert.throws(() => assertImports({ mmap_read8: 1 }), { code, message: /wasm import mmap_read8 \(function\)/ });
  assert.throws(() => v86Constructor({ default: 1 }), { code, message: /export V86/ });
});

test("a single name of the wrong kind is enough, and is the only one named", LIMIT, async () => {
  const library: { V86: new (options: object) => { add_listener(name: string, listener: () => void): void } } =
    await import("v86");
  class Changed extends library.V86 {
    override add_listener(name: string, listener: () => void): void {
      super.add_listener(name, () => {
        Object.assign((this as unknown as { v86: { cpu: object } }).v86.cpu, { get_apic_addr: 5 });
        listener();
      });
    }
  }
  const options = { memorySize: 16 << 20, bios: new Uint8Array(0x10000), wasm: await readV86Wasm() };
  await assert.rejects(V86Engine.create({ ...options, library: { V86: Changed } }), {
    code,
    message: /it lacks v86\.cpu\.get_apic_addr \(function\); install/,
  });
});
