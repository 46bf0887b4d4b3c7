import { VirtkitError } from "../common/error.ts";

/**
 * A shared memory region of a device (VIRTIO 1.4 §2.10): memory that the device provides and the driver maps. Where it is in the
 * driver's address space is up to the transport.
 */
export interface SharedMemoryRegion {
  /** shmid, 0..255, unique in the device; what it stands for is up to the device type. */
  readonly id: number;
  /** Its bytes. Its length is a multiple of 4096. */
  readonly memory: Uint8Array;
}

const PAGE = 4096;

/** @throws ERR_VIRTKIT_SHARED_MEMORY when ids are not unique or sizes not whole pages */
export function checkSharedMemory(name: string, regions: readonly SharedMemoryRegion[]): readonly SharedMemoryRegion[] {
  const ids = new Set<number>();
  for (const { id, memory } of regions) {
    if (!Number.isInteger(id) || id < 0 || id > 255 || ids.has(id))
      throw new VirtkitError(
        "ERR_VIRTKIT_SHARED_MEMORY",
        `${name}: shared memory id ${id}; give each region its own, 0..255`,
      );
    if (memory.length === 0 || memory.length % PAGE !== 0)
      throw new VirtkitError(
        "ERR_VIRTKIT_SHARED_MEMORY",
        `${name}: shared memory ${id} has ${memory.length} bytes; give it a multiple of ${PAGE}`,
      );
    ids.add(id);
  }
  return regions;
}
