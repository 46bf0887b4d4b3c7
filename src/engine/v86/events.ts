/** Why the machine starts over. */
export type ResetCause = "guest" | "triple-fault";

/** What a {@link V86Engine} tells. Listeners run between two turns of the guest's, never inside it. */
export interface V86EngineEvents {
  /** The guest wrote to COM1 (port 0) .. COM4 (port 3). The bytes are the listener's own. */
  serial: (port: number, bytes: Uint8Array) => void;
  /** ACPI S5: the guest switched itself off. The engine has stopped. */
  poweroff: () => void;
  /**
   * The guest asked for a reset. When no listener calls stop() the functions are reset and the PC boots again; after stop() that
   * happens at the next start().
   */
  reset: (cause: ResetCause) => void;
  /** The CPU halted with interrupts off: nothing but a reset can wake it (Linux without ACPI halts so). */
  halt: () => void;
  /** v86 itself or a device of ours failed; the engine has stopped for good. */
  fault: (error: Error) => void;
}

type Name = keyof V86EngineEvents;

/** Listeners by event. */
export class Events {
  readonly #listeners = new Map<Name, Set<unknown>>();

  /** Adds a listener; returns what removes it. */
  on<K extends Name>(name: K, listener: V86EngineEvents[K]): () => void {
    const set = this.#listeners.get(name) ?? new Set();
    this.#listeners.set(name, set);
    set.add(listener);
    return () => {
      set.delete(listener);
    };
  }

  emit<K extends Name>(name: K, ...values: Parameters<V86EngineEvents[K]>): void {
    for (const listener of [...(this.#listeners.get(name) ?? [])])
      (listener as (...values: Parameters<V86EngineEvents[K]>) => void)(...values);
  }
}
