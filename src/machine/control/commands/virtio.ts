import type { FeatureSet } from "../../../common/feature-set.ts";
import type { RunningQueue } from "../../../device/running-queue.ts";
import * as BALLOON from "../../../spec/balloon.ts";
import * as BLK from "../../../spec/blk.ts";
import * as CONSOLE from "../../../spec/console.ts";
import * as FEATURES from "../../../spec/features.ts";
import { VIRTIO_ID_BALLOON, VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE } from "../../../spec/ids.ts";
import * as STATUS from "../../../spec/status.ts";
import { type Command, command } from "../command.ts";
import type { ControlledMachine } from "../controlled-machine.ts";
import { ControlError } from "../errors.ts";
import { treeOf, type VirtioPlace, virtioDevices } from "../lookup.ts";

type Constants = Readonly<Record<string, unknown>>;

/** Names of feature bits, from the constants of the spec. */
function bitNames(constants: Constants, prefix: RegExp): Map<number, string> {
  const found = Object.entries(constants).filter(([name, value]) => prefix.test(name) && typeof value === "number");
  return new Map(found.map(([name, bit]) => [Number(bit), name]));
}

const TRANSPORT_BITS = bitNames(FEATURES, /^VIRTIO_F_/);
const DEVICE_BITS: ReadonlyMap<number, ReadonlyMap<number, string>> = new Map([
  [VIRTIO_ID_BLOCK, bitNames(BLK, /^VIRTIO_BLK_F_/)],
  [VIRTIO_ID_CONSOLE, bitNames(CONSOLE, /^VIRTIO_CONSOLE_F_/)],
  [VIRTIO_ID_BALLOON, bitNames(BALLOON, /^VIRTIO_BALLOON_F_/)],
]);
const STATUS_BITS = Object.entries(STATUS);
/** Bits below are the device type's, see VIRTIO 1.4 §2.2. */
const FIRST_TRANSPORT_BIT = 24;
const LAST_TRANSPORT_BIT = 49;

const named = (name: string, bit: number): string => `${name}: bit ${bit}`;

function features(set: FeatureSet, deviceId: number): object {
  const transports: string[] = [];
  const device: string[] = [];
  let unknown = 0;
  for (const bit of set) {
    const isTransport = bit >= FIRST_TRANSPORT_BIT && bit <= LAST_TRANSPORT_BIT;
    const name = isTransport ? TRANSPORT_BITS.get(bit) : DEVICE_BITS.get(deviceId)?.get(bit);
    if (name === undefined) unknown += 2 ** bit;
    else (isTransport ? transports : device).push(named(name, bit));
  }
  return { transports, "dev-features": device, ...(unknown === 0 ? {} : { "unknown-dev-features": unknown }) };
}

function status(machine: ControlledMachine, { core, registers, typeName }: VirtioPlace): object {
  const bits = STATUS_BITS.filter(([, bit]) => (registers.status & bit) !== 0);
  return {
    name: typeName,
    "device-id": core.deviceId,
    "bus-name": "virtio-bus",
    "device-endian": "little",
    "num-vqs": core.queueSizes.length,
    "queue-sel": registers.queues.select,
    isr: 0,
    status: { statuses: bits.map(([name, bit]) => named(name, Math.log2(bit))) },
    "host-features": features(core.offeredFeatures, core.deviceId),
    "guest-features": features(core.features, core.deviceId),
    "backend-features": { transports: [], "dev-features": [] },
    "vm-running": machine.runState === "running",
    "vhost-started": false,
    "use-guest-notifier-mask": false,
    "use-started": true,
    started: registers.live,
    "start-on-kick": false,
    "disable-legacy-check": false,
    disabled: false,
    broken: core.broken !== undefined,
  };
}

function inUse(running: RunningQueue, size: number): number {
  const { availIndex, availWrap, usedIndex, usedWrap } = running.queue.state();
  const ahead = availIndex - usedIndex;
  return availWrap === usedWrap ? (ahead + 0x10000) % 0x10000 : ahead + size;
}

function queueStatus({ core, registers, typeName }: VirtioPlace, index: number): object {
  const most = core.queueSizes[index];
  if (most === undefined) throw new ControlError(`Invalid virtqueue number ${index}`);
  const config = registers.queues.geometry(index);
  const running = core.queue(index);
  const state = running?.queue.state();
  return {
    name: typeName,
    "queue-index": index,
    inuse: running === undefined ? 0 : inUse(running, config?.size ?? most),
    "vring-num": config?.size ?? most,
    "vring-num-default": most,
    "vring-align": 4096,
    "vring-desc": config?.desc ?? 0,
    "vring-avail": config?.driver ?? 0,
    "vring-used": config?.device ?? 0,
    ...(state === undefined ? {} : { "last-avail-idx": state.availIndex, "shadow-avail-idx": state.availIndex }),
    "used-idx": state?.usedIndex ?? 0,
    "signalled-used": state?.usedIndex ?? 0,
    "signalled-used-valid": running !== undefined,
  };
}

function find(machine: ControlledMachine, path: string): VirtioPlace {
  const found = virtioDevices(treeOf(machine)).find((place) => place.path === path || place.facePath === path);
  if (found === undefined) throw new ControlError(`Path ${path} is not a VirtIODevice`);
  return found;
}

const PATH = { type: "str", help: "its path, as x-query-virtio lists it" } as const;

/** What virtio devices and their queues are doing. */
export const VIRTIO_COMMANDS: readonly Command[] = [
  command({
    name: "x-query-virtio",
    help: "The virtio devices.",
    run: (_, { machine }) => virtioDevices(treeOf(machine)).map(({ path, typeName }) => ({ name: typeName, path })),
  }),
  command({
    name: "x-query-virtio-status",
    help: "Status and features of a virtio device.",
    arguments: { path: PATH },
    run: ({ path }, { machine }) => status(machine, find(machine, path)),
  }),
  command({
    name: "x-query-virtio-queue-status",
    help: "Where a virtqueue lies and how far it has come.",
    arguments: { path: PATH, queue: { type: "int", help: "its index" } },
    run: ({ path, queue }, { machine }) => queueStatus(find(machine, path), queue),
  }),
];
