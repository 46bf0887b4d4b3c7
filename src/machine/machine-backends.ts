import type { BlockBackend } from "../backend/block/types.ts";
import type { CharBackend } from "../backend/char/types.ts";
import type { EntropySource } from "../backend/entropy/types.ts";
import { VirtkitError } from "../common/error.ts";
import type { DriveOptions } from "./description.ts";
import { suggest } from "./nearest.ts";
import { UsageError } from "./usage-error.ts";

/** What this file needs to know of a device or an object. */
export interface Named {
  readonly typeName: string;
  readonly id: string | undefined;
  /** For messages: the type, and the id if it has one. */
  readonly label: string;
}

/** A back end and who uses it: one device at a time. */
export interface Claimable {
  readonly id: string;
  /** For messages: the device's label, or "serial port 0". */
  user: string | undefined;
}

export interface Drive extends Claimable {
  readonly options: DriveOptions;
  readonly backend: BlockBackend;
}

export interface Chardev extends Claimable {
  readonly backend: CharBackend;
}

/** An id that a device's property names. */
export interface Claim {
  readonly id: string;
  readonly device: Named;
  readonly property: string;
}

/** Everything that devices are connected to, by id. */
export class MachineBackends {
  readonly drives = new Map<string, Drive>();
  readonly chardevs = new Map<string, Chardev>();
  /** -object. */
  readonly objects = new Map<string, Named>();
  /** Devices that want to boot, by bootindex. */
  readonly #bootOrder = new Map<number, Named>();
  /** The host's own random numbers. */
  readonly entropy: EntropySource;

  constructor(entropy: EntropySource) {
    this.entropy = entropy;
  }

  /** @throws UsageError when there is no such drive, or a device has it already */
  claimDrive(claim: Claim): Drive {
    const drive = find(this.drives, claim, "-drive file=IMAGE,format=raw,if=none,id=ID declares a drive.");
    if (drive.user !== undefined) {
      const reason = `Drive '${drive.id}' is already in use`;
      if (drive.options.interface === "none")
        throw new UsageError(`${reason} by another device, ${drive.user}`, {
          hint: "Give each device a drive of its own.",
        });
      throw new UsageError(
        `${reason} because it has been automatically connected to another device (did you need 'if=none' in the drive options?)`,
      );
    }
    drive.user = claim.device.label;
    return drive;
  }

  /**
   * A device gives its drive back. Another may have it once `idle`, if given, is settled: then nothing of the device's is on its way any
   * more. A back end that serves one device in its life keeps its user.
   */
  releaseDrive(drive: Drive, idle?: Promise<void>): void {
    if (idle === undefined) {
      freeDrive(drive);
      return;
    }
    drive.user = `${drive.user}, whose last requests are on their way`;
    const free = (): void => freeDrive(drive);
    idle.then(free, free);
  }

  /**
   * Gives a drive another size; its device tells the guest.
   * @throws ERR_VIRTKIT_DRIVE_RESIZE for a drive that is not there or has a fixed size, a size that is none, and for a smaller one without
   * `force`: the guest would lose what lies there
   */
  async resizeDrive(id: string, bytes: number, { force = false }: { readonly force?: boolean } = {}): Promise<void> {
    const wrong = (why: string): VirtkitError =>
      new VirtkitError("ERR_VIRTKIT_DRIVE_RESIZE", `drive '${id}' cannot be resized to ${bytes} bytes: ${why}`);
    const drive = this.drives.get(id);
    if (drive === undefined) throw wrong(`there is no such drive; there are: ${[...this.drives.keys()].join(", ")}`);
    const { backend, options } = drive;
    if (backend.resize === undefined || backend.readOnly || options.readOnly) throw wrong("its size is fixed");
    if (!Number.isSafeInteger(bytes) || bytes <= 0 || bytes % backend.blockSize !== 0)
      throw wrong(`give a multiple of ${backend.blockSize}`);
    if (bytes < backend.capacity && !force)
      throw wrong(`it has ${backend.capacity}, and what lies past the new end would be lost; say force: true to do it`);
    await backend.resize(bytes);
  }

  /** @throws UsageError when there is no such chardev, or it is in use */
  claimChardev(claim: Claim): Chardev {
    const chardev = find(this.chardevs, claim, "-chardev TYPE,id=ID declares one.");
    if (chardev.user !== undefined) {
      const where = `Property '${claim.device.typeName}.${claim.property}' can't take value '${claim.id}'`;
      throw new UsageError(`${where}: Device '${claim.id}' is in use by ${chardev.user}`);
    }
    chardev.user = claim.device.label;
    return chardev;
  }

  /** @throws UsageError when -object made no such thing */
  findObject(claim: Claim): Named {
    return find(this.objects, claim, "-object TYPE,id=ID makes one.");
  }

  /** @throws UsageError when another device has this place in the boot order */
  claimBootIndex(index: number, device: Named): void {
    const other = this.#bootOrder.get(index);
    if (other !== undefined) throw new UsageError(`The bootindex ${index} has already been used, by ${other.label}`);
    this.#bootOrder.set(index, device);
  }

  releaseBootIndex(device: Named): void {
    for (const [index, owner] of this.#bootOrder) if (owner === device) this.#bootOrder.delete(index);
  }

  /** The devices to boot from, the first first. */
  get bootOrder(): Named[] {
    return [...this.#bootOrder].sort(([a], [b]) => a - b).map(([, device]) => device);
  }
}

function freeDrive(drive: Drive): void {
  if (drive.backend.detach === undefined) {
    drive.user = `${drive.user}, which is gone: ${drive.backend.name} serves one device only`;
    return;
  }
  drive.backend.detach();
  drive.user = undefined;
}

function find<T>(map: ReadonlyMap<string, T>, { id, device, property }: Claim, more: string): T {
  const found = map.get(id);
  if (found !== undefined) return found;
  const hint = map.size === 0 ? more : suggest(id, map.keys());
  throw new UsageError(`Property '${device.typeName}.${property}' can't find value '${id}'`, { hint });
}
