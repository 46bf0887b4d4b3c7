import type { Environment } from "../common/environment.ts";
import { VirtkitError } from "../common/error.ts";
import { BlkDevice } from "../device/blk.ts";
import { VirtioPciDevice } from "../transport/pci/virtio-pci-device.ts";
import type { DeviceOptions } from "./description.ts";
import { virtioCores } from "./device-watch.ts";
import { AGENT_BUS_ID, type GuestControl } from "./guest-agent/index.ts";
import type { DeviceTree } from "./machine-builder.ts";
import type { DeviceObject } from "./object-model/device.ts";
import { PciDevice } from "./pci/pci-bus.ts";

/** Milliseconds that a new device waits for the guest to look for it. The guest finds it later all the same. */
const RESCAN_LIMIT = 5000;
/** Milliseconds between two looks whether a guest without our helper has let go of a device. */
const POLL = 100;

export interface HotPlugParts {
  readonly tree: DeviceTree;
  /** The prepared guest's helper. */
  readonly control: GuestControl | undefined;
  readonly environment: Environment;
  /** The guest runs, so that it can answer. */
  isRunning(): boolean;
  /** A device is out. */
  deleted(id: string | undefined, path: string): void;
  /** The guest did not let go of a device. */
  kept(id: string | undefined, path: string): void;
}

interface Waiter {
  readonly resolve: () => void;
  readonly reject: (error: VirtkitError) => void;
}

const unplugError = (message: string): VirtkitError => new VirtkitError("ERR_VIRTKIT_UNPLUG", message);

/**
 * Plugs devices in and out while the guest runs. The emulated PC has no hot-plug controller, so a guest learns of either by its own
 * doing: it rescans its bus, and it lets go of a device before that is pulled out. A prepared guest's helper does both for us.
 */
export class HotPlug {
  readonly #parts: HotPlugParts;
  /** Devices that the guest was asked to let go of. */
  readonly #leaving = new Set<DeviceObject>();
  readonly #waiters = new Map<DeviceObject, Waiter>();

  constructor(parts: HotPlugParts) {
    this.#parts = parts;
  }

  /** Plugs a device in; resolves when a running prepared guest has looked for it. @throws UsageError */
  async add(options: DeviceOptions): Promise<DeviceObject> {
    const { tree, control, environment } = this.#parts;
    const device = tree.addDevice(options);
    if (!(device instanceof PciDevice) || control === undefined) return device;
    const looked = control.rescan().catch(() => undefined);
    if (!this.#parts.isRunning()) return device;
    let cancel = (): void => undefined;
    const patience = new Promise<void>((resolve) => {
      cancel = environment.after(RESCAN_LIMIT, resolve);
    });
    await Promise.race([looked, patience]);
    cancel();
    return device;
  }

  /**
   * Has the guest let go of a device, and then pulls it out; one that the guest need not be asked for is out at once.
   * @throws ERR_VIRTKIT_UNPLUG when it is on its way out already, or cannot be spared
   */
  requestRemoval(device: DeviceObject): void {
    const { control } = this.#parts;
    this.#check(device);
    if (this.#leaving.has(device)) throw unplugError(`Device ${device.label} is already in the process of unplug`);
    if (!(device instanceof PciDevice)) {
      this.remove(device);
      return;
    }
    this.#leaving.add(device);
    if (control === undefined) this.#removeWhenIdle(device);
    else
      control.remove(pciAddress(device.devfn)).then(
        () => this.remove(device),
        () => this.#refused(device),
      );
  }

  /**
   * {@link requestRemoval}, or with `force` {@link remove}, until the device is out and its drive is free.
   * @throws ERR_VIRTKIT_UNPLUG also when the guest does not let go of it
   */
  async waitForRemoval(device: DeviceObject, force: boolean): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      this.#waiters.set(device, { resolve, reject });
      try {
        if (force) this.remove(device);
        else this.requestRemoval(device);
      } catch (error) {
        this.#waiters.delete(device);
        throw error;
      }
    });
  }

  /** Nobody is waited for any more. */
  close(why: VirtkitError): void {
    for (const { reject } of this.#waiters.values()) reject(why);
    this.#waiters.clear();
    this.#leaving.clear();
  }

  /** Pulls a device out, whatever the guest does with it. What its disk has on its way is waited for, until the drive is free. */
  remove(device: DeviceObject): void {
    this.#check(device);
    if (!device.realized) return;
    const { tree } = this.#parts;
    const path = tree.pathOf(device);
    const cores = virtioCores([device, ...tree.devices.filter((other) => isBelow(other, device))]);
    tree.removeDevice(device);
    const busy = cores.filter((core) => core instanceof BlkDevice && core.inFlight > 0);
    if (busy.length === 0) this.#removed(device, path);
    else void Promise.all(busy.map((core) => core.drain())).then(() => this.#removed(device, path));
  }

  #removed(device: DeviceObject, path: string): void {
    this.#leaving.delete(device);
    this.#parts.deleted(device.id, path);
    this.#waiters.get(device)?.resolve();
    this.#waiters.delete(device);
  }

  #check(device: DeviceObject): void {
    if (device.id === AGENT_BUS_ID || device.id?.startsWith(`${AGENT_BUS_ID}.`) === true)
      throw unplugError(`Device ${device.label} carries virtkit's own agent and stays`);
  }

  /** The guest says no, or cannot be asked because it starts anew; then it uses nothing now, and the device can go. */
  #refused(device: DeviceObject): void {
    if (!this.#leaving.has(device) || !device.realized) return;
    if (!isInUse(device)) {
      this.remove(device);
      return;
    }
    this.#leaving.delete(device);
    this.#parts.kept(device.id, this.#parts.tree.pathOf(device));
    this.#waiters.get(device)?.reject(unplugError(`the guest did not let go of ${device.label}`));
    this.#waiters.delete(device);
  }

  #removeWhenIdle(device: PciDevice): void {
    if (!this.#leaving.has(device) || !device.realized) return;
    if (isInUse(device)) this.#parts.environment.after(POLL, () => this.#removeWhenIdle(device));
    else this.remove(device);
  }
}

/** `other` sits on a bus of `device`, or further down. */
function isBelow(other: DeviceObject, device: DeviceObject): boolean {
  const owner = other.parentBus?.owner;
  return owner !== undefined && (owner === device || isBelow(owner, device));
}

/** A driver has the device. */
function isInUse(device: DeviceObject): boolean {
  const pci = device instanceof PciDevice ? device.pciFunction : undefined;
  return pci instanceof VirtioPciDevice && pci.registers.status !== 0;
}

/** As Linux names a function on bus 0: "0000:00:05.0". */
function pciAddress(devfn: number): string {
  return `0000:00:${(devfn >> 3).toString(16).padStart(2, "0")}.${devfn & 7}`;
}
