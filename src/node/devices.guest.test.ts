import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { randomImage, scratchFolder, sha256, sha256OfFile } from "../testing/guest-files.ts";
import { execInGuest, startVirtkit, virtkit } from "../testing/guest-program.ts";
import { createMachine } from "./create-machine.ts";

const limit = { timeout: 90_000 };
const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString();

test("devices of every kind at once are brought up by the guest's own drivers", limit, async (t) => {
  const folder = scratchFolder(t);
  const sizes = [1, 2, 3, 4].map((n) => n * 2 ** 20);
  const images = sizes.map((size, index) => randomImage(folder, `${index}.img`, size));
  const [plain = "", packed = "", inOrder = "", intx = ""] = images;
  const machine = await createMachine({
    drives: [
      { file: plain, interface: "none", id: "plain" },
      { file: packed, interface: "none", id: "packed" },
      { file: inOrder, interface: "none", id: "in-order" },
      { file: intx, interface: "none", id: "intx" },
    ],
    devices: [
      {
        driver: "virtio-blk-pci",
        drive: "plain",
        addr: "0x10",
        serial: "a serial number 1234",
        "num-queues": 1,
        "queue-size": 1024,
      },
      { driver: "virtio-blk-pci", drive: "packed", addr: "0x11", packed: true, "queue-size": 64 },
      {
        driver: "virtio-blk-pci-non-transitional",
        drive: "in-order",
        addr: "0x13",
        in_order: true,
        event_idx: false,
        indirect_desc: false,
      },
      { driver: "virtio-blk-pci", drive: "intx", addr: "0x1a", vectors: 0, logical_block_size: 4096 },
      { driver: "virtio-rng-pci", addr: "0x14", packed: true },
      { driver: "virtio-rng-pci", addr: "0x15", vectors: 0 },
      { driver: "virtio-serial-pci", addr: "0x16", vectors: 0, packed: true },
    ],
  });
  await machine.start();
  t.after(() => machine.stop());
  const output = async (command: string): Promise<string> => text((await machine.exec(command)).stdout);

  await t.test("disks in the order of their slots, each with its own bytes", limit, async () => {
    const { status, stdout } = await machine.exec("sha256sum /dev/vda /dev/vdb /dev/vdc /dev/vdd | cut -d ' ' -f 1");
    assert.equal(status, 0);
    assert.deepEqual(text(stdout).trim().split("\n"), images.map(sha256OfFile));
  });

  await t.test("properties reach the guest", limit, async () => {
    assert.equal(await output("cat /sys/block/vda/serial"), "a serial number 1234");
    assert.equal(await output("cat /sys/block/vdd/queue/logical_block_size"), "4096\n");
    assert.equal(await output("basename $(readlink -f /sys/block/vdb/device/..)"), "0000:00:11.0\n");
    // VIRTIO_F_RING_PACKED is bit 34, VIRTIO_F_IN_ORDER 35, VIRTIO_F_EVENT_IDX 29.
    const features = (await output("cut -c 30,35 /sys/block/vd[ab]/device/features")).trim().split("\n");
    assert.deepEqual(features, ["10", "11"]);
    assert.equal(await output("cut -c 29,30 /sys/block/vdc/device/features"), "00\n");
  });

  await t.test("a device without MSI-X vectors interrupts by its line, the others by messages", limit, async () => {
    const interrupts = await output("grep virtio /proc/interrupts");
    assert.match(interrupts, /IO-APIC\s+\d+-fasteoi\s.*virtio\d/);
    assert.match(interrupts, /PCI-MSI.*virtio\d-req/);
  });

  await t.test("both entropy sources serve, whichever is current", limit, async () => {
    const names = (await output("cat /sys/class/misc/hw_random/rng_available")).match(/virtio_rng\.\d+/g) ?? [];
    assert.equal(names.length, 2);
    for (const name of names) {
      const said = await output(
        `echo ${name} >/sys/class/misc/hw_random/rng_current; cat /sys/class/misc/hw_random/rng_current`,
      );
      assert.equal(said, `${name}\n`);
      const { stdout } = await machine.exec("head -c 4096 /dev/hwrng");
      assert.equal(stdout.length, 4096);
      assert(new Set(stdout).size > 200, "bytes of all kinds");
    }
  });

  await t.test("writes go through every kind of ring", limit, async () => {
    const { status, stderr } = await machine.exec(`
      for d in vda vdb vdc vdd; do
        head -c 1048576 /dev/urandom >/tmp/data
        dd if=/tmp/data of=/dev/$d bs=64k conv=fsync 2>/dev/null || exit 1
        echo 3 >/proc/sys/vm/drop_caches
        head -c 1048576 /dev/$d | cmp - /tmp/data || exit 2
      done`);
    assert.equal(status, 0, text(stderr));
  });

  await t.test("a driver can leave its device and take it again", limit, async () => {
    const { status, stderr, stdout } = await machine.exec(`
      d=$(basename $(readlink -f /sys/block/vdb/device)); before=$(sha256sum </dev/vdb)
      for i in 1 2 3; do
        echo $d >/sys/bus/virtio/drivers/virtio_blk/unbind || exit 1
        [ -e /sys/block/vdb ] && exit 2
        echo $d >/sys/bus/virtio/drivers/virtio_blk/bind || exit 3
        [ "$before" = "$(sha256sum </dev/vdb)" ] || exit 4
      done
      echo 1 >/sys/bus/pci/devices/0000:00:11.0/remove; echo 1 >/sys/bus/pci/rescan
      [ "$before" = "$(sha256sum </dev/vdb)" ] || exit 5; echo fine`);
    assert.equal(status, 0, text(stderr));
    assert.equal(text(stdout), "fine\n");
  });
});

