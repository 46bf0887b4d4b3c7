type Listener<Values extends unknown[]> = (...values: Values) => void;

/** Listeners by event name. `Map` gives the values that each event carries: `{ serial: [port: number, bytes: Uint8Array] }`. */
export class Events<Map extends Record<keyof Map, unknown[]>> {
  readonly #listeners: { [Name in keyof Map]?: Set<Listener<Map[Name]>> } = {};

  /** Adds a listener; returns what removes it. */
  on<Name extends keyof Map>(name: Name, listener: Listener<Map[Name]>): () => void {
    const set = this.#listeners[name] ?? new Set<Listener<Map[Name]>>();
    this.#listeners[name] = set;
    set.add(listener);
    return () => {
      set.delete(listener);
    };
  }

  /** Calls the listeners that are there now, in the order they came. */
  emit<Name extends keyof Map>(name: Name, ...values: Map[Name]): void {
    for (const listener of [...(this.#listeners[name] ?? [])]) listener(...values);
  }
}
