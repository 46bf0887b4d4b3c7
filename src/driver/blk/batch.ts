/**
 * Requests over one data buffer each, in parallel arrays that the caller owns, for {@link BlkDriver.submit}:
 *
 *     type[i]     VIRTIO_BLK_T_IN, _OUT or _FLUSH       address[i]  guest-physical, in DMA memory
 *     sector[i]   first sector of 512 bytes             length[i]   bytes; 0 for a flush
 *     status[i]   VIRTIO_BLK_S_* once it is completed
 */
export class BlkBatch {
  readonly capacity: number;
  readonly type: Uint32Array;
  readonly sector: Float64Array;
  readonly address: Float64Array;
  readonly length: Uint32Array;
  readonly status: Uint8Array;
  /** Requests completed since the batch was made; the caller may set it back to 0 while none is in flight. */
  completed = 0;
  /** Called for each completed request, if set. */
  onCompleted: ((index: number, status: number) => void) | undefined;

  constructor(capacity: number) {
    this.capacity = capacity;
    this.type = new Uint32Array(capacity);
    this.sector = new Float64Array(capacity);
    this.address = new Float64Array(capacity);
    this.length = new Uint32Array(capacity);
    this.status = new Uint8Array(capacity);
  }
}
