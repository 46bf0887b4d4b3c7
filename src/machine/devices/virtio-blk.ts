import { BlkDevice, type BlkProperties } from "../../device/blk.ts";
import { VIRTIO_BLK_ID_BYTES } from "../../spec/blk.ts";
import type { Drive, MachineBackends } from "../machine-backends.ts";
import type { MachineHost } from "../machine-host.ts";
import {
  BLOCK_SIZE,
  BOOL,
  DRIVE,
  enumType,
  fixedProperty,
  ON_OFF_AUTO,
  OPTIONAL_INT32,
  type Property,
  property,
  reference,
  SIZE,
  STR,
  UINT16,
  UINT32,
} from "../object-model/property.ts";
import type { TypeRegistry } from "../object-model/registry.ts";
import { CLASS, registerVirtioPciFamily } from "../pci/virtio-pci.ts";
import { UsageError } from "../usage-error.ts";
import { VirtioDeviceObject } from "./virtio-device.ts";

/** One queue for each of the guest's CPUs, of which there is one. */
const AUTO_QUEUES = 65535;
const MAX_QUEUE_SIZE = 1024;
/** Segments of a request when they do not follow the queue's size. */
const FIXED_SEGMENTS = 126;

const DRIVE_ID = property("drive", DRIVE, undefined);
const BOOTINDEX = property("bootindex", OPTIONAL_INT32, undefined);
const LOGICAL = property("logical_block_size", BLOCK_SIZE, 0);
const PHYSICAL = property("physical_block_size", BLOCK_SIZE, 0);
const MIN_IO = property("min_io_size", SIZE, 0);
const OPT_IO = property("opt_io_size", SIZE, 0);
const CYLS = property("cyls", UINT32, 0);
const HEADS = property("heads", UINT32, 0);
const SECS = property("secs", UINT32, 0);
const SERIAL = property("serial", STR, undefined);
const WRITE_CACHE = property("write-cache", ON_OFF_AUTO, "auto");
const CONFIG_WCE = property("config-wce", BOOL, true);
const NUM_QUEUES = property("num-queues", UINT16, AUTO_QUEUES);
const QUEUE_SIZE = property("queue-size", UINT16, 256);
const SEG_MAX_ADJUST = property("seg-max-adjust", BOOL, true);

/** Sectors of a range that QEMU allows. */
const MAX_SECTORS = 4194303;
const AUTO_GRANULARITY = 0xffffffff;
const DISCARD = property("discard", BOOL, true);
const WRITE_ZEROES = property("write-zeroes", BOOL, true);
const MAX_DISCARD_SECTORS = property("max-discard-sectors", UINT32, MAX_SECTORS);
const MAX_WRITE_ZEROES_SECTORS = property("max-write-zeroes-sectors", UINT32, MAX_SECTORS);
const DISCARD_GRANULARITY = property("discard_granularity", SIZE, AUTO_GRANULARITY);

/** Zones, as QEMU names those of an NVMe namespace; `conventional_zones` is our own. */
const ZONED = property("zoned", BOOL, false, {
  description: "on/off; a host-managed zoned disk, whose zones start empty; a guest that knows no zones refuses it",
});
const ZONE_SIZE = property("zoned.zone_size", SIZE, 64 * 1024 * 1024);
const ZONE_CAPACITY = property("zoned.zone_capacity", SIZE, 0, { description: "0 is all of the zone" });
const ZONES_OPEN = property("zoned.max_open", UINT32, 0);
const ZONES_ACTIVE = property("zoned.max_active", UINT32, 0);
const ZONES_CONVENTIONAL = property("zoned.conventional_zones", UINT32, 0);

const ON_ERROR = enumType(
  "BlockdevOnError",
  ["report", "ignore", "enospc", "stop", "auto"],
  "Error handling policy, report/ignore/enospc/stop/auto",
);
const errorPolicy = (name: string): Property =>
  property(name, ON_ERROR, "auto", {
    refuse: (value) =>
      value === "auto" || value === "report" ? undefined : "errors are always reported to the guest, which goes on",
  });

