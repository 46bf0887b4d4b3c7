import { VIRTIO_BALLOON_CMD_ID_MIN, VIRTIO_BALLOON_CMD_ID_STOP } from "../../spec/balloon.ts";

interface Round {
  readonly id: number;
  readonly take: (address: number, length: number) => void;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

/** Rounds of free page hints (VIRTIO 1.4 §5.5.6.5): each has a command id, and only what comes under it counts. */
export class Hints {
  #round: Round | undefined;
  /**
   * A new id for each round, so that none comes again before the driver stopped (device: Memory Balloon Device / Device Operation / Free
   * Page Hinting #1): that would take 2^32 rounds.
   */
  #lastId = VIRTIO_BALLOON_CMD_ID_MIN - 1;
  /** Command id that the driver's pages go with. */
  #driverId = VIRTIO_BALLOON_CMD_ID_STOP;

  /** Begins a round; one that is under way ends. */
  start(take: (address: number, length: number) => void): { id: number; ended: Promise<void> } {
    this.end();
    this.#lastId = this.#lastId === 2 ** 32 - 1 ? VIRTIO_BALLOON_CMD_ID_MIN : this.#lastId + 1;
    const id = this.#lastId;
    const ended = new Promise<void>((resolve, reject) => {
      this.#round = { id, take, resolve, reject };
    });
    return { id, ended };
  }

  /** The driver named a command id, or says with VIRTIO_BALLOON_CMD_ID_STOP that it has no more pages. */
  command(id: number): void {
    const isDone = id === VIRTIO_BALLOON_CMD_ID_STOP && this.#driverId === this.#round?.id;
    this.#driverId = id;
    if (isDone) this.end();
  }

  /** The driver named free pages. False when they belong to no round (device: ... / Free Page Hinting #2). */
  page(address: number, length: number): boolean {
    if (this.#round?.id !== this.#driverId) return false;
    this.#round.take(address, length);
    return true;
  }

  /** Ends the round: what still comes under its id is ignored. */
  end(): void {
    const round = this.#round;
    this.#round = undefined;
    round?.resolve();
  }

  reset(error: Error): void {
    const round = this.#round;
    this.#round = undefined;
    this.#driverId = VIRTIO_BALLOON_CMD_ID_STOP;
    round?.reject(error);
  }
}
