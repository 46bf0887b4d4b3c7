import assert from "node:assert/strict";
import { GuestMemory } from "../memory/guest-memory.ts";
import { VIRTIO_F_RING_RESET } from "../spec/features.ts";
import type { AccessSize } from "../transport/pci/function.ts";
import { VirtioPciDevice, type VirtioPciOptions } from "../transport/pci/virtio-pci-device.ts";
import { LoopDevice } from "./loop-device.ts";
import { RawSplitRing } from "./raw-ring.ts";

// A guest's raw view of a virtio-pci function. Offsets are written out as in a guest's own headers, so that a wrong constant of ours
// cannot hide behind itself.
export const BAR4 = 4;
const COMMON = 0;
export const ISR = 0x1000;
export const DEVICE = 0x2000;
export const NOTIFY = 0x3000;
export const NO_VECTOR = 0xffff;

/** A function that is connected to nothing but the arrays here. */
export function pciRig(options: Partial<VirtioPciOptions> = {}, device = new LoopDevice()) {
  const memory = GuestMemory.allocate(0x100000);
  const pci = new VirtioPciDevice(device, { memory, ...options });
  const messages: [address: number, data: number][] = [];
  const intx: boolean[] = [];
  let moves = 0;
  pci.connect({
    setIntx: (asserted) => void intx.push(asserted),
    sendMsi: (address, data) => void messages.push([address, data]),
    barsChanged: () => void moves++,
  });
  intx.length = 0;
  const read = (offset: number, size: AccessSize) => pci.barRead(BAR4, COMMON + offset, size);
  const write = (offset: number, size: AccessSize, value: number) => pci.barWrite(BAR4, COMMON + offset, size, value);
  return { pci, device, memory, messages, intx, read, write, moves: () => moves };
}

export type PciRig = ReturnType<typeof pciRig>;

export interface Capability {
  at: number;
  id: number;
  length: number;
  type: number;
  bar: number;
  offset: number;
  size: number;
}

/** Walks the capability list. */
export function capabilities({ pci }: Pick<PciRig, "pci">): Capability[] {
  const found: Capability[] = [];
  for (let at = pci.configRead(0x34, 1); at !== 0; at = pci.configRead(at + 1, 1)) {
    found.push({
      at,
      id: pci.configRead(at, 1),
      length: pci.configRead(at + 2, 1),
      type: pci.configRead(at + 3, 1),
      bar: pci.configRead(at + 4, 1),
      offset: pci.configRead(at + 8, 4),
      size: pci.configRead(at + 12, 4),
    });
    assert.ok(found.length < 20);
  }
  return found;
}

/** The virtio capability of a type. */
export const capability = (rig: PciRig, type: number): Capability =>
  capabilities(rig).find((c) => c.id === 9 && c.type === type) as Capability;

/** Brings the device up with split queues and returns the raw ring of `queue`. */
export function bringUp(rig: PciRig, queue = 0, vector = NO_VECTOR): RawSplitRing {
  const { read, write } = rig;
  write(0x14, 1, 0);
  for (const [word, bits] of [
    [0, 0],
    [1, 1],
    [2, 0],
  ] as const) {
    write(0x08, 4, word);
    write(0x0c, 4, word === 1 ? bits | (1 << (VIRTIO_F_RING_RESET - 32)) : bits);
  }
  for (const status of [1, 3, 11]) write(0x14, 1, status);
  assert.equal(read(0x14, 1), 11);
  write(0x16, 2, queue);
  write(0x18, 2, 8);
  write(0x1a, 2, vector);
  write(0x20, 4, 0x1000);
  write(0x28, 4, 0x2000);
  write(0x30, 4, 0x3000);
  write(0x1c, 2, 1);
  write(0x14, 1, 15);
  const view = rig.memory.regions[0]?.view as DataView;
  return new RawSplitRing(view, { size: 8, desc: 0x1000, driver: 0x2000, device: 0x3000 });
}

/** Sends one chain through and rings the doorbell of `queue`. */
export function send(rig: PciRig, ring: RawSplitRing, queue = 0): void {
  ring.writeDescriptor(0, { address: 0x8000, length: 4, flags: 1, next: 1 });
  ring.writeDescriptor(1, { address: 0x9000, length: 4, flags: 2 });
  ring.offer(0);
  rig.pci.barWrite(BAR4, NOTIFY + 4 * queue, 2, queue);
}