const PROPERTIES: readonly Property[] = [
  DRIVE_ID,
  BOOTINDEX,
  LOGICAL,
  PHYSICAL,
  MIN_IO,
  OPT_IO,
  CYLS,
  HEADS,
  SECS,
  SERIAL,
  WRITE_CACHE,
  CONFIG_WCE,
  NUM_QUEUES,
  QUEUE_SIZE,
  SEG_MAX_ADJUST,
  errorPolicy("werror"),
  errorPolicy("rerror"),
  property("share-rw", BOOL, false, {
    description: "on/off; no effect: file.locking=off of the drive lets images be shared",
  }),
  fixedProperty("scsi", BOOL, false, "SCSI passthrough is not part of virtio 1.0; only scsi=off works"),
  fixedProperty("request-merging", BOOL, true, "neighbouring requests are always merged"),
  DISCARD,
  WRITE_ZEROES,
  MAX_DISCARD_SECTORS,
  MAX_WRITE_ZEROES_SECTORS,
  DISCARD_GRANULARITY,
  ZONED,
  ZONE_SIZE,
  ZONE_CAPACITY,
  ZONES_OPEN,
  ZONES_ACTIVE,
  ZONES_CONVENTIONAL,
  property("iothread", reference("link<iothread>"), undefined, {
    refuse: () => "there are no iothread objects: a device runs on the thread of its machine",
  }),
];

/** A virtio block device, without its transport. */
export class VirtioBlkObject extends VirtioDeviceObject {
  drive: Drive | undefined;
  backends: MachineBackends | undefined;
}

function realize(device: VirtioBlkObject, host: MachineHost): void {
  const id = device.get(DRIVE_ID);
  if (id === undefined || id === "") {
    const hint = "Add drive=ID, the id of a -drive with if=none.";
    throw new UsageError("drive property not set", { hint });
  }
  checkQueues(device);
  const drive = host.backends.claimDrive({ id, device: device.face, property: DRIVE_ID.name });
  device.drive = drive;
  device.backends = host.backends;
  try {
    const bootIndex = device.get(BOOTINDEX) ?? -1;
    if (bootIndex >= 0) host.backends.claimBootIndex(bootIndex, device.face);
    device.core = new BlkDevice({
      ...blkProperties(device, drive, host),
      backend: drive.backend,
      environment: host.environment,
      name: device.coreName,
      ringFeatures: device.ringFeatures,
    });
  } catch (error) {
    release(device);
    throw error;
  }
}

function release(device: VirtioBlkObject): void {
  const { drive, core } = device;
  const idle = core instanceof BlkDevice && core.inFlight > 0 ? core.drain() : undefined;
  if (drive !== undefined) device.backends?.releaseDrive(drive, idle);
  device.backends?.releaseBootIndex(device.face);
  device.drive = undefined;
  device.backends = undefined;
}

function checkQueues(device: VirtioBlkObject): void {
  const size = device.get(QUEUE_SIZE);
  if (device.get(NUM_QUEUES) === 0) throw new UsageError("num-queues property must be larger than 0");
  if (size <= 2) throw new UsageError(`invalid queue-size property (${size}), must be > 2`);
  if (!Number.isInteger(Math.log2(size)) || size > MAX_QUEUE_SIZE)
    throw new UsageError(`invalid queue-size property (${size}), must be a power of 2 (max ${MAX_QUEUE_SIZE})`);
}

