import assert from "node:assert/strict";
import { readFileSync, statSync } from "node:fs";
import { test } from "node:test";
import {
  checkExt4,
  fingerprint,
  hostTool,
  randomImage,
  scratchFolder,
  sha256OfFile,
  sparseImage,
} from "../testing/guest-files.ts";
import { execInGuest } from "../testing/guest-program.ts";

const limit = { timeout: 120_000 };
const MiB = 2 ** 20;
const drive = (file: string, more = ""): string[] => ["-drive", `file=${file},format=raw,if=virtio${more}`];

test("the guest reads its disks as the host has them: every byte, every size, in the order given", limit, async (t) => {
  const folder = scratchFolder(t);
  const sizes = [8 * MiB, 5 * MiB + 512, 512, 3 * 512, 1_234_432];
  const images = sizes.map((size, index) => randomImage(folder, `disk ${index}.img`, size));
  const names = ["vda", "vdb", "vdc", "vdd", "vde"].map((name) => `/dev/${name}`).join(" ");
  const { status, stdout, stderr } = await execInGuest(
    `sha256sum ${names} | cut -d ' ' -f 1; for d in ${names}; do blockdev --getsize64 $d; done`,
    images.flatMap((image) => drive(image)),
  );
  assert.equal(stderr, "");
  assert.equal(status, 0);
  const lines = stdout.toString().trim().split("\n");
  assert.deepEqual(lines.slice(0, images.length), images.map(sha256OfFile));
  assert.deepEqual(lines.slice(images.length).map(Number), sizes);
});

test(
  "an image that ends within a sector is read to its last byte, zeros behind it, and is not changed",
  limit,
  async (t) => {
    const image = randomImage(scratchFolder(t), "odd.img", MiB + 100);
    const before = fingerprint(image);
    const { status, stdout, stderr } = await execInGuest(
      `blockdev --getsize64 /dev/vda; head -c ${MiB + 100} /dev/vda | sha256sum; tail -c 412 /dev/vda | tr -d '\\000' | wc -c`,
      drive(image),
    );
    assert.equal(status, 0);
    assert.match(stderr, /^virtkit: warn: .*odd\.img: 1048676 bytes are no whole sectors/);
    assert.deepEqual(stdout.toString().split(/\s+/).slice(0, 2), [`${MiB + 512}`, sha256OfFile(image)]);
    assert.equal(stdout.toString().trim().split("\n").at(-1), "0");
    assert.equal(fingerprint(image), before);
  },
);

test("what the guest writes at random places is on the host's disk at those places", limit, async (t) => {
  const folder = scratchFolder(t);
  const image = randomImage(folder, "disk.img", 4 * MiB);
  const expected = readFileSync(image);
  const data = readFileSync(randomImage(folder, "data", 3 * 4096));
  for (const at of [0, 1_000 * 512, 8191 * 512]) {
    const length = Math.min(data.length, expected.length - at);
    data.copy(expected, at, 0, length);
  }
  const { status, stderr } = await execInGuest(
    `cat >/tmp/data
     for at in 0 1000; do dd if=/tmp/data of=/dev/vda bs=512 seek=$at 2>/dev/null || exit 1; done
     dd if=/tmp/data of=/dev/vda bs=512 seek=8191 count=1 2>/dev/null || exit 2
     sync`,
    drive(image),
    { input: data },
  );
  assert.equal(stderr, "");
  assert.equal(status, 0);
  assert(readFileSync(image).equals(expected));
});

test("an ext4 that the guest made and filled is clean on the host, though nobody unmounted it", limit, async (t) => {
  const image = sparseImage(scratchFolder(t), "disk.img", 64 * MiB);
  const made = await execInGuest(
    `mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt && mkdir -p /mnt/a/b &&
     head -c 3000000 /dev/urandom >/mnt/a/b/data && ln -s b/data /mnt/a/link && rm -rf /mnt/lost+found &&
     sha256sum </mnt/a/link`,
    drive(image),
  );
  assert.equal(made.stderr, "");
  assert.equal(made.status, 0);
  checkExt4(image);
  const found = await execInGuest(
    "mount /dev/vda /mnt && sha256sum </mnt/a/link && echo more >/mnt/a/more",
    drive(image),
  );
  assert.equal(found.status, 0, found.stderr);
  assert.deepEqual(found.stdout, made.stdout);
  checkExt4(image);
  assert.equal(hostTool("debugfs", "-R", "cat /a/more", image), "more\n");
});

