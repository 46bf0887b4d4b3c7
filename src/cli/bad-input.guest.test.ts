import assert from "node:assert/strict";
import { readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { filesIn, fingerprint, hostTool, scratchFolder, sparseImage } from "../testing/guest-files.ts";
import { PROGRAM, startProgram, virtkit } from "../testing/guest-program.ts";

const limit = { timeout: 60_000 };
const MiB = 2 ** 20;

/** Options, and what the one message must say. All of them are wrong options: the program ends with 2. */
const CASES: readonly (readonly [name: string, args: readonly string[], message: RegExp])[] = [
  [
    "a missing image",
    ["-drive", "file=none.img,format=raw"],
    /^virtkit: -drive file=none\.img,format=raw: .*no such file.*\n/,
  ],
  ["a missing folder", ["-drive", "file=no/where/x,format=raw"], /-drive file=no\/where\/x,format=raw: .*no such file/],
  ["a directory as image", ["-drive", "file=dir,format=raw"], /-drive file=dir,format=raw: .*directory/],
  [
    "a device as image",
    ["-drive", "file=/dev/null,format=raw"],
    /-drive file=\/dev\/null,format=raw: .*neither a file nor/,
  ],
  ["a qcow2 image without format", ["-drive", "file=q.qcow2"], /-drive file=q\.qcow2: .*qcow2 image.*qemu-img convert/],
  ["a qcow2 image", ["-drive", "file=q.qcow2,format=qcow2"], /format=qcow2: .*only raw is/],
  [
    "one image in two drives",
    [..."-drive file=disk.img,format=raw -drive file=disk.img,format=raw".split(" ")],
    /disk\.img is in use/,
  ],
  [
    "two devices on one address",
    [..."-device virtio-rng-pci,addr=0x5 -device virtio-serial-pci,addr=05.0".split(" ")],
    /^virtkit: -device virtio-serial-pci,addr=05\.0: .*slot 5.*virtio-rng-pci/,
  ],
  [
    "a device on the address of a disk",
    [
      ..."-drive file=disk.img,format=raw,if=none,id=d -device virtio-blk-pci,drive=d,addr=4 -device virtio-rng-pci,addr=4".split(
        " ",
      ),
    ],
    /^virtkit: -device virtio-rng-pci,addr=4: .*slot 4.*virtio-blk-pci/,
  ],
  [
    "an id used by two devices",
    [..."-device virtio-rng-pci,id=a -device virtio-serial-pci,id=a".split(" ")],
    /-device virtio-serial-pci,id=a: Duplicate ID 'a'/,
  ],
  [
    "an id used by two drives",
    [..."-drive file=disk.img,format=raw,if=none,id=a -drive file=b.img,format=raw,if=none,id=a".split(" ")],
    /-drive file=b\.img.*: Duplicate ID 'a'/,
  ],
  [
    "an id used by two chardevs",
    [..."-chardev null,id=a -chardev null,id=a".split(" ")],
    /-chardev null,id=a: Duplicate ID 'a'/,
  ],
  [
    "an unknown drive",
    ["-device", "virtio-blk-pci,drive=nothing"],
    /-device virtio-blk-pci,drive=nothing: .*'nothing'/,
  ],
  ["no drive at all", ["-device", "virtio-blk-pci"], /-device virtio-blk-pci: .*drive/],
  [
    "a drive in two devices",
    [
      ..."-drive file=disk.img,format=raw,if=none,id=a -device virtio-blk-pci,drive=a -device virtio-blk-pci,drive=a".split(
        " ",
      ),
    ],
    /'a' is already in use/,
  ],
  [
    "an unknown chardev",
    [..."-device virtio-serial-pci -device virtconsole,chardev=nothing".split(" ")],
    /virtconsole,chardev=nothing: .*'nothing'/,
  ],
  ["a port without its bus", ["-device", "virtserialport,name=x"], /virtserialport,name=x: .*virtio-serial-pci/s],
  ["a kernel that is none", ["-kernel", "text"], /-kernel text: .*not a Linux bzImage/],
  ["an empty kernel", ["-kernel", "empty"], /-kernel empty: .*not a Linux bzImage/],
  ["random bytes as kernel", ["-kernel", "disk.img"], /-kernel disk\.img: .*not a Linux bzImage/],
  ["a missing kernel", ["-kernel", "none"], /-kernel none: .*no such file/],
  ["a directory as kernel", ["-kernel", "dir"], /-kernel dir: .*directory/],
  ["-initrd alone", ["-initrd", "text"], /-initrd text: only allowed with -kernel/],
  ["an unknown device", ["-device", "virtio-block-pci"], /virtio-block-pci: .*Did you mean 'virtio-blk-pci'\?/s],
  ["an unknown option", ["-drvie", "file=disk.img"], /-drvie: .*Did you mean '-drive'\?/s],
  ["an unknown property", ["-device", "virtio-rng-pci,max-byte=1"], /max-byte=1: .*'max-bytes'/s],
  ["a property's bad value", ["-device", "virtio-rng-pci,addr=99"], /addr=99: .*'99'/],
  ["an unknown key of a drive", ["-drive", "file=disk.img,format=raw,redonly=on"], /-drive .*'readonly'/s],
  ["a bad value of a drive's key", ["-drive", "file=disk.img,format=raw,readonly=perhaps"], /-drive .*'perhaps'/],
  ["no size", ["-m", "lots"], /-m lots: /],
  ["too little memory", ["-m", "1"], /-m( 1)?: .*16 to 2047 MiB/],
  ["too much memory", ["-m", "64G"], /-m( 64G)?: .*16 to 2047 MiB/],
  ["an option without its argument", ["-drive"], /-drive: requires an argument/],
  [
    "a chardev that cannot be opened",
    ["-chardev", "file,id=c,path=no/where/log"],
    /-chardev file,id=c,path=no\/where\/log: /,
  ],
  ["a serial line that cannot be opened", ["-serial", "unix:/no/where/socket"], /-serial unix:\/no\/where\/socket: /],
];

test("what is wrong is refused at once, by one message that names it, and nothing is made or changed", {
  timeout: 240_000,
}, async (t) => {
  const folder = scratchFolder(t);
  sparseImage(folder, "disk.img", MiB);
  sparseImage(folder, "b.img", MiB);
  writeFileSync(join(folder, "text"), "hello\n");
  writeFileSync(join(folder, "empty"), "");
  writeFileSync(
    join(folder, "q.qcow2"),
    Buffer.concat([Buffer.from("QFI\xfb\0\0\0\x03", "latin1"), Buffer.alloc(1016)]),
  );
  hostTool("mkdir", join(folder, "dir"));
  const state = (): string[] => filesIn(folder).map((name) => `${name} ${fingerprint(join(folder, name))}`);
  const before = state();
  for (const [name, args, message] of CASES) {
    await t.test(name, limit, async () => {
      const { status, stdout, stderr } = await virtkit(["run", "--exec", "echo booted", ...args], { cwd: folder });
      assert.match(stderr, message);
      assert.equal(stderr.match(/^virtkit: /gm)?.length, 1, "one message");
      assert.doesNotMatch(stderr, /\n {4}at |internal error/);
      assert(stderr.split("\n").length <= 4, "of a few lines");
      assert.equal(stdout.length, 0);
      assert.equal(status, 2);
      assert.deepEqual(state(), before);
    });
  }
});

test("bad input is found before a guest is prepared or a cache is made", limit, async (t) => {
  const folder = scratchFolder(t);
  const cases = [
    ["-drive", "file=none.img,format=raw"],
    ["-kernel", "none"],
    ["-kernel", "/dev/null", "-initrd", "none"],
    ["-drive", "file=/,format=raw"],
    [..."-device virtio-rng-pci,id=a -device virtio-rng-pci,id=a".split(" ")],
  ];
  for (const args of cases) {
    const { status, stderr } = await virtkit(["run", "--cache", join(folder, "cache"), ...args], { cwd: folder });
    assert.equal(status, 2, stderr);
    assert.deepEqual(readdirSync(folder), []);
  }
});

test("an image that may not be written is refused, unless it is read-only", limit, async (t) => {
  const folder = scratchFolder(t);
  const image = sparseImage(folder, "disk.img", MiB);
  hostTool("chmod", "444", image);
  hostTool("chmod", "755", folder);
  // Root may write everything: it takes a mount that is read-only to keep it from that.
  const script =
    '[ $(id -u) = 0 ] && { mount --bind . . && mount -o remount,bind,ro . && cd "$PWD" || exit 99; }; exec "$@"';
  const namespace = process.getuid?.() === 0 ? ["unshare", "-m", "--propagation", "private"] : [];
  const words = [...namespace, "sh", "-c", script, "sh", ...PROGRAM, "run", "--exec", "blockdev --getsize64 /dev/vda"];
  const refused = await startProgram([...words, "-drive", `file=${image},format=raw,if=virtio`], { cwd: folder }).ended;
  assert.match(refused.stderr, /-drive file=.*disk\.img,format=raw,if=virtio: .*readonly=on/);
  assert.equal(refused.status, 2);
  const taken = await startProgram([...words, "-drive", `file=${image},format=raw,if=virtio,readonly=on`], {
    cwd: folder,
  }).ended;
  assert.equal(taken.status, 0, taken.stderr);
  assert.equal(taken.stdout.toString(), `${MiB}\n`);
});

test("when the host's disk is full the guest gets I/O errors, the host one message, and both go on", {
  timeout: 120_000,
}, async (t) => {
  const folder = scratchFolder(t);
  // Everything within one mount namespace, so that nothing is left of it whatever happens. Without root it takes a user namespace.
  const namespace = ["unshare", "-m", "--propagation", "private", ...(process.getuid?.() === 0 ? [] : ["-r"])];
  const script = `mount -t tmpfs -o size=8m tmpfs "$1" && truncate -s 64M "$1/disk.img" || exit 99
    shift; "$@"; status=$?
    stat -c '%s %b' disk/disk.img; head -c 1048576 disk/disk.img | sha256sum; exit $status`;
  const command = `dd if=/dev/zero of=/dev/vda bs=1M count=32 conv=fsync 2>/tmp/said && exit 1
    cat /tmp/said
    head -c 1048576 /dev/urandom >/tmp/block
    dd if=/tmp/block of=/dev/vda bs=1M count=1 conv=fsync 2>/dev/null || exit 2
    sha256sum </tmp/block; dmesg | grep -c 'I/O error'; echo going on`;
  hostTool("mkdir", join(folder, "disk"));
  const words = [...namespace, "sh", "-c", script, "sh", join(folder, "disk"), ...PROGRAM, "run", "--exec", command];
  const run = startProgram([...words, "-drive", "file=disk/disk.img,format=raw,if=virtio"], { cwd: folder });
  const { status, stdout, stderr } = await run.ended;
  assert.equal(status, 0, stderr);
  const text = stdout.toString();
  assert.match(text, /Input\/output error/);
  assert.match(text, /^going on$/m);
  const [before = "", after] = text.match(/^[0-9a-f]{64}/gm) ?? [];
  assert.equal(before, after, "what was written where there was room is there");
  assert.match(text, /^67108864 /m);
  const messages = stderr.match(/disk\.img: writing failed: ENOSPC/g) ?? [];
  assert(messages.length >= 1 && messages.length <= 3, `a few messages, not ${messages.length}:\n${stderr}`);
});
