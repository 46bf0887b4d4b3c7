import assert from "node:assert/strict";
import { readdirSync, statSync, writeFileSync } from "node:fs";
import { test } from "node:test";
import { createMachine } from "../index.ts";
import { fingerprint, randomImage, scratchFolder, sparseImage } from "../testing/guest-files.ts";
import { execInGuest } from "../testing/guest-program.ts";

const limit = { timeout: 120_000 };
const MIB = 2 ** 20;

const text = ({ stdout, stderr }: { stdout: Uint8Array; stderr: Uint8Array }): string =>
  Buffer.concat([stdout, stderr]).toString();

test("a stock guest's fstrim frees blocks of the image with discard=unmap", limit, async (t) => {
  const folder = scratchFolder(t);
  const held = (path: string): number => statSync(path).blocks * 512;
  const images = ["unmap", "ignore"].map((name) => `${folder}/${name}.img`);
  for (const image of images) writeFileSync(image, Buffer.alloc(48 * MIB, 1));
  const { status, stderr } = await execInGuest(
    "set -e; mkdir -p /mnt; for d in vda vdb; do mkfs.ext4 -q -E nodiscard /dev/$d; mount /dev/$d /mnt; fstrim /mnt; umount /mnt; done",
    images.flatMap((image, i) => [
      "-drive",
      `file=${image},format=raw,if=virtio,discard=${i === 0 ? "unmap" : "ignore"}`,
    ]),
  );
  assert.deepEqual([status, stderr], [0, ""]);
  const [unmap, ignore] = images.map(held) as [number, number];
  assert.ok(unmap < 16 * MIB && ignore >= 48 * MIB, `${unmap} and ${ignore} bytes are held`);
});

test("-snapshot: the guest sees its writes, the image keeps its bytes, no file is left", limit, async (t) => {
  const folder = scratchFolder(t);
  const image = randomImage(folder, "disk.img", 8 * MIB);
  const tmp = scratchFolder(t);
  const before = fingerprint(image);
  const command = [
    "tr '\\000' A </dev/zero | dd of=/dev/vda bs=4096 count=256 seek=100 conv=fsync 2>/dev/null",
    "echo 3 >/proc/sys/vm/drop_caches",
    "dd if=/dev/vda bs=4096 skip=100 count=256 2>/dev/null | tr -d A | wc -c",
  ].join("; ");
  const args = ["-snapshot", "-drive", `file=${image},format=raw,if=virtio`];
  const { status, stdout, stderr } = await execInGuest(command, args, { env: { TMPDIR: tmp } });
  assert.deepEqual([status, stdout.toString().trim(), stderr], [0, "0", ""]);
  assert.equal(fingerprint(image), before);
  const left = readdirSync(tmp).filter((name) => name.startsWith("virtkit"));
  assert.deepEqual(left, []);
});

test("the balloon changes MemTotal, and a disk grows while it is mounted", limit, async (t) => {
  const image = sparseImage(scratchFolder(t), "disk.img", 32 * MIB);
  const machine = await createMachine({
    drives: [{ file: image, id: "disk" }],
    devices: [{ driver: "virtio-balloon-pci", "free-page-reporting": true }],
  });
  t.after(() => machine.kill());
  await machine.start();
  const run = async (command: string): Promise<string> => text(await machine.exec(command)).trim();
  const reached = (bytes: number): Promise<void> =>
    new Promise((resolve) => {
      machine.balloon.onActual = (actual) => {
        if (actual === bytes) resolve();
      };
    });
  const total = async (): Promise<number> => Number(await run("awk '/MemTotal/ { print $2 }' /proc/meminfo")) * 1024;
  await run("modprobe virtio_balloon");
  const before = await total();
  const inflated = reached(96 * MIB);
  machine.setMemory(160 * MIB);
  await inflated;
  assert.ok(Math.abs(before - (await total()) - 96 * MIB) < 4 * MIB);
  const stats = await machine.balloon.requestStats();
  assert.ok((stats["stat-total-memory"] ?? 0) < before - 90 * MIB);
  const deflated = reached(0);
  machine.setMemory(256 * MIB);
  await deflated;
  assert.equal(await total(), before);

  await run("mkfs.ext4 -q /dev/vda && mkdir -p /mnt && mount /dev/vda /mnt && echo kept >/mnt/file");
  await assert.rejects(machine.resizeDrive("disk", 16 * MIB), { code: "ERR_VIRTKIT_DRIVE_RESIZE", message: /force/ });
  await machine.resizeDrive("disk", 64 * MIB);
  assert.equal(await run("blockdev --getsize64 /dev/vda; cat /mnt/file"), `${64 * MIB}\nkept`);
  await machine.stop();
  assert.equal(statSync(image).size, 64 * MIB);
});
