import type { Drive } from "../../machine-backends.ts";
import { type Command, command } from "../command.ts";
import type { ControlledMachine } from "../controlled-machine.ts";
import { ControlError } from "../errors.ts";
import { driveOwner, treeOf } from "../lookup.ts";

const NO_THROTTLE = { bps: 0, bps_rd: 0, bps_wr: 0, iops: 0, iops_rd: 0, iops_wr: 0 };

function driveInfo(machine: ControlledMachine, drive: Drive): object {
  const { backend, options, id } = drive;
  const { cache } = options;
  const owner = driveOwner(treeOf(machine), id);
  const readOnly = options.readOnly || backend.readOnly;
  return {
    device: id,
    ...(owner === undefined ? {} : { qdev: owner.path }),
    type: "unknown",
    removable: false,
    locked: false,
    inserted: {
      "node-name": id,
      file: backend.name,
      drv: "raw",
      ro: readOnly,
      encrypted: false,
      ...NO_THROTTLE,
      detect_zeroes: "off",
      write_threshold: 0,
      backing_file_depth: 0,
      cache: { writeback: cache.writeback, direct: cache.direct, "no-flush": cache.noFlush },
      image: { filename: backend.name, format: "raw", "virtual-size": backend.capacity },
    },
  };
}

function driveStats(machine: ControlledMachine, drive: Drive): object {
  const owner = driveOwner(treeOf(machine), drive.id);
  const stats = owner?.stats;
  return {
    device: drive.id,
    "node-name": drive.id,
    ...(owner === undefined ? {} : { qdev: owner.path }),
    stats: {
      rd_bytes: stats?.readBytes ?? 0,
      wr_bytes: stats?.writtenBytes ?? 0,
      rd_operations: stats?.reads ?? 0,
      wr_operations: stats?.writes ?? 0,
      flush_operations: stats?.flushes ?? 0,
      unmap_operations: stats?.discards ?? 0,
      rd_merged: 0,
      wr_merged: stats?.merged ?? 0,
      failed_rd_operations: 0,
      failed_wr_operations: stats?.errors ?? 0,
    },
  };
}

async function resize(machine: ControlledMachine, id: string | undefined, size: number): Promise<void> {
  const drive = id === undefined ? undefined : treeOf(machine).backends.drives.get(id);
  if (drive === undefined) throw new ControlError(`Cannot find device='${id ?? ""}' nor node-name=''`);
  if (size < 0) throw new ControlError("Parameter 'size' expects a >0 size");
  const { capacity } = drive.backend;
  if (size < capacity)
    throw new ControlError(
      `Cannot shrink '${drive.id}' from ${capacity} to ${size} bytes: the guest would lose what lies past the new end`,
    );
  await machine.resizeDrive(drive.id, size);
}

/** Drives. */
export const BLOCK_COMMANDS: readonly Command[] = [
  command({
    name: "query-block",
    help: "The drives, with the device that has each.",
    run: (_, { machine }) => [...treeOf(machine).backends.drives.values()].map((drive) => driveInfo(machine, drive)),
  }),
  command({
    name: "query-blockstats",
    help: "What the guest has read from and written to each drive.",
    run: (_, { machine }) => [...treeOf(machine).backends.drives.values()].map((drive) => driveStats(machine, drive)),
  }),
  command({
    name: "block_resize",
    help: "Gives a drive a larger size while the guest uses it; the guest is told. A smaller one is refused.",
    arguments: {
      device: { type: "str", optional: true, help: "id of the drive" },
      "node-name": { type: "str", optional: true, help: "the same, by its other name; one of the two is needed" },
      size: { type: "int", help: "bytes, a multiple of 512" },
    },
    run: ({ device, "node-name": node, size }, { machine }) => {
      if (device !== undefined && node !== undefined)
        throw new ControlError("'device' and 'node-name' cannot be given together; give one of them");
      if (device === undefined && node === undefined)
        throw new ControlError("Either 'device' or 'node-name' is needed");
      return resize(machine, device ?? node, size);
    },
  }),
];
