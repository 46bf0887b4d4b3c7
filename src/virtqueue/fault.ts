import { hex } from "../common/error.ts";
import type { QueueFault, QueueFaultKind } from "./types.ts";

/** Faults are built here so that their wording is one, and so that the hot paths stay small. */

export const faultOf = (kind: QueueFaultKind, reason: string): QueueFault => ({ kind, reason });

export const ringAddressFault = (part: string, address: number, bytes: number): QueueFault =>
  faultOf("ring-address", `the ${part} at ${hex(address)} is not ${bytes} bytes of usable guest memory`);

export const bufferAddressFault = (address: number, length: number, write: boolean): QueueFault =>
  faultOf(
    "buffer-address",
    `a buffer of ${length} bytes at ${hex(address)} is not wholly ${write ? "writable " : ""}guest memory`,
  );

export const indexJumpFault = (ring: string, ahead: number, room: number): QueueFault =>
  faultOf("index-jump", `the ${ring} index is ${ahead} ahead where at most ${room} is possible`);

export const indexFault = (what: string, index: number, size: number): QueueFault =>
  faultOf("descriptor-index", `${what} ${index} is past the ${size} entries of the table`);

export const chainLengthFault = (most: number): QueueFault =>
  faultOf("chain-length", `a descriptor chain has more than ${most} descriptors or loops`);

export const chainBytesFault = (): QueueFault => faultOf("chain-bytes", "a descriptor chain is longer than 2^32 bytes");

export const orderFault = (): QueueFault =>
  faultOf("order", "a device-readable descriptor follows a device-writable one");

export const duplicateFault = (what: string, id: number): QueueFault => faultOf("duplicate", `${what} ${id}`);

export const indirectFault = (why: string): QueueFault => faultOf("indirect", `indirect descriptor: ${why}`);

export const usedLengthFault = (id: number, length: number, room: number): QueueFault =>
  faultOf("used-length", `chain ${id} was returned with ${length} bytes written into ${room}`);

export const flagsFault = (index: number, tail: number): QueueFault =>
  faultOf("flags", `descriptor ${index} has flags ${hex(tail >>> 16)}, which it cannot have here`);