test("a port carries bytes both ways to a socket of the host's", limit, async (t) => {
  const path = join(scratchFolder(t), "socket");
  const server = createServer();
  t.after(() => server.close());
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const connected = new Promise<Socket>((resolve) => server.once("connection", resolve));
  const run = startVirtkit([
    "run",
    "--exec",
    `port=$(grep -l org.test.0 /sys/class/virtio-ports/*/name); exec 4<>/dev/$(basename $(dirname $port))
     echo hello >&4; read -r line <&4; echo "<$line>"; head -c 300000 <&4 | sha256sum`,
    "-chardev",
    `socket,id=s,path=${path}`,
    ..."-device virtio-serial-pci,id=ports -device virtserialport,bus=ports.0,chardev=s,name=org.test.0".split(" "),
  ]);
  const socket = await connected;
  t.after(() => socket.destroy());
  const data = Buffer.from(Array.from({ length: 300_000 }, (_, index) => (index * 31 + (index >> 8)) & 0xff));
  socket.once("data", (bytes) => {
    assert.equal(bytes.toString(), "hello\n");
    socket.write("from the host\n");
    socket.write(data);
  });
  const { status, stdout, stderr } = await run.ended;
  assert.equal(stderr, "");
  assert.equal(status, 0);
  assert.equal(stdout.toString(), `<from the host>\n${sha256(data)}  -\n`);
});

test("a console's output goes to the file of its chardev", limit, async (t) => {
  const folder = scratchFolder(t);
  const { status, stderr } = await execInGuest(
    "echo to the console >/dev/hvc0; stty -F /dev/hvc0 >/dev/null",
    [
      "-chardev",
      "file,id=log,path=console.log",
      ..."-device virtio-serial-pci -device virtconsole,chardev=log".split(" "),
    ],
    { cwd: folder },
  );
  assert.equal(status, 0, stderr);
  assert.match(readFileSync(join(folder, "console.log"), "utf8"), /to the console\r?\n$/);
});

test("the help lists every device and the properties of each", limit, async () => {
  const help = await virtkit(["run", "-device", "help"]);
  assert.equal(help.status, 0);
  assert.equal(help.stderr, "");
  const names = [...help.stdout.toString().matchAll(/^name "([^"]+)"/gm)].map(([, name = ""]) => name);
  assert(names.includes("virtio-blk-pci") && names.includes("virtio-rng-pci") && names.includes("virtio-serial-pci"));
  for (const name of names) {
    const { status, stdout } = await virtkit(["run", "-device", `${name},help`]);
    assert.equal(status, 0);
    assert.match(stdout.toString(), new RegExp(`^${name} options:\n( {2}[\\w.-]+=<.+\n)+$|no options`));
  }
});
