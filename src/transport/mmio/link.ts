import type { Environment } from "../../common/environment.ts";
import type { MmioAccess } from "./access.ts";
import type { MmioAccessSize, VirtioMmioDevice } from "./device.ts";

export interface MmioLinkOptions {
  readonly environment: Environment;
  /** When the interrupt reaches its handler: "deferred" (unless said) in a later turn, "direct" as a call from within the device. */
  readonly delivery?: "deferred" | "direct";
}

/** Rounds of the interrupt before it is taken for stuck. */
const STUCK = 1000;

/** A virtio-mmio device with its driver in the same process: what bus and interrupt controller are in a machine. */
export class MmioLink implements MmioAccess {
  readonly device: VirtioMmioDevice;
  readonly #environment: Environment;
  readonly #direct: boolean;
  #handler: (() => void) | undefined;
  #asserted = false;
  #scheduled = false;
  #delivering = false;

  constructor(device: VirtioMmioDevice, options: MmioLinkOptions) {
    this.device = device;
    this.#environment = options.environment;
    this.#direct = options.delivery === "direct";
    device.connect((asserted) => {
      this.#asserted = asserted;
      this.#level();
    });
  }

  read(offset: number, size: MmioAccessSize): number {
    return this.device.read(offset, size);
  }

  write(offset: number, size: MmioAccessSize, value: number): void {
    this.device.write(offset, size, value);
  }

  onIrq(handler: () => void): () => void {
    this.#handler = handler;
    this.#level();
    return () => {
      if (this.#handler === handler) this.#handler = undefined;
    };
  }

  #level(): void {
    if (!this.#asserted) return;
    if (this.#direct) this.#deliver();
    else if (!this.#scheduled) {
      this.#scheduled = true;
      this.#environment.defer(() => {
        this.#scheduled = false;
        this.#deliver();
      });
    }
  }

  /** A level-triggered interrupt comes again until its cause is gone. */
  #deliver(): void {
    if (this.#delivering) return;
    this.#delivering = true;
    try {
      for (let round = 0; this.#asserted && this.#handler !== undefined; round++) {
        if (round === STUCK) {
          this.#environment.log.log(
            "error",
            `${this.device.name}: the interrupt stays asserted whatever its handler does`,
          );
          return;
        }
        this.#handler();
      }
    } finally {
      this.#delivering = false;
    }
  }
}
