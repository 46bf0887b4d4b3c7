import assert from "node:assert/strict";
import { test } from "node:test";
import { deviceHelp, deviceListHelp, objectHelp, objectListHelp } from "./object-model/device-help.ts";
import { createTypeRegistry } from "./types.ts";

const OPTIONS = { timeout: 5000 };

const DEVICES = `Storage devices:
name "virtio-blk-device", bus virtio-bus
name "virtio-blk-pci", bus PCI, alias "virtio-blk"
name "virtio-blk-pci-non-transitional", bus PCI
name "virtio-blk-pci-transitional", bus PCI

Input devices:
name "virtconsole", bus virtio-serial-bus
name "virtio-serial-device", bus virtio-bus
name "virtio-serial-pci", bus PCI, alias "virtio-serial"
name "virtio-serial-pci-non-transitional", bus PCI
name "virtio-serial-pci-transitional", bus PCI
name "virtserialport", bus virtio-serial-bus

Misc devices:
name "virtio-balloon-device", bus virtio-bus
name "virtio-balloon-pci", bus PCI, alias "virtio-balloon"
name "virtio-balloon-pci-non-transitional", bus PCI
name "virtio-balloon-pci-transitional", bus PCI
name "virtio-rng-device", bus virtio-bus
name "virtio-rng-pci", bus PCI, alias "virtio-rng"
name "virtio-rng-pci-non-transitional", bus PCI
name "virtio-rng-pci-transitional", bus PCI
`;

const PORT = `virtserialport options:
  chardev=<str>          - ID of a chardev to use as a backend
  name=<str>             - The guest finds the port as /dev/virtio-ports/NAME
  nr=<uint32>            - Number of the port; the first free one if left out (default: 4294967295)
`;

/** Lines that QEMU 7.2 prints for virtio-blk-pci, and that mean the same here. */
const BLK_LINES = [
  "  addr=<int32>           - Slot and optional function number, example: 06.0 or 06 (default: -1)",
  "  bootindex=<int32>",
  "  config-wce=<bool>      - on/off (default: true)",
  '  disable-legacy=<OnOffAuto> - on/off/auto (default: "auto")',
  "  drive=<str>            - Node name or ID of a block device to use as a backend",
  "  event_idx=<bool>       - on/off (default: true)",
  "  indirect_desc=<bool>   - on/off (default: true)",
  "  logical_block_size=<size> - A power of two between 512 B and 2 MiB (default: 0)",
  "  num-queues=<uint16>    -  (default: 65535)",
  "  packed=<bool>          - on/off (default: false)",
  "  queue-size=<uint16>    -  (default: 256)",
  '  write-cache=<OnOffAuto> - on/off/auto (default: "auto")',
];

test("-device help lists the devices by category", OPTIONS, () => {
  assert.equal(deviceListHelp(createTypeRegistry()), DEVICES);
});

test("-device NAME,help lists the properties, sorted", OPTIONS, () => {
  const registry = createTypeRegistry();
  assert.equal(deviceHelp(registry, "virtserialport"), PORT);
  const lines = deviceHelp(registry, "virtio-blk-pci").trimEnd().split("\n");
  assert.equal(lines[0], "virtio-blk-pci options:");
  for (const line of BLK_LINES) assert.ok(lines.includes(line), line);
  assert.deepEqual(lines.slice(1), lines.slice(1).sort());
});

test("a proxy has the properties of the device proper, an alias those of its type", OPTIONS, () => {
  const registry = createTypeRegistry();
  const properties = (name: string) => registry.deviceClass(name).properties.map((key) => key.name);
  for (const family of ["blk", "serial", "rng"]) {
    const proxy = properties(`virtio-${family}-pci`);
    for (const name of properties(`virtio-${family}-device`)) assert.ok(proxy.includes(name), `${family} ${name}`);
    assert.equal(new Set(proxy).size, proxy.length);
    assert.equal(deviceHelp(registry, `virtio-${family}`), deviceHelp(registry, `virtio-${family}-pci`));
  }
});

test("every family has its own number of MSI-X vectors", OPTIONS, () => {
  const registry = createTypeRegistry();
  const line = (name: string) => /vectors=.*default: (\d+)/.exec(deviceHelp(registry, name))?.[1];
  assert.deepEqual(["virtio-blk-pci", "virtio-serial-pci"].map(line), ["4294967295", "2"]);
});

test("-object help", OPTIONS, () => {
  const registry = createTypeRegistry();
  assert.equal(objectListHelp(registry), "List of user creatable objects:\n  rng-builtin\n  rng-random\n");
  assert.match(objectHelp(registry, "rng-random"), /^rng-random options:\n {2}filename=<string> +- /);
  assert.equal(objectHelp(registry, "rng-builtin"), "There are no options for rng-builtin.\n");
});

test("help for what there is not", OPTIONS, () => {
  const registry = createTypeRegistry();
  assert.throws(() => deviceHelp(registry, "virtio-blk-pc"), /Did you mean 'virtio-blk-pci'\?/);
  assert.throws(() => objectHelp(registry, "rng"), /does not accept value 'rng'\nDid you mean 'rng-random'\?/);
});
