import {
  BLOCK_FLUSH,
  BLOCK_IO_ERROR,
  BLOCK_OK,
  BLOCK_READ,
  type BlockBackend,
  type BlockRequests,
  type BlockSink,
} from "./types.ts";

/** Another back end with every way to change it taken out: what would change it fails and never reaches it. */
export class ReadOnlyBlockBackend implements BlockBackend {
  readonly readOnly = true;
  /** Of a back end that has it. */
  readonly detach?: () => void;
  readonly #inner: BlockBackend;
  #requests: BlockRequests | undefined;
  #sink: BlockSink | undefined;
  #reads = new Uint32Array(1);

  constructor(inner: BlockBackend) {
    this.#inner = inner;
    if (inner.detach !== undefined)
      this.detach = () => {
        inner.detach?.();
        this.#requests = undefined;
        this.#sink = undefined;
      };
  }

  get name(): string {
    return this.#inner.name;
  }
  get capacity(): number {
    return this.#inner.capacity;
  }
  get blockSize(): number {
    return this.#inner.blockSize;
  }
  get physicalBlockSize(): number {
    return this.#inner.physicalBlockSize;
  }
  get inline(): boolean {
    return this.#inner.inline;
  }

  attach(requests: BlockRequests, sink: BlockSink): void {
    this.#inner.attach(requests, sink);
    this.#requests = requests;
    this.#sink = sink;
  }

  submit(slots: ArrayLike<number>, count: number): void {
    const requests = this.#requests;
    if (requests === undefined) return;
    let reads = 0;
    if (this.#reads.length < count) this.#reads = new Uint32Array(count);
    for (let i = 0; i < count; i++) {
      const slot = slots[i] as number;
      const op = requests.op[slot];
      if (op === BLOCK_READ) this.#reads[reads++] = slot;
      else
        this.#sink?.complete(slot, requests.generation[slot] as number, op === BLOCK_FLUSH ? BLOCK_OK : BLOCK_IO_ERROR);
    }
    if (reads > 0) this.#inner.submit(this.#reads, reads);
  }

  close(): Promise<void> {
    return this.#inner.close();
  }
}
