import { suggest } from "../nearest.ts";
import { UsageError } from "../usage-error.ts";
import type { ObjectClass } from "./class.ts";
import type { BusObject } from "./device.ts";

/** `roots` and every bus below them, depth first. */
export function* allBuses(roots: Iterable<BusObject>): Generator<BusObject> {
  for (const bus of roots) {
    yield bus;
    for (const device of bus.devices) yield* allBuses(device.childBuses);
  }
}

/**
 * The bus for a new device of this class: the one called `name`, or the first of the right type; one with room is
 * preferred.
 * @throws UsageError when there is none, it is of another type, or it is full
 */
export function findBus(roots: Iterable<BusObject>, klass: ObjectClass, name?: string): BusObject {
  const type = klass.busType;
  if (type === undefined) throw new UsageError(`Device '${klass.name}' sits on no bus`);
  const buses = [...allBuses(roots)];
  return name === undefined ? firstOfType(buses, klass, type) : byName(buses, klass, type, name);
}

function firstOfType(buses: BusObject[], klass: ObjectClass, type: string): BusObject {
  const found = buses.find((bus) => bus.isA(type) && !bus.isFull);
  if (found !== undefined) return found;
  const { busProvider } = klass;
  throw new UsageError(`No '${type}' bus found for device '${klass.name}'`, {
    hint: busProvider === undefined ? undefined : `Put a device in front of it that has one: -device ${busProvider}`,
  });
}

function byName(buses: BusObject[], klass: ObjectClass, type: string, name: string): BusObject {
  const named = buses.filter((bus) => bus.name === name);
  const found = named.find((bus) => !bus.isFull) ?? named[0];
  const fitting = buses.filter((bus) => bus.isA(type)).map((bus) => bus.name);
  if (found === undefined) throw new UsageError(`Bus '${name}' not found`, { hint: suggest(name, fitting) });
  if (!found.isA(type)) {
    const hint = suggest(name, fitting, `It needs a bus of type ${type}.`);
    throw new UsageError(`Device '${klass.name}' can't go on ${found.typeName} bus`, { hint });
  }
  if (found.isFull) throw new UsageError(`Bus '${name}' is full`);
  return found;
}
