import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { prepareGuest } from "../host/node/guest/prepare.ts";
import { bootableDisk } from "../testing/boot-sector.ts";
import { hostTool, scratchFolder, sparseImage } from "../testing/guest-files.ts";
import { startVirtkit, virtkit } from "../testing/guest-program.ts";

const limit = { timeout: 120_000 };
const BOOT = ["run", "-boot", "c", "-serial", "stdio"];

for (const interfaces of ["disable-modern=on", "disable-legacy=on", "vectors=0", "num-queues=2"])
  test(`the firmware boots from our disk with ${interfaces} and reads it through INT 13h`, limit, async (t) => {
    const { image, prints } = bootableDisk("from sector 1: ");
    const file = join(scratchFolder(t), "disk.img");
    writeFileSync(file, image);
    const { status, stdout, stderr } = await virtkit([
      ...BOOT,
      "-drive",
      `file=${file},format=raw,if=none,id=disk`,
      "-device",
      `virtio-blk-pci,drive=disk,${interfaces}`,
    ]);
    assert.equal(stderr, "");
    assert.equal(stdout.toString(), prints);
    assert.equal(status, 0);
  });

test("of two disks the one with the lower bootindex boots, wherever it is plugged in", limit, async (t) => {
  const folder = scratchFolder(t);
  const disks = ["one", "two"].map((name) => {
    const { image, prints } = bootableDisk(`disk ${name} `);
    const file = join(folder, name);
    writeFileSync(file, image);
    return { prints, drive: ["-drive", `file=${file},format=raw,if=none,id=${name}`] };
  });
  const device = (name: string, more: string): string[] => ["-device", `virtio-blk-pci,drive=${name},${more}`];
  const drives = disks.flatMap(({ drive }) => drive);
  const runs: [string[], number][] = [
    [[...device("one", "bootindex=1"), ...device("two", "bootindex=2")], 0],
    [[...device("one", "bootindex=2"), ...device("two", "bootindex=1")], 1],
    [[...device("one", "addr=4"), ...device("two", "addr=0x16,bootindex=0")], 1],
  ];
  for (const [devices, expected] of runs) {
    const { status, stdout, stderr } = await virtkit([...BOOT, ...drives, ...devices]);
    assert.equal(stderr, "");
    assert.equal(stdout.toString(), disks[expected]?.prints, devices.join(" "));
    assert.equal(status, 0);
  }
});

test("without a boot sector, or a disk at all, virtkit says what the firmware said and ends", limit, async (t) => {
  const image = sparseImage(scratchFolder(t), "empty.img", 1 << 20);
  const disk = await virtkit([...BOOT, "-drive", `file=${image},format=raw,if=virtio`]);
  assert.equal(disk.status, 1);
  assert.match(disk.stderr, /nothing to boot from \(Booting from Hard Disk: not a bootable disk.*No bootable device/);
  assert.equal(disk.stdout.toString(), "");
  const none = await virtkit(BOOT);
  assert.equal(none.status, 1);
  assert.match(none.stderr, /nothing to boot from/);
});

/** Unpacking a kernel in the guest takes its time. */
const KERNEL_LIMIT = { timeout: 300_000 };

test("a boot loader on our disk boots a stock kernel from it, which then finds that disk", KERNEL_LIMIT, async (t) => {
  const folder = scratchFolder(t);
  const image = sparseImage(folder, "disk.img", 64 << 20);
  const { kernel, initrd } = await prepareGuest();
  const config = join(folder, "syslinux.cfg");
  const quick = "mitigations=off cryptomgr.notests noisapnp initcall_blacklist=init_kprobe_trace,crypto_kdf108_init";
  writeFileSync(
    config,
    `SERIAL 0\nDEFAULT linux\nLABEL linux\nKERNEL kernel\nINITRD initrd\nAPPEND console=ttyS0 panic=-1 ${quick}\n`,
  );
  hostTool("mformat", "-i", image, "-v", "BOOT", "::");
  hostTool("mcopy", "-i", image, kernel, "::kernel");
  hostTool("mcopy", "-i", image, initrd, "::initrd");
  hostTool("mcopy", "-i", image, config, "::");
  hostTool("syslinux", "--install", image);
  const machine = startVirtkit([...BOOT, "-drive", `file=${image},format=raw,if=virtio`], { input: "open" });
  await machine.sees(/virtkit: ready/);
  machine.write("go shell=ttyS0\n");
  await machine.sees(/root@virtkit/);
  machine.write("blockdev --getsize64 /dev/vda; poweroff -f\n");
  const { status, stderr } = await machine.ended;
  assert.equal(stderr, "");
  assert.match(machine.stdout, /SYSLINUX/);
  assert.match(machine.stdout, /^67108864\r?$/m);
  assert.equal(status, 0);
});
