import assert from "node:assert/strict";
import { test } from "node:test";
import { VirtkitError } from "../common/error.ts";
import { BlkDevice } from "../device/blk.ts";
import { VIRTIO_CONFIG_S_ACKNOWLEDGE } from "../spec/status.ts";
import { FakeMachine } from "../testing/control-machine.ts";
import { notedParts } from "../testing/machine-parts.ts";
import { VirtioPciDevice } from "../transport/pci/virtio-pci-device.ts";
import type { DeviceOptions } from "./description.ts";
import { GuestControl } from "./guest-agent/index.ts";
import { HotPlug } from "./hot-plug.ts";
import type { DeviceTree } from "./machine-builder.ts";
import type { DeviceObject } from "./object-model/device.ts";
import { PciDevice } from "./pci/pci-bus.ts";

const limit = { timeout: 20_000 };
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** A tree with a helper whose guest is played by the test. */
async function setUp(hasHelper = true) {
  const { devices: tree } = await new FakeMachine().build();
  assert(tree !== undefined);
  const told: string[] = [];
  const control = hasHelper ? new GuestControl() : undefined;
  const asked: string[] = [];
  let isOpen = false;
  control?.port.attach({
    receive: (bytes) => {
      asked.push(new TextDecoder().decode(bytes));
      return bytes.length;
    },
    setOpen: (open) => {
      isOpen = open;
    },
    writable: () => undefined,
  });
  control?.port.guestOpen(true);
  const plug = new HotPlug({
    tree,
    control,
    environment: notedParts().environment,
    isRunning: () => true,
    deleted: (id, path) => told.push(`deleted ${id} ${path}`),
    kept: (id, path) => told.push(`kept ${id} ${path}`),
  });
  const answer = async (text: string): Promise<void> => {
    control?.port.write(new TextEncoder().encode(text));
    await turn();
  };
  return { tree, plug, told, asked, answer, control, isOpen: () => isOpen };
}

const blk = (more: Record<string, string> = {}): DeviceOptions => ({
  option: "test",
  driver: "virtio-blk-pci",
  id: "hot",
  properties: Object.entries({ drive: "d1", addr: "0x15", ...more }).map(([name, value]) => ({ name, value })),
});

function pciOf(device: DeviceObject): VirtioPciDevice {
  assert(device instanceof PciDevice && device.pciFunction instanceof VirtioPciDevice);
  return device.pciFunction;
}

const driveUser = (tree: DeviceTree): string | undefined => tree.backends.drives.get("d1")?.user;

test("a device is there when the guest has looked for it", limit, async () => {
  const { plug, asked, answer, isOpen } = await setUp();
  assert.equal(isOpen(), true);
  let added = false;
  const adding = plug.add(blk()).then((device) => {
    added = true;
    return device;
  });
  await turn();
  assert.deepEqual(asked, ["1 rescan\n"]);
  assert.equal(added, false);
  await answer("control 1\nnoise\ndone 7\ndone 1\n");
  assert.equal((await adding).realized, true);
});

test("the guest is asked by address, and the device goes when its driver has let go", limit, async () => {
  const { plug, asked, answer, told, tree } = await setUp();
  const adding = plug.add(blk());
  await answer("done 1\n");
  const device = await adding;
  plug.requestRemoval(device);
  assert.deepEqual(asked, ["1 rescan\n", "2 remove 0000:00:15.0\n"]);
  assert.throws(() => plug.requestRemoval(device), /already in the process of unplug/);
  assert.equal(device.realized, true);
  await answer("done 2\n");
  assert.deepEqual(told, ["deleted hot /machine/peripheral/hot"]);
  assert.equal(driveUser(tree), undefined);
});

test("a guest that does not let go keeps the device, and may be asked again", limit, async () => {
  const { plug, answer, told } = await setUp();
  const adding = plug.add(blk());
  await answer("failed 1 no bus\n");
  const device = await adding;
  pciOf(device).registers.writeStatus(VIRTIO_CONFIG_S_ACKNOWLEDGE);
  const removing = plug.waitForRemoval(device, false);
  const refused = assert.rejects(
    removing,
    (error: unknown) => error instanceof VirtkitError && error.code === "ERR_VIRTKIT_UNPLUG",
  );
  await answer("failed 2 busy\n");
  await refused;
  assert.deepEqual(told, ["kept hot /machine/peripheral/hot"]);
  const again = plug.waitForRemoval(device, false);
  await answer("done 3\n");
  await again;
  assert.equal(told.length, 2);
});

test("a guest that starts anew meanwhile uses nothing: the device goes", limit, async () => {
  const { plug, answer, told, control } = await setUp();
  const adding = plug.add(blk());
  await answer("done 1\n");
  plug.requestRemoval(await adding);
  control?.port.guestOpen(false);
  await turn();
  assert.deepEqual(told, ["deleted hot /machine/peripheral/hot"]);
});

test("without a helper the device goes as soon as no driver has it", limit, async () => {
  const { plug, told } = await setUp(false);
  const device = await plug.add(blk());
  const { registers } = pciOf(device);
  registers.writeStatus(VIRTIO_CONFIG_S_ACKNOWLEDGE);
  const removed = plug.waitForRemoval(device, false);
  await turn();
  assert.deepEqual(told, []);
  registers.writeStatus(0);
  // The machine's own timers do not keep a program alive.
  const alive = setInterval(() => undefined, 1000);
  await removed;
  clearInterval(alive);
  assert.deepEqual(told, ["deleted hot /machine/peripheral/hot"]);
});

test("pulled out with I/O on its way: the drive is free once that is done, and not before", limit, async () => {
  const { plug, told, tree } = await setUp(false);
  const device = await plug.add(blk());
  const core = pciOf(device).device;
  assert(core instanceof BlkDevice);
  let inFlight = 1;
  Object.defineProperty(core, "inFlight", { get: () => inFlight });
  let drained = (): void => undefined;
  core.drain = () =>
    new Promise<void>((resolve) => {
      const before = drained;
      drained = () => {
        before();
        resolve();
      };
    });
  const removed = plug.waitForRemoval(device, true);
  await turn();
  assert.equal(device.realized, false);
  assert.deepEqual(told, []);
  assert.match(driveUser(tree) ?? "", /whose last requests are on their way/);
  await assert.rejects(plug.add(blk()), /already in use/);
  inFlight = 0;
  drained();
  await removed;
  assert.deepEqual(told, ["deleted hot /machine/peripheral/hot"]);
  assert.equal(driveUser(tree), undefined);
});

test("the end of the machine ends what waits", limit, async () => {
  const { plug, answer } = await setUp();
  const adding = plug.add(blk());
  await answer("done 1\n");
  const removing = plug.waitForRemoval(await adding, false);
  plug.close(new VirtkitError("ERR_VIRTKIT_STOPPED", "it ended"));
  await assert.rejects(removing, /it ended/);
});
