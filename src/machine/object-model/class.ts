import type { MachineHost } from "../machine-host.ts";
import { suggest } from "../nearest.ts";
import { UsageError } from "../usage-error.ts";
import type { Property } from "./property.ts";

/** The groups of `-device help`, in its order. */
export const CATEGORIES = ["Controller/Bridge/Hub", "Storage", "Network", "Input", "Misc"] as const;
export type Category = (typeof CATEGORIES)[number];

/** What objects need of the registry that made them. */
export interface ObjectFactory {
  /** Makes an object: initialised, with its defaults, not realized. The type's JavaScript class is the given one or one derived from it. */
  createA<T extends object>(type: new (init: ObjectInit) => T, name: string, id?: string): T;
}

/** What a new object is told of itself. */
export interface ObjectInit {
  readonly klass: ObjectClass;
  readonly factory: ObjectFactory;
  readonly id?: string | undefined;
}

/**
 * A type as it is registered. Its functions run in the order of the type's ancestors, the root's first: `classInit` once,
 * before the first use of the type; `instanceInit` for each object; `realize` when the object has all its properties.
 * `unrealize` runs the other way round.
 */
export interface TypeInfo<T extends object = object> {
  readonly name: string;
  readonly parent?: string;
  /** No objects of this type itself. */
  readonly abstract?: boolean;
  /** The JavaScript class of the objects; the nearest ancestor's when left out. */
  readonly instanceClass?: new (
    init: ObjectInit,
  ) => T;
  readonly description?: string;
  /** Inherited, as are {@link busType} and {@link userCreatable}. */
  readonly category?: Category;
  /** The type of bus that objects of this type sit on. */
  readonly busType?: string;
  /** A device that brings such a bus, for messages. */
  readonly busProvider?: string;
  /** May be named in -device or -object. */
  readonly userCreatable?: boolean;
  /** Another name for it. */
  readonly alias?: string;
  classInit?(klass: ObjectClass): void;
  instanceInit?(object: T): void;
  /** @throws UsageError; then the levels before it are unrealized, this one is not */
  realize?(object: T, host: MachineHost): void;
  unrealize?(object: T): void;
}

/** A property as a class has it: its own, or that of a child which every object of the class has. */
export interface PropertySlot {
  readonly key: Property;
  /** The child that the property belongs to. */
  readonly child?: string;
}

/** A type after its class was initialised. */
export class ObjectClass {
  readonly name: string;
  readonly info: TypeInfo;
  readonly parent: ObjectClass | undefined;
  readonly abstract: boolean;
  readonly category: Category | undefined;
  readonly busType: string | undefined;
  readonly busProvider: string | undefined;
  readonly userCreatable: boolean;
  readonly #slots: Map<string, PropertySlot>;

  constructor(info: TypeInfo, parent: ObjectClass | undefined) {
    this.name = info.name;
    this.info = info;
    this.parent = parent;
    this.abstract = info.abstract ?? false;
    this.category = info.category ?? parent?.category;
    this.busType = info.busType ?? parent?.busType;
    this.busProvider = info.busProvider ?? parent?.busProvider;
    this.userCreatable = info.userCreatable ?? parent?.userCreatable ?? false;
    this.#slots = new Map(parent === undefined ? [] : parent.#slots);
  }

  /** This class and its ancestors, the root first. */
  get levels(): ObjectClass[] {
    return [...(this.parent?.levels ?? []), this];
  }

  isA(name: string): boolean {
    return this.name === name || (this.parent?.isA(name) ?? false);
  }

  /** For `classInit`. A property of the same name replaces an ancestor's. */
  addProperties(...keys: readonly Property[]): void {
    for (const key of keys) this.#slots.set(key.name, { key });
  }

  /** For `classInit`: every property of `of` can also be set here and is handed to the child of that name. */
  forwardProperties(child: string, of: ObjectClass): void {
    for (const { key } of of.#slots.values()) if (!this.#slots.has(key.name)) this.#slots.set(key.name, { key, child });
  }

  /** Every property, in the order of declaration. */
  get properties(): Property[] {
    return [...this.#slots.values()].map((slot) => slot.key);
  }

  find(name: string): PropertySlot | undefined {
    return this.#slots.get(name);
  }

  /** @throws UsageError with the nearest name when there is no such property */
  require(name: string): PropertySlot {
    const slot = this.#slots.get(name);
    if (slot !== undefined) return slot;
    const option = this.isA("device") ? "-device" : "-object";
    const more = `\`${option} ${this.name},help\` lists all of them.`;
    throw new UsageError(`Property '${this.name}.${name}' not found`, {
      hint: suggest(name, this.#slots.keys(), more),
    });
  }
}
