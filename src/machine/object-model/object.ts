import type { ObjectClass, ObjectFactory, ObjectInit } from "./class.ts";
import { type Property, readProperty } from "./property.ts";
import type { PropertySetting } from "./values.ts";

/** An object of a registered type. Only a registry makes it. */
export class QomObject {
  readonly klass: ObjectClass;
  /** What made it, and can make more. */
  readonly factory: ObjectFactory;
  readonly id: string | undefined;
  readonly #values = new Map<string, unknown>();
  readonly #children = new Map<string, QomObject>();

  constructor(init: ObjectInit) {
    this.klass = init.klass;
    this.factory = init.factory;
    this.id = init.id;
  }

  get typeName(): string {
    return this.klass.name;
  }

  /** For messages: the type, and the id if it has one. */
  get label(): string {
    return this.id === undefined ? this.typeName : `${this.typeName},id=${this.id}`;
  }

  isA(name: string): boolean {
    return this.klass.isA(name);
  }

  /** For `instanceInit`: an object that lives and dies with this one. */
  addChild(name: string, child: QomObject): void {
    this.#children.set(name, child);
  }

  child(name: string): QomObject {
    const child = this.#children.get(name);
    if (child === undefined) throw new Error(`${this.typeName} has no child ${name}`);
    return child;
  }

  /** The value of one of this object's properties: the one set, or the default. */
  get<T>(key: Property<T>): T {
    if (this.#values.has(key.name)) return this.#values.get(key.name) as T;
    // A descendant may have given the property another default.
    return (this.klass.find(key.name)?.key ?? key).defaultValue as T;
  }

  isSet(key: Property): boolean {
    return this.#values.has(key.name);
  }

  /** @throws UsageError when there is no such property, or it does not take the value */
  setProperty({ name, value, bare }: PropertySetting): void {
    const negated = bare === true && this.klass.find(name) === undefined && name.startsWith("no");
    const isNegation = negated && this.klass.find(name.slice(2)) !== undefined;
    const { key, child } = this.klass.require(isNegation ? name.slice(2) : name);
    const parsed = readProperty(key, isNegation ? false : value, this.typeName);
    const target = child === undefined ? this : this.child(child);
    target.#values.set(key.name, parsed);
  }

  setProperties(settings: Iterable<PropertySetting>): void {
    for (const setting of settings) this.setProperty(setting);
  }
}

/** Runs `instanceInit` of every level, ancestors first. */
export function initInstance(object: QomObject): void {
  for (const { info } of object.klass.levels) info.instanceInit?.(object);
}
