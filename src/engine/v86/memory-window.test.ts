import assert from "node:assert/strict";
import { test } from "node:test";
import type { V86Cpu } from "./internals.ts";
import { MemoryWindow } from "./memory-window.ts";

const LIMIT = { timeout: 10_000 };
const RAM = 0x10000;
const OFFSET = 0x1000;

/** As much of a CPU as the window asks, whose memory `move` replaces as WebAssembly does when it grows. */
function fakeCpu(): { cpu: V86Cpu; move: () => void; dirty: [number, number][]; onDirty: { call: () => void } } {
  const dirty: [number, number][] = [];
  const onDirty = { call: () => {} };
  const wasm_memory = { buffer: new ArrayBuffer(RAM + OFFSET) };
  const cpu = {
    wasm_memory,
    memory_size: Uint32Array.of(RAM),
    mem8: { byteOffset: OFFSET },
    flags: { byteOffset: 120 },
    in_hlt: { byteOffset: 616 },
    get_apic_addr: () => 0x800,
    jit_dirty_cache: (start: number, end: number) => {
      dirty.push([start, end]);
      onDirty.call();
    },
  } as unknown as V86Cpu;
  const move = () => {
    wasm_memory.buffer = structuredClone(wasm_memory.buffer, { transfer: [wasm_memory.buffer] });
  };
  return { cpu, move, dirty, onDirty };
}

test("memory that moved is followed at the next entry, by the same region", LIMIT, () => {
  const { cpu, move } = fakeCpu();
  const window = new MemoryWindow(cpu);
  const [region] = window.memory.regions;
  assert.equal(window.memory.fixed, false);
  window.memory.write(16, Uint8Array.of(1, 2, 3));
  const flags = window.flags;
  window.sync();
  assert.equal(window.flags, flags, "nothing is made anew while nothing moved");
  move();
  assert.equal(region?.u8.length, 0);
  window.sync();
  assert.equal(window.memory.regions[0], region);
  assert.deepEqual([...(region?.u8.subarray(16, 19) ?? [])], [1, 2, 3]);
  assert.equal(window.apic.byteOffset, 0x800);
  assert.equal(window.halted.byteOffset, 616);
});

test("writes are told to v86 with their end, empty ones not; memory that moves meanwhile is followed", LIMIT, () => {
  const { cpu, move, dirty, onDirty } = fakeCpu();
  const window = new MemoryWindow(cpu);
  window.memory.write(0xfff, Uint8Array.of(1, 2));
  window.memory.markWritten(0, 0);
  assert.deepEqual(dirty, [[0xfff, 0x1001]]);
  onDirty.call = move;
  window.memory.write(0, Uint8Array.of(9));
  assert.equal(window.memory.regions[0]?.u8[0], 9);
});
