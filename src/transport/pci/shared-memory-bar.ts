import type { SharedMemoryRegion } from "../../device/shared-memory.ts";
import type { AccessSize } from "./function.ts";

/** Where a region lies in the BAR. */
export interface SharedMemoryPlace {
  readonly id: number;
  readonly offset: number;
  /** Bytes. */
  readonly length: number;
  readonly memory: Uint8Array;
}

/** A BAR with the shared memory regions of a device one behind the other (VIRTIO 1.4 §4.1.4.7). */
export class SharedMemoryBar {
  readonly places: readonly SharedMemoryPlace[];
  /** Bytes of the BAR. */
  readonly size: number;

  constructor(regions: readonly SharedMemoryRegion[]) {
    let end = 0;
    this.places = regions.map(({ id, memory }) => {
      const offset = end;
      end += memory.length;
      return { id, offset, length: memory.length, memory };
    });
    this.size = 2 ** Math.ceil(Math.log2(end));
  }

  read(offset: number, size: AccessSize): number {
    let value = 0;
    for (let i = size - 1; i >= 0; i--) {
      const place = this.#at(offset + i);
      value = value * 256 + (place?.memory[offset + i - place.offset] ?? 0);
    }
    return value;
  }

  write(offset: number, size: AccessSize, value: number): void {
    for (let i = 0; i < size; i++) {
      const place = this.#at(offset + i);
      if (place !== undefined) place.memory[offset + i - place.offset] = Math.floor(value / 2 ** (8 * i)) & 0xff;
    }
  }

  #at(offset: number): SharedMemoryPlace | undefined {
    return this.places.find((place) => offset >= place.offset && offset < place.offset + place.length);
  }
}
