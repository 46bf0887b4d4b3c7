import { VirtkitError } from "../../../common/error.ts";
import { checked, describeErrno, loadNative } from "./load.ts";

const IFF_MULTI_QUEUE = 0x0100;
const IFF_VNET_HDR = 0x4000;
const NAME_BYTES = 16;

/** Offloads that the host's network may leave to us (TUN_F_*), for {@link TapInterface.setOffloads}. */
export const TUN_F_CSUM = 0x01;
export const TUN_F_TSO4 = 0x02;
export const TUN_F_TSO6 = 0x04;
export const TUN_F_TSO_ECN = 0x08;
export const TUN_F_USO4 = 0x20;
export const TUN_F_USO6 = 0x40;

export interface TapOptions {
  /** The interface's name, at most 15 bytes; "tap%d" lets the kernel choose the number. Default: the kernel's choice. */
  readonly name?: string;
  /** A virtio-net header before each frame, and its bytes (10 or 12). Default: none. */
  readonly headerSize?: 10 | 12;
  /** One of several queues of the interface. Default false. */
  readonly multiQueue?: boolean;
}

/** One queue of a tap interface. Frames go through the descriptor, which does not block: one read or write a frame. */
export class TapInterface {
  readonly fd: number;
  readonly name: string;

  private constructor(fd: number, name: string) {
    this.fd = fd;
    this.name = name;
  }

  /** @throws ERR_VIRTKIT_TAP where the process may not, or the kernel has none */
  static open(options: TapOptions = {}): TapInterface {
    const native = loadNative();
    const flags =
      (options.headerSize === undefined ? 0 : IFF_VNET_HDR) | (options.multiQueue === true ? IFF_MULTI_QUEUE : 0);
    const into = new Uint8Array(NAME_BYTES);
    const wanted = options.name ?? "";
    if (Buffer.byteLength(wanted) >= NAME_BYTES)
      throw new VirtkitError("ERR_VIRTKIT_TAP", `"${wanted}" has more than 15 bytes; give the tap a shorter name`);
    const fd = native.tapOpen(wanted, flags, into);
    if (fd < 0) {
      const wayOut = "it needs CAP_NET_ADMIN and /dev/net/tun, or an interface that was made for this user";
      throw new VirtkitError("ERR_VIRTKIT_TAP", `opening a tap: ${describeErrno(fd)}; ${wayOut}`);
    }
    const tap = new TapInterface(fd, Buffer.from(into).toString().replace(/\0.*$/s, ""));
    try {
      if (options.headerSize !== undefined)
        checked(native.tapSetHeaderSize(fd, options.headerSize), "setting the size of the tap's header");
    } catch (error) {
      tap.close();
      throw error;
    }
    return tap;
  }

  /** Which offloads the guest took: TUN_F_* bits. False when the kernel does not know one of them. */
  setOffloads(bits: number): boolean {
    return loadNative().tapSetOffload(this.fd, bits) === 0;
  }

  close(): void {
    loadNative().closeDescriptor(this.fd);
  }
}
