import assert from "node:assert/strict";
import { test } from "node:test";
import { notedParts } from "../../testing/machine-parts.ts";
import { MachineBackends } from "../machine-backends.ts";
import type { MachineHost } from "../machine-host.ts";
import { registerBaseTypes } from "./base-types.ts";
import { findBus } from "./bus-lookup.ts";
import type { TypeInfo } from "./class.ts";
import { BusObject, DeviceObject } from "./device.ts";
import { BOOL, property, UINT32 } from "./property.ts";
import { TypeRegistry } from "./registry.ts";

const OPTIONS = { timeout: 5000 };
const SPEED = property("speed", UINT32, 7);
const LOUD = property("loud", BOOL, false);

/** Types that note every call: base <- middle <- leaf, and a hub with a bus for leaves. */
class Fixture {
  readonly events: string[] = [];
  readonly registry = new TypeRegistry();
  readonly host: MachineHost;
  readonly root: BusObject;
  /** "realize leaf": the call that is to fail. */
  failing = "";

  constructor() {
    const { environment, memory, pci } = notedParts();
    const entropy = { name: "none", fill: () => undefined };
    this.host = { environment, memory, pci, backends: new MachineBackends(entropy) };
    registerBaseTypes(this.registry);
    this.registry.register({ name: "wire", parent: "bus", instanceClass: this.#noisyBus() });
    this.#add({ name: "base", parent: "device", abstract: true, busType: "wire" }, SPEED);
    this.#add({ name: "middle", parent: "base", abstract: true });
    this.#add({ name: "leaf", parent: "middle", alias: "leaves", userCreatable: true }, LOUD);
    this.#add({ name: "fast", parent: "leaf", userCreatable: true }, property("speed", UINT32, 99));
    this.#add({
      name: "hub",
      parent: "base",
      userCreatable: true,
      realize: (device) => void device.addBus("wire", "inner"),
    });
    this.root = this.registry.createA(BusObject, "wire", "outer");
  }

  #noisyBus() {
    const note = (what: string) => this.#note(what);
    return class extends BusObject {
      override plug(device: DeviceObject): void {
        note(`plug ${device.typeName}`);
      }
      override unplug(device: DeviceObject): void {
        note(`unplug ${device.typeName}`);
      }
    };
  }

  #add(info: TypeInfo<DeviceObject>, ...keys: (typeof SPEED | typeof LOUD)[]): void {
    const { name } = info;
    this.registry.register<DeviceObject>({
      ...info,
      classInit: (klass) => {
        klass.addProperties(...keys);
        this.#note(`class ${name}`);
      },
      instanceInit: () => this.#note(`instance ${name}`),
      realize: (device, host) => {
        info.realize?.(device, host);
        this.#note(`realize ${name}`);
      },
      unrealize: () => this.#note(`unrealize ${name}`),
    });
  }

  #note(what: string): void {
    if (what === this.failing) throw new Error(`${what} failed`);
    this.events.push(what);
  }

  create(name: string, id?: string): DeviceObject {
    return this.registry.createA(DeviceObject, name, id);
  }

  take(): string[] {
    return this.events.splice(0);
  }
}

test("classes are initialised once, at first use, parents before children", OPTIONS, () => {
  const fixture = new Fixture();
  assert.deepEqual(fixture.take(), []);
  fixture.create("leaf");
  assert.deepEqual(fixture.take(), [
    "class base",
    "class middle",
    "class leaf",
    "instance base",
    "instance middle",
    "instance leaf",
  ]);
  fixture.create("leaves");
  assert.deepEqual(fixture.take(), ["instance base", "instance middle", "instance leaf"]);
});

test("a device is realized parents first, then plugged, and the other way round", OPTIONS, () => {
  const fixture = new Fixture();
  const device = fixture.create("leaf");
  fixture.take();
  device.realize(fixture.root, fixture.host);
  assert.deepEqual(fixture.take(), ["realize base", "realize middle", "realize leaf", "plug leaf"]);
  assert.equal(device.realized, true);
  device.unrealize();
  assert.deepEqual(fixture.take(), ["unplug leaf", "unrealize leaf", "unrealize middle", "unrealize base"]);
  assert.deepEqual([device.realized, device.parentBus, fixture.root.devices.length], [false, undefined, 0]);
  device.unrealize();
  assert.deepEqual(fixture.take(), []);
});

