import { VirtkitError } from "../common/error.ts";
import { VIRTIO_ID_RNG } from "../spec/ids.ts";
import { VIRTIO_RNG_REQUESTQ } from "../spec/rng.ts";
import type { DriverType } from "./bus.ts";
import { type DriverContext, VirtioDriver } from "./core.ts";

/** Bytes of one request. */
const CHUNK = 4096;

/** Driver of the entropy device (VIRTIO 1.4 §5.4). */
export class RngDriver extends VirtioDriver {
  static readonly type: DriverType<RngDriver> = {
    name: "virtio_rng",
    idTable: [VIRTIO_ID_RNG],
    create: (context) => new RngDriver(context),
  };

  constructor(context: DriverContext) {
    super(context, { name: "virtio_rng", deviceIds: [VIRTIO_ID_RNG], features: [] });
  }

  /**
   * `length` random bytes, in as many requests as the device takes for them.
   * @throws ERR_VIRTKIT_RESET when the device was reset meanwhile, ERR_VIRTKIT_RNG when it gives no bytes
   */
  async read(length: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    const queue = this.queues[VIRTIO_RNG_REQUESTQ];
    if (queue === undefined) throw new VirtkitError("ERR_VIRTKIT_RESET", `${this.name}: the device is not up`);
    const buffer = this.dma.alloc(Math.min(Math.max(length, 1), CHUNK));
    try {
      for (let done = 0; done < length; ) {
        const wanted = buffer.slice(0, Math.min(buffer.length, length - done));
        const written = await queue.transfer([], [wanted]);
        if (written < 1) throw new VirtkitError("ERR_VIRTKIT_RNG", `${this.name}: the device gave no random bytes`);
        bytes.set(wanted.read(0, Math.min(written, wanted.length)), done);
        done += Math.min(written, wanted.length);
      }
    } finally {
      buffer.bytes.fill(0);
      this.dma.release(buffer);
    }
    return bytes;
  }

  protected override onSetUp(): void {
    this.setUpQueue(VIRTIO_RNG_REQUESTQ);
  }
}
