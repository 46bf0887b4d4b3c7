import assert from "node:assert/strict";
import { test } from "node:test";
import { MemoryBlockBackend } from "../../backend/block/memory.ts";
import type { DeviceCore } from "../../device/core.ts";
import {
  VIRTIO_BLK_F_CONFIG_WCE,
  VIRTIO_BLK_F_DISCARD,
  VIRTIO_BLK_F_MQ,
  VIRTIO_BLK_F_RO,
  VIRTIO_BLK_F_WRITE_ZEROES,
  VIRTIO_BLK_F_ZONED,
} from "../../spec/blk.ts";
import {
  VIRTIO_F_EVENT_IDX,
  VIRTIO_F_IN_ORDER,
  VIRTIO_F_INDIRECT_DESC,
  VIRTIO_F_NOTIFICATION_DATA,
  VIRTIO_F_RING_PACKED,
  VIRTIO_F_RING_RESET,
} from "../../spec/features.ts";
import { notedParts } from "../../testing/machine-parts.ts";
import type { PciFunction } from "../../transport/pci/function.ts";
import { cacheOf, type DriveOptions } from "../description.ts";
import { buildMachine, type DeviceTree } from "../machine-builder.ts";
import { createTypeRegistry } from "../types.ts";
import { VirtioDeviceObject } from "./virtio-device.ts";

const OPTIONS = { timeout: 10_000 };
const CAPABILITY_MSIX = 0x11;

const DISK: DriveOptions = {
  option: "disk",
  id: "d0",
  source: { file: "disk.img" },
  format: "raw",
  interface: "none",
  readOnly: false,
  cache: cacheOf("writeback"),
  aio: "threads",
  locking: true,
  discard: "ignore",
};

interface Built {
  readonly machine: DeviceTree;
  readonly core: DeviceCore;
  readonly pci: PciFunction;
  readonly messages: readonly string[];
}

/** A machine with one device, made with these properties, at 4.0. */
async function make(
  driver: string,
  properties: Readonly<Record<string, string | number | boolean>>,
  disk = DISK,
): Promise<Built> {
  const parts = notedParts();
  const drive = driver.startsWith("virtio-blk") ? { drive: "d0" } : {};
  const settings = Object.entries({ addr: "4", ...drive, ...properties }).map(([name, value]) => ({ name, value }));
  const machine = await buildMachine(
    {
      memory: 1 << 20,
      objects: [],
      chardevs: [],
      serials: [],
      drives: [disk],
      devices: [{ option: "device", driver, id: "dev", properties: settings }],
    },
    { ...parts, registry: createTypeRegistry() },
  );
  const proper = machine.device("dev")?.child("virtio-backend");
  const pci = parts.pci.functions.get(32);
  assert.ok(proper instanceof VirtioDeviceObject && proper.core !== undefined && pci !== undefined);
  return { machine, core: proper.core, pci, messages: parts.messages };
}

function msixVectors(pci: PciFunction): number {
  for (let at = pci.configRead(0x34, 1); at !== 0; at = pci.configRead(at + 1, 1))
    if (pci.configRead(at, 1) === CAPABILITY_MSIX) return (pci.configRead(at + 2, 2) & 0x7ff) + 1;
  return 0;
}

/** A property's setting and a feature that it puts in or takes out. */
const FEATURES: readonly [driver: string, property: string, value: boolean, bit: number][] = [
  ["virtio-blk-pci", "packed", true, VIRTIO_F_RING_PACKED],
  ["virtio-rng-pci", "in_order", true, VIRTIO_F_IN_ORDER],
  ["virtio-serial-pci", "notification_data", true, VIRTIO_F_NOTIFICATION_DATA],
  ["virtio-blk-pci", "indirect_desc", false, VIRTIO_F_INDIRECT_DESC],
  ["virtio-rng-pci", "event_idx", false, VIRTIO_F_EVENT_IDX],
  ["virtio-serial-pci", "queue_reset", false, VIRTIO_F_RING_RESET],
  ["virtio-blk-pci", "config-wce", false, VIRTIO_BLK_F_CONFIG_WCE],
  ["virtio-blk-pci", "discard", false, VIRTIO_BLK_F_DISCARD],
  ["virtio-blk-pci", "write-zeroes", false, VIRTIO_BLK_F_WRITE_ZEROES],
];

for (const [driver, property, value, bit] of FEATURES)
  test(`${driver},${property}=${value} decides on feature ${bit}`, OPTIONS, async () => {
    const plain = await make(driver, {});
    const changed = await make(driver, { [property]: value });
    assert.deepEqual([plain.core.offeredFeatures.has(bit), changed.core.offeredFeatures.has(bit)], [!value, value]);
    assert.ok(changed.core.offeredFeatures.without(bit).equals(plain.core.offeredFeatures.without(bit)));
  });

test("virtio-blk-pci,zoned=on: a host-managed disk with the zones that are asked for", OPTIONS, async () => {
  const plain = await make("virtio-blk-pci", {});
  assert.equal(plain.core.offeredFeatures.has(VIRTIO_BLK_F_ZONED), false);
  const { core } = await make("virtio-blk-pci", {
    zoned: true,
    "zoned.zone_size": 131072,
    "zoned.max_open": 3,
    "zoned.max_active": 5,
  });
  assert.equal(core.offeredFeatures.has(VIRTIO_BLK_F_ZONED), true);
  const fields = [72, 76, 80, 92].map((offset) => core.config.read(offset, offset === 92 ? 1 : 4));
  assert.deepEqual(fields, [256, 3, 5, 1]);
  await assert.rejects(make("virtio-blk-pci", { zoned: true, "zoned.zone_size": 100_000 }), /zoned.zone_size=100000/);
});