test("what a failing realize has done is undone, and the device can be tried again", OPTIONS, () => {
  for (const [failing, events] of [
    ["realize base", []],
    ["realize leaf", ["realize base", "realize middle", "unrealize middle", "unrealize base"]],
    [
      "plug leaf",
      ["realize base", "realize middle", "realize leaf", "unrealize leaf", "unrealize middle", "unrealize base"],
    ],
  ] as const) {
    const fixture = new Fixture();
    const device = fixture.create("leaf");
    fixture.take();
    fixture.failing = failing;
    assert.throws(() => device.realize(fixture.root, fixture.host), new RegExp(`${failing} failed`));
    assert.deepEqual(fixture.take(), events, failing);
    assert.equal(fixture.root.devices.length, 0);
    fixture.failing = "";
    device.realize(fixture.root, fixture.host);
    assert.equal(device.realized, true);
  }
});

test("devices on a device's own bus go before it", OPTIONS, () => {
  const fixture = new Fixture();
  const hub = fixture.create("hub");
  hub.realize(fixture.root, fixture.host);
  const inner = hub.childBuses[0] as BusObject;
  const leaves = [fixture.create("leaf"), fixture.create("fast")];
  for (const leaf of leaves) leaf.realize(inner, fixture.host);
  fixture.take();
  hub.unrealize();
  assert.deepEqual(fixture.take(), [
    "unplug hub",
    "unplug fast",
    ...["fast", "leaf", "middle", "base"].map((name) => `unrealize ${name}`),
    "unplug leaf",
    ...["leaf", "middle", "base"].map((name) => `unrealize ${name}`),
    "unrealize hub",
    "unrealize base",
  ]);
  assert.deepEqual(
    leaves.map((leaf) => leaf.realized),
    [false, false],
  );
  assert.equal(hub.childBuses.length, 0);
});

test("properties have defaults, which a descendant may change", OPTIONS, () => {
  const fixture = new Fixture();
  assert.equal(fixture.create("leaf").get(SPEED), 7);
  const fast = fixture.create("fast");
  assert.equal(fast.get(SPEED), 99);
  fast.setProperties([
    { name: "speed", value: "0x20" },
    { name: "loud", value: true, bare: true },
  ]);
  assert.deepEqual([fast.get(SPEED), fast.get(LOUD)], [32, true]);
  fast.setProperty({ name: "noloud", value: true, bare: true });
  assert.equal(fast.get(LOUD), false);
});

test("wrong names come with the nearest right one", OPTIONS, () => {
  const fixture = new Fixture();
  const leaf = fixture.create("leaf");
  assert.throws(
    () => leaf.setProperty({ name: "spede", value: 1 }),
    /Property 'leaf\.spede' not found\nDid you mean 'speed'\?/,
  );
  assert.throws(
    () => leaf.setProperty({ name: "noluod", value: true, bare: true }),
    /Property 'leaf\.noluod' not found/,
  );
  assert.throws(
    () => fixture.registry.deviceClass("leef"),
    /'leef' is not a valid device model name\nDid you mean 'leaf'\?/,
  );
  assert.throws(() => fixture.registry.deviceClass("wire"), /'wire' is not a valid device model name/);
  assert.throws(() => fixture.registry.deviceClass("base"), /expects a non-abstract device type/);
});

test("a bus is found by name or by type, and one with room is preferred", OPTIONS, () => {
  const fixture = new Fixture();
  const hub = fixture.create("hub", "h");
  hub.realize(fixture.root, fixture.host);
  const klass = fixture.registry.deviceClass("leaf");
  assert.equal(findBus([fixture.root], klass).name, "outer");
  assert.equal(findBus([fixture.root], klass, "inner").owner, hub);
  assert.throws(() => findBus([fixture.root], klass, "iner"), /Bus 'iner' not found\nDid you mean 'inner'\?/);
  assert.throws(() => findBus([], klass), /No 'wire' bus found for device 'leaf'/);
});

test("types cannot be registered twice, nor under a name that is an alias", OPTIONS, () => {
  const { registry } = new Fixture();
  assert.throws(() => registry.register({ name: "leaf", parent: "base" }), /registered twice/);
  assert.throws(() => registry.register({ name: "leaves", parent: "base" }), /registered twice/);
});