test(
  "an ext4 that the host made serves the guest, and is clean afterwards, though the command was killed",
  limit,
  async (t) => {
    const folder = scratchFolder(t);
    const image = sparseImage(folder, "disk.img", 48 * MiB);
    hostTool("mke2fs", "-q", "-F", "-t", "ext4", image);
    const { status, stderr } = await execInGuest(
      "mount /dev/vda /mnt && cd /mnt && echo one >one && while :; do head -c 100000 /dev/zero >>many; done",
      ["--exec-timeout", "1.5", ...drive(image)],
    );
    assert.equal(status, 124);
    assert.match(stderr, /1500 ms/);
    checkExt4(image);
    assert.equal(hostTool("debugfs", "-R", "cat /one", image), "one\n");
  },
);

test("a read-only disk refuses writes, and its image stays as it is", limit, async (t) => {
  const folder = scratchFolder(t);
  const image = sparseImage(folder, "disk.img", 16 * MiB);
  hostTool("mke2fs", "-q", "-F", "-t", "ext4", image);
  const before = fingerprint(image);
  const { status, stdout, stderr } = await execInGuest(
    `cat /sys/block/vda/ro
     echo x >/dev/vda && exit 1
     blockdev --setrw /dev/vda; dd if=/dev/zero of=/dev/vda bs=4096 count=1 conv=fsync && exit 2
     mount -o rw /dev/vda /mnt && touch /mnt/x && exit 3
     umount /mnt 2>/dev/null; mount -o ro /dev/vda /mnt && ls -d /mnt/lost+found && umount /mnt`,
    drive(image, ",readonly=on"),
  );
  assert.equal(status, 0, stderr);
  assert.equal(stdout.toString(), "1\n/mnt/lost+found\n");
  assert.equal(fingerprint(image), before);
});

test("a sparse file of 5 GiB is read and written at its end and stays sparse", limit, async (t) => {
  const size = 5 * 2 ** 30;
  const image = sparseImage(scratchFolder(t), "disk.img", size);
  const last = size / 4096 - 1;
  const { status, stdout, stderr } = await execInGuest(
    `blockdev --getsize64 /dev/vda
     head -c 4096 /dev/urandom >/tmp/block
     dd if=/tmp/block of=/dev/vda bs=4096 seek=${last} conv=fsync 2>/dev/null || exit 1
     echo 3 >/proc/sys/vm/drop_caches
     dd if=/dev/vda bs=4096 skip=${last} 2>/dev/null | cmp - /tmp/block || exit 2
     dd if=/dev/vda bs=4096 skip=$((${last} / 2)) count=1 2>/dev/null | tr -d '\\000' | wc -c
     dd if=/tmp/block of=/dev/vda bs=4096 seek=${last + 1} conv=fsync 2>/dev/null && exit 3
     cat /tmp/block | sha256sum`,
    drive(image),
  );
  assert.equal(status, 0, stderr);
  const [bytes, half, hash = ""] = stdout.toString().trim().split("\n");
  assert.deepEqual([bytes, half], [`${size}`, "0"]);
  assert.equal(statSync(image).size, size);
  assert(statSync(image).blocks * 512 < MiB, "the image stays sparse");
  assert.equal(hostTool("sh", "-c", `tail -c 4096 "$1" | sha256sum`, "sh", image), `${hash}\n`);
});

test("QEMU's line for a disk works as it stands", limit, async (t) => {
  const folder = scratchFolder(t);
  const image = randomImage(folder, "disk.img", MiB);
  const { status, stdout, stderr } = await execInGuest(
    "basename $(readlink -f /sys/block/vda/device/..); cat /sys/block/vda/device/../vendor; sha256sum </dev/vda",
    [
      "-drive",
      "file=disk.img,format=raw,if=none,id=drive-virtio-disk0",
      "-device",
      "virtio-blk-pci,scsi=off,bus=pci.0,addr=0x4,drive=drive-virtio-disk0,id=virtio-disk0,bootindex=1",
    ],
    { cwd: folder },
  );
  assert.equal(stderr, "");
  assert.equal(status, 0);
  assert.equal(stdout.toString(), `0000:00:04.0\n0x1af4\n${sha256OfFile(image)}  -\n`);
});
