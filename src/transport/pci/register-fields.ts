import type { TraceEvent, Tracer } from "../../trace/types.ts";
import type { AccessSize } from "./function.ts";

/** Whose registers they are. */
interface Traced {
  readonly tracer: Tracer | undefined;
}

/** One register. */
export interface Field {
  readonly offset: number;
  readonly size: AccessSize;
  readonly read: () => number;
  /** Missing where the driver may only read. */
  readonly write?: (value: number) => void;
  /** What a trace says of a write; nothing unless said. */
  readonly trace?: (value: number) => TraceEvent;
}

/**
 * Registers of different widths side by side. A driver has to use each one's own width; other accesses work too: bytes that are not
 * written keep their value, and a wide write reaches every register that it covers.
 */
export class RegisterFields {
  readonly #fields: readonly Field[];
  /** Index of the field at each byte, or -1. */
  readonly #at: Int8Array;
  readonly #traced: Traced;

  /**
   * @param traced has the tracer, if there is one
   * @param size bytes of all registers together; outside of them reads give 0
   */
  constructor(traced: Traced, size: number, fields: readonly Field[]) {
    this.#traced = traced;
    this.#fields = fields;
    this.#at = new Int8Array(size).fill(-1);
    fields.forEach((field, i) => {
      this.#at.fill(i, field.offset, field.offset + field.size);
    });
  }

  read(offset: number, size: AccessSize): number {
    const exact = this.#fields[this.#at[offset] ?? -1];
    if (exact?.offset === offset && exact.size === size) return exact.read();
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = value * 256 + this.#byte(offset + i);
    return value;
  }

  write(offset: number, size: AccessSize, value: number): void {
    let done = 0;
    while (done < size) {
      const field = this.#fields[this.#at[offset + done] ?? -1];
      if (field === undefined) {
        done++;
        continue;
      }
      const from = offset + done - field.offset;
      const count = Math.min(field.size - from, size - done);
      const part = Math.floor(value / 2 ** (8 * done)) % 2 ** (8 * count);
      this.#write(field, count === field.size ? part : merge(field.read(), from, count, part));
      done += count;
    }
  }

  #write(field: Field, value: number): void {
    if (field.trace !== undefined) this.#traced.tracer?.emit(field.trace(value));
    field.write?.(value);
  }

  #byte(offset: number): number {
    const field = this.#fields[this.#at[offset] ?? -1];
    return field === undefined ? 0 : Math.floor(field.read() / 2 ** (8 * (offset - field.offset))) % 256;
  }
}

/** `old` with `count` bytes from byte `from` on replaced. */
function merge(old: number, from: number, count: number, part: number): number {
  const low = old % 2 ** (8 * from);
  const high = Math.floor(old / 2 ** (8 * (from + count))) * 2 ** (8 * (from + count));
  return high + part * 2 ** (8 * from) + low;
}