test("vectors: as many as asked for, one a queue and one more, or none", OPTIONS, async () => {
  for (const [driver, properties, expected] of [
    ["virtio-blk-pci", {}, 2],
    ["virtio-blk-pci", { "num-queues": 4 }, 5],
    ["virtio-blk-pci", { vectors: 0 }, 0],
    ["virtio-blk-pci", { vectors: 7 }, 7],
    ["virtio-serial-pci", {}, 2],
    ["virtio-rng-pci", {}, 2],
  ] as const)
    assert.equal(msixVectors((await make(driver, properties)).pci), expected, JSON.stringify([driver, properties]));
});

test("modern-pio-notify adds an I/O BAR, page-per-vq a larger memory BAR", OPTIONS, async () => {
  const size = (built: Built) => Math.max(...built.pci.bars.map((bar) => bar.size));
  const plain = await make("virtio-serial-pci-non-transitional", {});
  const io = await make("virtio-serial-pci-non-transitional", { "modern-pio-notify": true });
  const pages = await make("virtio-serial-pci", { "page-per-vq": true, max_ports: 31 });
  assert.deepEqual(
    [plain, io].map((built) => built.pci.bars.some((bar) => bar.kind === "io")),
    [false, true],
  );
  assert.ok(size(pages) > size(plain));
});

test("class= changes the PCI class", OPTIONS, async () => {
  assert.equal((await make("virtio-blk-pci", {})).pci.configRead(0x0a, 2), 0x0100);
  assert.equal((await make("virtio-blk-pci", { class: 0x0180 })).pci.configRead(0x0a, 2), 0x0180);
});

/** Little-endian fields of struct virtio_blk_config: offset, size, and what is read there. */
const BLK_CONFIG: readonly [
  properties: Record<string, string | number | boolean>,
  at: number,
  size: 1 | 2 | 4,
  value: number,
][] = [
  [{}, 12, 4, 254],
  [{ "queue-size": 64 }, 12, 4, 62],
  [{ "seg-max-adjust": false }, 12, 4, 126],
  [{ "seg-max-adjust": false, "queue-size": 64 }, 12, 4, 62],
  [{ cyls: 5, heads: 6, secs: 7 }, 16, 4, 0x07060005],
  [{ logical_block_size: "4k" }, 20, 4, 4096],
  [{ physical_block_size: 4096 }, 24, 1, 3],
  [{ min_io_size: 4096 }, 26, 2, 8],
  [{ opt_io_size: "64K" }, 28, 4, 128],
  [{ "num-queues": 3 }, 34, 2, 3],
  [{ "write-cache": "off" }, 32, 1, 0],
  [{}, 36, 4, 4194303],
  [{}, 40, 4, 1],
  [{}, 44, 4, 128],
  [{ discard: false }, 36, 4, 0],
  [{ "max-discard-sectors": 100 }, 36, 4, 100],
  [{ discard_granularity: 4096 }, 44, 4, 8],
  [{ "max-write-zeroes-sectors": 200 }, 48, 4, 200],
  [{}, 56, 1, 1],
  [{ "write-zeroes": "off" }, 48, 4, 0],
];

for (const [properties, at, size, value] of BLK_CONFIG)
  test(`virtio-blk-pci ${JSON.stringify(properties)} has ${value} at ${at}`, OPTIONS, async () => {
    const { core } = await make("virtio-blk-pci", properties);
    assert.equal(core.config.read(at, size), value);
  });

test("queues of virtio-blk", OPTIONS, async () => {
  const { core } = await make("virtio-blk-pci", { "num-queues": "2", "queue-size": "0x40" });
  assert.deepEqual([core.queueSizes, core.offeredFeatures.has(VIRTIO_BLK_F_MQ)], [[64, 64], true]);
  assert.deepEqual((await make("virtio-blk-pci", {})).core.queueSizes, [256]);
});

test("a drive that is read-only makes the device so", OPTIONS, async () => {
  assert.equal((await make("virtio-blk-pci", {})).core.offeredFeatures.has(VIRTIO_BLK_F_RO), false);
  const backend = new MemoryBlockBackend({ capacity: 1 << 20 });
  const { core } = await make("virtio-blk-pci", {}, { ...DISK, source: { backend }, readOnly: true });
  assert.equal(core.offeredFeatures.has(VIRTIO_BLK_F_RO), true);
});

test("a serial number that is too long is cut, and this is said", OPTIONS, async () => {
  const { messages } = await make("virtio-blk-pci", { serial: "123456789012345678901234" });
  assert.deepEqual(messages, ["warn: dev: of serial=123456789012345678901234 the guest sees 12345678901234567890"]);
});

test("max_ports of virtio-serial", OPTIONS, async () => {
  const { core } = await make("virtio-serial-pci", { max_ports: 3 });
  assert.deepEqual([core.config.read(4, 4), core.queueSizes.length], [3, 8]);
});

test("what no property of ours changes is accepted as QEMU has it, and nothing else", OPTIONS, async () => {
  await make("virtio-blk-pci", {
    ioeventfd: "off",
    "share-rw": true,
    romfile: "",
    rombar: 0,
    scsi: "off",
    werror: "report",
    any_layout: false,
    "disable-legacy": "off",
    "disable-modern": false,
    multifunction: false,
  });
  for (const [name, value] of Object.entries({
    ats: "on",
    aer: true,
    romfile: "x.rom",
    rombar: 2,
    "request-merging": false,
    werror: "stop",
    iommu_platform: "on",
    "acpi-index": 3,
    failover_pair_id: "x",
  }))
    await assert.rejects(make("virtio-blk-pci", { [name]: value }), new RegExp(`virtio-blk-pci\\.${name}' can't be '`));
});
