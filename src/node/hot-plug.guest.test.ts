import assert from "node:assert/strict";
import { test } from "node:test";
import { MemoryBlockBackend } from "../backend/block/memory.ts";
import { createEnvironment, createLogger } from "../host/node/environment.ts";
import type { MachineDescription } from "../machine/description.ts";
import { randomImage, scratchFolder, sha256OfFile, sparseImage } from "../testing/guest-files.ts";
import { assembleMachine, createMachine } from "./create-machine.ts";

const limit = { timeout: 120_000 };
const MIB = 2 ** 20;
const text = (bytes: Uint8Array): string => new TextDecoder().decode(bytes);

test("devices come and go by calls of the library; what the guest must not notice it does not", limit, async (t) => {
  const image = randomImage(scratchFolder(t), "spare.img", 8 * MIB);
  const before = sha256OfFile(image);
  const memory = new MemoryBlockBackend({ capacity: 4 * MIB });
  const machine = await createMachine({
    drives: [
      { file: sparseImage(scratchFolder(t), "root.img", MIB) },
      { file: image, id: "spare", interface: "none" },
      { backend: memory, id: "memory", interface: "none" },
    ],
  });
  const told: string[] = [];
  machine.on("deviceDeleted", (id) => told.push(`deleted ${id}`));
  await machine.start();
  t.after(() => machine.kill());
  const run = async (command: string): Promise<string> => {
    const { status, stdout, stderr } = await machine.exec(command, { timeout: 60_000 });
    assert.equal(status, 0, `${command}: ${text(stderr)}`);
    return text(stdout).trim();
  };

  await t.test("a file and memory, at once there, with the right bytes", limit, async () => {
    await machine.addDevice({ driver: "virtio-blk-pci", drive: "spare", id: "hot", addr: "0x16", packed: true });
    await machine.addDevice({ driver: "virtio-blk-pci", drive: "memory", id: "ram", vectors: 0 });
    await machine.addDevice("virtio-rng-pci");
    assert.equal(await run("sha256sum </dev/vdb | cut -d ' ' -f 1"), before);
    await run("head -c 1048576 /dev/urandom >/tmp/x; dd if=/tmp/x of=/dev/vdc bs=64k conv=fsync 2>/dev/null");
    assert.deepEqual(Buffer.from(memory.peek(0, MIB)), Buffer.from(await machine.readFile("/tmp/x")));
    assert.match(await run("cat /sys/class/misc/hw_random/rng_available"), /virtio_rng/);
    await machine.removeDevice("ram");
    await machine.removeDevice("hot");
    assert.equal(await run("ls /dev | grep -c 'vd[bc]' || true"), "0");
    assert.deepEqual(told.splice(0), ["deleted ram", "deleted hot"]);
    await assert.rejects(machine.removeDevice("hot"), /there is no device with the id 'hot'/);
  });

  await t.test("paused, a device is added all the same, and found later", limit, async () => {
    await machine.pause();
    await machine.addDevice({ driver: "virtio-blk-pci", drive: "spare", id: "hot" });
    machine.resume();
    await run("while [ ! -b /dev/vdb ]; do sleep 0.05; done");
    assert.equal(await run("sha256sum </dev/vdb | cut -d ' ' -f 1"), before);
  });
});

test("the power button reaches a guest that has no helper of ours", limit, async (t) => {
  const description: MachineDescription = {
    memory: 128 * MIB,
    objects: [],
    chardevs: [],
    serials: [],
    drives: [],
    devices: [],
  };
  const machine = await assembleMachine({
    description,
    source: { from: "guest", append: undefined },
    agent: true,
    control: false,
    noReboot: false,
    bios: undefined,
    cacheDir: undefined,
    useSavedState: true,
    environment: createEnvironment(createLogger("warn")),
  });
  await machine.start();
  t.after(() => machine.kill());
  let heard = (): void => {};
  const ready = new Promise<void>((resolve) => {
    heard = resolve;
  });
  const pressed = machine.exec(
    `modprobe -a button evdev
     for event in /sys/class/input/event*; do
       grep -q 'Power Button' $event/device/name && device=/dev/input/\${event##*/}
     done
     exec <$device; echo ready; head -c 16 | hexdump -e '16/1 "%02x "'; exec poweroff -f`,
    { onStdout: (bytes) => (text(bytes).includes("ready") ? heard() : undefined), timeout: 60_000 },
  );
  pressed.catch(() => undefined);
  await ready;
  machine.powerdown();
  assert.equal(await machine.ended, "poweroff");
});
