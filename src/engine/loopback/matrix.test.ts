import assert from "node:assert/strict";
import { createHash, randomFillSync } from "node:crypto";
import { test } from "node:test";
import { MemoryBlockBackend } from "../../backend/block/memory.ts";
import { BlkDevice } from "../../device/blk.ts";
import { RING_FEATURES } from "../../device/core.ts";
import { BlkDriver } from "../../driver/blk.ts";
import { VIRTIO_F_RING_PACKED } from "../../spec/features.ts";
import { nodeEnvironment } from "../../testing/loop-device.ts";
import { Tracing } from "../../trace/tracing.ts";
import type { TraceEvent } from "../../trace/types.ts";
import { type LoopbackAttachment, LoopbackMachine } from "./index.ts";

const limit = { timeout: 20_000 };
const MiB = 2 ** 20;
const DISK = "virtio-blk";
const DRIVER = "virtio_blk";

interface Row {
  readonly name: string;
  readonly how: LoopbackAttachment;
  /** The driver uses the legacy interface of a device that has both. */
  readonly legacyDriver?: boolean;
  /** Registers by which queues are set up and notified. */
  readonly registers: readonly [setUp: string, kick: string];
  readonly interrupt: string;
}

const LEGACY = ["QUEUE_PFN", "QUEUE_NOTIFY"] as const;
const MODERN = ["queue_enable", "notify"] as const;

/** The interfaces of a PCI device, by QEMU's properties, each with MSI-X and without. */
const pciRows = (vectors: number | undefined): Row[] => {
  const interrupt = vectors === 0 ? "intx" : "msix";
  const some = vectors === undefined ? {} : { vectors };
  const suffix = vectors === undefined ? "" : `, vectors=${vectors}`;
  return [
    {
      name: `disable-modern=on${suffix}`,
      how: { transport: "pci", legacy: true, modern: false, ...some },
      registers: LEGACY,
      interrupt,
    },
    { name: `disable-legacy=on${suffix}`, how: { transport: "pci", ...some }, registers: MODERN, interrupt },
    {
      name: `transitional, a modern driver${suffix}`,
      how: { transport: "pci", legacy: true, ...some },
      registers: MODERN,
      interrupt,
    },
    {
      name: `transitional, a legacy driver${suffix}`,
      how: { transport: "pci", legacy: true, ...some },
      legacyDriver: true,
      registers: LEGACY,
      interrupt,
    },
  ];
};

const ROWS: readonly Row[] = [
  ...pciRows(undefined),
  ...pciRows(0),
  { name: "mmio, version 1", how: { transport: "mmio", version: 1 }, registers: LEGACY, interrupt: "irq" },
  {
    name: "mmio, version 2",
    how: { transport: "mmio", version: 2 },
    registers: ["QUEUE_READY", "QUEUE_NOTIFY"],
    interrupt: "irq",
  },
];

const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

function contentOf(disk: MemoryBlockBackend): string {
  return sha256(disk.peek(0, MiB));
}

// Packed queues need VIRTIO_F_VERSION_1, which the legacy interface does not have.
for (const row of ROWS)
  for (const packed of row.registers === LEGACY ? [false] : [false, true])
    test(`our driver, ${row.name}, ${packed ? "packed" : "split"}`, limit, async () => {
      const contents = randomFillSync(new Uint8Array(MiB));
      const disk = new MemoryBlockBackend({ capacity: MiB, contents: contents.slice() });
      const environment = nodeEnvironment();
      const events: [string, TraceEvent][] = [];
      const tracing = new Tracing(() => environment.now());
      tracing.addSink({ record: (_time, device, event) => void events.push([device, event]) });
      const machine = new LoopbackMachine({
        environment,
        legacy: row.legacyDriver ?? false,
        tracerOf: (name) => tracing.tracer(name),
      });
      const ringFeatures = packed ? RING_FEATURES : RING_FEATURES.without(VIRTIO_F_RING_PACKED);
      const device = new BlkDevice({ backend: disk, environment, ringFeatures });
      const driver = await machine.attach(device, BlkDriver.type, row.how);
      assert.equal(sha256(await driver.read(0, MiB)), sha256(contents));
      const other = randomFillSync(new Uint8Array(MiB));
      await driver.write(0, other);
      assert.equal(contentOf(disk), sha256(other));

      const of = (name: string): TraceEvent[] => events.flatMap(([by, event]) => (by === name ? [event] : []));
      const registers = new Set(of(DISK).flatMap((event) => ("register" in event ? [event.register] : [])));
      for (const name of row.registers) assert.ok(registers.has(name), `${name} is not in the trace`);
      for (const name of [...LEGACY, ...MODERN])
        if (!row.registers.includes(name)) assert.ok(!registers.has(name), `${name} is in the trace`);
      const start = of(DISK).find((event) => event.kind === "queue" && "state" in event);
      assert.ok(start?.kind === "queue" && "format" in start);
      assert.equal(start.format, packed ? "packed" : "split");
      const ways = new Set(of(DISK).flatMap((event) => (event.kind === "interrupt" ? [event.by] : [])));
      assert.deepEqual([...ways], [row.interrupt]);

      events.length = 0;
      await driver.write(4096, other.subarray(0, 512));
      const steps = events.map(([by, { kind }]) => `${by === DRIVER ? "driver" : "device"} ${kind}`);
      // A driver may look once more at an interrupt that it acknowledges late.
      assert.deepEqual(steps.slice(0, steps.indexOf("driver get") + 1), [
        ...["driver add", "driver kick"],
        ...["kick", "pop", "request-begin", "io-begin", "io-end", "request-end", "push"].map(
          (kind) => `device ${kind}`,
        ),
        ...["device interrupt", "driver interrupt", "driver get"],
      ]);
      await machine.close();
    });
