/** Whom a configuration space tells of changes. */
export interface ConfigListener {
  /** The device changed it: a configuration change notification is due. */
  changed(): void;
  /** The driver wrote `length` writable bytes at `offset`. */
  written(offset: number, length: number): void;
}

/**
 * Device-specific configuration space (VIRTIO 1.4 §2.5): bytes that the device owns, of which the driver may write only
 * the declared ranges. Every access is clamped here, so a device never sees an offset outside. Reads outside give 0.
 */
export class ConfigSpace {
  readonly size: number;
  /** For the device's own use while it fills in start values; later changes go through {@link update}. */
  readonly view: DataView;
  readonly #bytes: Uint8Array;
  readonly #writable: Uint8Array;
  readonly #listener: ConfigListener;
  #generation = 0;
  /** Changed since the driver last read a field or the generation. */
  #changed = false;
  /** What the driver sees while the device is suspended. */
  #held: Uint8Array | undefined;
  #heldChange = false;

  constructor(size: number, listener: ConfigListener) {
    this.size = size;
    this.#bytes = new Uint8Array(size);
    this.view = new DataView(this.#bytes.buffer);
    this.#writable = new Uint8Array(size);
    this.#listener = listener;
  }

  /**
   * Changes whenever a driver could see different versions in two reads (VIRTIO 1.4 §2.5); 32 bits wide, of which a transport
   * shows what it has room for. It moves when a driver looks after a change and not with the change itself: 256 changes
   * between two looks would bring 8 bits of it back to where they were (device: Common configuration structure layout #5).
   */
  get generation(): number {
    this.#seen();
    return this.#generation;
  }

  /** Lets the driver write these bytes. */
  allowWrite(offset: number, length: number): void {
    this.#writable.fill(1, offset, offset + length);
  }

  /** Changes fields from the device's side: a new generation, and a notification of the driver. */
  update(change: (view: DataView) => void): void {
    change(this.view);
    if (this.#held !== undefined) {
      this.#heldChange = true;
      return;
    }
    this.#changed = true;
    this.#listener.changed();
  }

  /** Until {@link release} the driver sees what is there now, is told of no change, and writes nothing. */
  hold(): void {
    this.#held ??= this.#bytes.slice();
  }

  /** The driver sees the changes since {@link hold}, and is told if there were any. */
  release(): void {
    const changed = this.#heldChange;
    this.forget();
    if (changed) this.update(() => undefined);
  }

  /** As {@link release}, but the driver is told nothing: the device was reset. */
  forget(): void {
    this.#held = undefined;
    this.#heldChange = false;
  }

  /** Little-endian value of 1, 2 or 4 bytes at any offset. */
  read(offset: number, size: number): number {
    this.#seen();
    const bytes = this.#held ?? this.#bytes;
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = value * 256 + (bytes[offset + i] ?? 0);
    return value;
  }

  /** Copies a range out, clamped; returns how many bytes exist there. */
  readBytes(offset: number, into: Uint8Array): number {
    this.#seen();
    const bytes = this.#held ?? this.#bytes;
    const part = bytes.subarray(Math.min(offset, this.size), Math.min(offset + into.length, this.size));
    into.set(part);
    return part.length;
  }

  /** A driver's write of 1, 2 or 4 bytes; bytes that are not writable keep their value. */
  write(offset: number, size: number, value: number): void {
    if (this.#held !== undefined) return;
    let wrote = false;
    for (let i = 0; i < size; i++) {
      if (this.#writable[offset + i] !== 1) continue;
      this.#bytes[offset + i] = Math.floor(value / 2 ** (8 * i)) & 0xff;
      wrote = true;
    }
    if (wrote) this.#listener.written(offset, size);
  }

  #seen(): void {
    if (!this.#changed) return;
    this.#changed = false;
    this.#generation = (this.#generation + 1) >>> 0;
  }
}