function blkProperties(device: VirtioBlkObject, drive: Drive, host: MachineHost): BlkProperties {
  const queues = device.get(NUM_QUEUES);
  const queueSize = device.get(QUEUE_SIZE);
  const cache = device.get(WRITE_CACHE);
  const wanted = { logical: device.get(LOGICAL), physical: device.get(PHYSICAL) };
  const physical = wanted.physical === 0 ? drive.backend.physicalBlockSize : wanted.physical;
  if (wanted.physical !== 0 && wanted.logical > physical)
    throw new UsageError("logical_block_size > physical_block_size not supported");
  return {
    queueSize,
    numQueues: queues === AUTO_QUEUES ? 1 : queues,
    ...(device.get(SEG_MAX_ADJUST) ? {} : { segMax: Math.min(FIXED_SEGMENTS, queueSize - 2) }),
    serial: serialNumber(device, host),
    ...(wanted.logical === 0 ? {} : { logicalBlockSize: wanted.logical }),
    ...(wanted.physical === 0 ? {} : { physicalBlockSize: wanted.physical }),
    minIoSize: device.get(MIN_IO),
    optIoSize: device.get(OPT_IO),
    configWce: device.get(CONFIG_WCE),
    writeCache: (cache === "auto" ? drive.options.cache.writeback : cache === "on") ? "on" : "off",
    readOnly: drive.options.readOnly,
    ...geometry(device),
    ...rangeLimits(device),
    ...zones(device),
  };
}

function zones(device: VirtioBlkObject): Pick<BlkProperties, "zoned"> {
  const capacity = device.get(ZONE_CAPACITY);
  if (!device.get(ZONED)) return {};
  return {
    zoned: {
      zoneSize: device.get(ZONE_SIZE),
      ...(capacity === 0 ? {} : { zoneCapacity: capacity }),
      maxOpen: device.get(ZONES_OPEN),
      maxActive: device.get(ZONES_ACTIVE),
      conventionalZones: device.get(ZONES_CONVENTIONAL),
    },
  };
}

function rangeLimits(device: VirtioBlkObject): Partial<BlkProperties> {
  const granularity = device.get(DISCARD_GRANULARITY);
  for (const [key, feature] of [
    [MAX_DISCARD_SECTORS, DISCARD],
    [MAX_WRITE_ZEROES_SECTORS, WRITE_ZEROES],
  ] as const) {
    const sectors = device.get(key);
    if (device.get(feature) && (sectors < 1 || sectors > MAX_SECTORS))
      throw new UsageError(`invalid ${key.name} property (${sectors}), must be between 1 and ${MAX_SECTORS}`);
  }
  return {
    ...(device.get(DISCARD) ? { maxDiscardSectors: device.get(MAX_DISCARD_SECTORS) } : { discard: false }),
    ...(device.get(WRITE_ZEROES)
      ? { maxWriteZeroesSectors: device.get(MAX_WRITE_ZEROES_SECTORS) }
      : { writeZeroes: false }),
    ...(granularity === AUTO_GRANULARITY ? {} : { discardGranularity: granularity }),
  };
}

function serialNumber(device: VirtioBlkObject, host: MachineHost): string {
  const serial = device.get(SERIAL) ?? "";
  const shown = serial.slice(0, VIRTIO_BLK_ID_BYTES);
  if (shown !== serial)
    host.environment.log.log("warn", `${device.coreName}: of serial=${serial} the guest sees ${shown}`);
  return shown;
}

function geometry(device: VirtioBlkObject): Pick<BlkProperties, "geometry"> {
  const [cylinders, heads, sectors] = [device.get(CYLS), device.get(HEADS), device.get(SECS)];
  if (cylinders === 0 && heads === 0 && sectors === 0) return {};
  if (cylinders === 0 || heads === 0 || sectors === 0) {
    const hint = "Give cyls, heads and secs, or none of them.";
    throw new UsageError("cyls, heads and secs must be given together", { hint });
  }
  return { geometry: { cylinders, heads, sectors } };
}

export function registerVirtioBlk(registry: TypeRegistry): void {
  registry.register<VirtioBlkObject>({
    name: "virtio-blk-device",
    parent: "virtio-device",
    instanceClass: VirtioBlkObject,
    category: "Storage",
    userCreatable: true,
    classInit(klass) {
      klass.addProperties(...PROPERTIES);
    },
    realize,
    unrealize: release,
  });
  registerVirtioPciFamily(registry, {
    name: "virtio-blk",
    device: "virtio-blk-device",
    category: "Storage",
    properties: [CLASS],
  });
}
