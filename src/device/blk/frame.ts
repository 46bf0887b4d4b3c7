import type { GuestMemory } from "../../memory/guest-memory.ts";
import type { MemoryRegion } from "../../memory/memory-region.ts";
import { VIRTIO_BLK_REQ_HEADER_SIZE as HEADER, VIRTIO_BLK_REQ_SECTOR, VIRTIO_BLK_REQ_TYPE } from "../../spec/blk.ts";
import type { ChainBatch } from "../../virtqueue/index.ts";
import type { SegmentList } from "../segment-list.ts";

/**
 * Where a request's header, data and status byte lie in a chain. The header is its first 16 readable bytes, the status its last
 * writable one, however the driver cut them into descriptors (device: Message Framing #1). One object serves all requests.
 */
export class RequestFrame {
  type = 0;
  /** As the driver wrote it; a value past 2^53 loses low bits, which is past every capacity just the same. */
  sector = 0;
  statusRegion!: MemoryRegion;
  /** In the region. */
  statusOffset = 0;
  /** Bytes between header and status, by direction. */
  readableBytes = 0;
  writableBytes = 0;
  readonly #scratch = new DataView(new ArrayBuffer(HEADER));

  /** Reads the frame of chain `c`. Returns why it is none, or undefined. */
  read(memory: GuestMemory, batch: ChainBatch, c: number): string | undefined {
    const readable = batch.readableBytes[c] as number;
    const writable = batch.writableBytes[c] as number;
    if (readable < HEADER) return `a request header of ${readable} bytes`;
    if (writable < 1) return "a request without a status byte";
    this.readableBytes = readable - HEADER;
    this.writableBytes = writable - 1;
    this.#readHeader(memory, batch, c);
    this.#findStatus(memory, batch, c);
    return undefined;
  }

  /** Appends the data that the driver sends. */
  readableData(memory: GuestMemory, batch: ChainBatch, c: number, into: SegmentList): void {
    const first = batch.first[c] as number;
    collect(memory, batch, first, batch.readable[c] as number, HEADER, this.readableBytes, into);
  }

  /** Appends `bytes` bytes of the room for data that the driver expects, the first ones or those behind `skip` others. */
  writableData(memory: GuestMemory, batch: ChainBatch, c: number, bytes: number, into: SegmentList, skip = 0): void {
    const first = (batch.first[c] as number) + (batch.readable[c] as number);
    collect(memory, batch, first, batch.writable[c] as number, skip, bytes, into);
  }

  #readHeader(memory: GuestMemory, batch: ChainBatch, c: number): void {
    const first = batch.first[c] as number;
    let view: DataView = this.#scratch;
    let at = 0;
    if ((batch.length[first] as number) >= HEADER) {
      view = (memory.regions[batch.region[first] as number] as MemoryRegion).view;
      at = batch.offset[first] as number;
    } else this.#gather(memory, batch, first);
    this.type = view.getUint32(at + VIRTIO_BLK_REQ_TYPE, true);
    this.sector =
      view.getUint32(at + VIRTIO_BLK_REQ_SECTOR, true) + view.getUint32(at + VIRTIO_BLK_REQ_SECTOR + 4, true) * 2 ** 32;
  }

  #gather(memory: GuestMemory, batch: ChainBatch, segment: number): void {
    for (let done = 0; done < HEADER; segment++) {
      const { u8 } = memory.regions[batch.region[segment] as number] as MemoryRegion;
      const offset = batch.offset[segment] as number;
      const n = Math.min(batch.length[segment] as number, HEADER - done);
      for (let i = 0; i < n; i++) this.#scratch.setUint8(done + i, u8[offset + i] as number);
      done += n;
    }
  }

  #findStatus(memory: GuestMemory, batch: ChainBatch, c: number): void {
    let segment = (batch.first[c] as number) + (batch.readable[c] as number) + (batch.writable[c] as number) - 1;
    while (batch.length[segment] === 0) segment--;
    this.statusRegion = memory.regions[batch.region[segment] as number] as MemoryRegion;
    this.statusOffset = (batch.offset[segment] as number) + (batch.length[segment] as number) - 1;
  }
}

function collect(
  memory: GuestMemory,
  batch: ChainBatch,
  segment: number,
  count: number,
  skip: number,
  bytes: number,
  into: SegmentList,
): void {
  const end = segment + count;
  for (; segment < end && bytes > 0; segment++) {
    const length = batch.length[segment] as number;
    if (length <= skip) {
      skip -= length;
      continue;
    }
    const n = Math.min(length - skip, bytes);
    const region = memory.regions[batch.region[segment] as number] as MemoryRegion;
    into.add(region, (batch.offset[segment] as number) + skip, n);
    bytes -= n;
    skip = 0;
  }
}
