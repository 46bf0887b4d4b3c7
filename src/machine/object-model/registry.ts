import { suggest } from "../nearest.ts";
import { UsageError } from "../usage-error.ts";
import { ObjectClass, type ObjectFactory, type ObjectInit, type TypeInfo } from "./class.ts";
import { initInstance, QomObject } from "./object.ts";

/** The types that a machine can be made of. Registering is cheap; a class is initialised when it is first asked for. */
export class TypeRegistry implements ObjectFactory {
  readonly #types = new Map<string, TypeInfo>();
  readonly #aliases = new Map<string, string>();
  readonly #classes = new Map<string, ObjectClass>();

  /** The order does not matter, as long as a type's parent is there when the type is first used. */
  register<T extends QomObject>(info: TypeInfo<T>): void {
    for (const name of info.alias === undefined ? [info.name] : [info.name, info.alias])
      if (this.has(name)) throw new Error(`type ${name} is registered twice`);
    this.#types.set(info.name, info);
    if (info.alias !== undefined) this.#aliases.set(info.alias, info.name);
  }

  has(name: string): boolean {
    return this.#types.has(name) || this.#aliases.has(name);
  }

  /** The class of a registered type, initialised after its ancestors. An unknown name is a bug of ours. */
  classOf(name: string): ObjectClass {
    const known = this.#classes.get(name);
    if (known !== undefined) return known;
    const info = this.#types.get(this.#aliases.get(name) ?? name);
    if (info === undefined) throw new Error(`type ${name} is not registered`);
    const made = this.#classes.get(info.name) ?? this.#initClass(info);
    this.#classes.set(info.name, made);
    return made;
  }

  /** Every class that is `of` or descends from it, sorted by name; abstract ones only if asked for. */
  classes(of: string, includeAbstract = false): ObjectClass[] {
    return [...this.#types.keys()]
      .map((name) => this.classOf(name))
      .filter((klass) => klass.isA(of) && (includeAbstract || !klass.abstract))
      .sort((a, b) => (a.name < b.name ? -1 : 1));
  }

  /** The class behind `-device NAME`. @throws UsageError with the nearest name */
  deviceClass(name: string): ObjectClass {
    const klass = this.has(name) ? this.classOf(name) : undefined;
    if (klass === undefined || !klass.isA("device")) {
      const names = this.classes("device").flatMap((known) => [known.name, ...aliasOf(known)]);
      const hint = suggest(name, names, "`-device help` lists all of them.");
      throw new UsageError(`'${name}' is not a valid device model name`, { hint });
    }
    if (klass.abstract) throw new UsageError(`Parameter 'driver' expects a non-abstract device type, not '${name}'`);
    if (!klass.userCreatable) throw new UsageError(`Parameter 'driver' expects a pluggable device type, not '${name}'`);
    return klass;
  }

  /** The classes of -object. */
  objectClasses(): ObjectClass[] {
    return this.classes("object").filter((klass) => klass.userCreatable && !klass.isA("device"));
  }

  /** The class behind `-object NAME`. @throws UsageError with the nearest name */
  objectClass(name: string): ObjectClass {
    const found = this.objectClasses().find((klass) => klass.name === name);
    if (found !== undefined) return found;
    const names = this.objectClasses().map((klass) => klass.name);
    const hint = suggest(name, names, "`-object help` lists all of them.");
    throw new UsageError(`Parameter 'qom-type' does not accept value '${name}'`, { hint });
  }

  /** Makes an object: initialised, with its defaults, not realized. */
  create(name: string, id?: string): QomObject {
    const klass = this.classOf(name);
    if (klass.abstract) throw new Error(`type ${name} is abstract`);
    const object = new (instanceClass(klass))({ klass, factory: this, id });
    if (!(object instanceof QomObject)) throw new Error(`objects of type ${name} are no QomObject`);
    initInstance(object);
    return object;
  }

  /** The same, where the type's JavaScript class is known. */
  createA<T extends object>(type: new (init: ObjectInit) => T, name: string, id?: string): T {
    const object = this.create(name, id);
    if (!(object instanceof type)) throw new Error(`type ${name} is no ${type.name}`);
    return object;
  }

  #initClass(info: TypeInfo): ObjectClass {
    const parent = info.parent === undefined ? undefined : this.classOf(info.parent);
    const klass = new ObjectClass(info, parent);
    const inherited = parent === undefined ? QomObject : instanceClass(parent);
    const own = instanceClass(klass);
    if (own !== inherited && !(own.prototype instanceof inherited))
      throw new Error(`objects of type ${info.name} are not objects of its parent ${info.parent}`);
    info.classInit?.(klass);
    return klass;
  }
}

export function aliasOf(klass: ObjectClass): string[] {
  return klass.info.alias === undefined ? [] : [klass.info.alias];
}

function instanceClass(klass: ObjectClass): new (init: ObjectInit) => object {
  return klass.info.instanceClass ?? (klass.parent === undefined ? QomObject : instanceClass(klass.parent));
}
