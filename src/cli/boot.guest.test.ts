import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { type CpioEntry, writeCpio } from "../host/node/guest/cpio.ts";
import { prepareGuest } from "../host/node/guest/prepare.ts";
import { cacheWithoutStates, filesIn, randomImage, scratchFolder, sha256OfFile } from "../testing/guest-files.ts";
import { execInGuest, startVirtkit, type virtkit } from "../testing/guest-program.ts";

/** What tells one boot of the kernel from another: the microseconds at which it said things. */
const BOOT_ID = "dmesg | head -n 100 | sha256sum; date +%s";

test("the first start boots the kernel and keeps a state, later ones restore it, --no-saved-state boots", {
  timeout: 400_000,
}, async (t) => {
  const folder = scratchFolder(t);
  const cache = await cacheWithoutStates(folder);
  const before = filesIn(cache);
  const run = (...args: string[]): ReturnType<typeof virtkit> => execInGuest(BOOT_ID, ["--cache", cache, ...args]);
  const boots: (string | undefined)[] = [];
  for (const args of [[], [], ["--no-saved-state"]]) {
    const { status, stdout, stderr } = await run(...args);
    const now = Date.now() / 1000;
    assert.equal(status, 0, stderr);
    const [id, seconds] = stdout.toString().split("\n");
    assert(Math.abs(Number(seconds) - now) < 30, "the clock is right");
    boots.push(id);
    const added = filesIn(cache).filter((name) => !before.includes(name));
    assert.equal(added.length, 1);
    assert.match(added[0] ?? "", /^states\/.*\.state$/);
  }
  const [first, second, third] = boots;
  assert.equal(second, first, "a restored kernel is the one that was saved");
  assert.notEqual(third, first);
  // A state that was damaged is no reason to fail.
  const [state = ""] = filesIn(cache).filter((name) => name.endsWith(".state"));
  writeFileSync(join(cache, state), readFileSync(join(cache, state)).subarray(0, 5_000_000));
  const { status, stdout, stderr } = await run();
  assert.equal(status, 0, stderr);
  assert.notEqual(stdout.toString().split("\n")[0], first);
});

/** The guest's busybox and what the kernel needs to see our disk, and an init of our own. */
const ownInitramfs = (prepared: Uint8Array, init: string): Uint8Array => {
  const entries: CpioEntry[] = ["bin", "dev", "proc", "sys", "lib"].map((path) => ({ type: "directory", path }));
  const modules: string[] = [];
  for (const { name, data } of readCpio(prepared)) {
    if (name === "bin/busybox") entries.push({ type: "file", path: name, data, mode: 0o755 });
    const module = /\/(virtio[^/]*|virtio_blk)\.ko$/.exec(name)?.[1];
    if (module === undefined) continue;
    modules.push(`${module}.ko`);
    entries.push({ type: "file", path: `lib/${module}.ko`, data });
  }
  assert(modules.includes("virtio_blk.ko"));
  const load = modules.map((name) => `insmod /lib/${name} 2>/dev/null`).join("; ");
  const text = `#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
for pass in 1 2 3 4; do ${load}; done
exec >/dev/ttyS0 2>&1 </dev/ttyS0
${init}
poweroff -f
`;
  entries.push({ type: "file", path: "init", data: Buffer.from(text), mode: 0o755 });
  return writeCpio(entries);
};

/** Regular files of a "newc" archive. */
function* readCpio(archive: Uint8Array): Generator<{ name: string; data: Uint8Array }> {
  const bytes = Buffer.from(archive.buffer, archive.byteOffset, archive.byteLength);
  for (let at = 0; bytes.toString("latin1", at, at + 6) === "070701"; ) {
    const field = (index: number): number =>
      Number.parseInt(bytes.toString("latin1", at + 6 + index * 8, at + 14 + index * 8), 16);
    const [mode, size, nameSize] = [field(1), field(6), field(11)];
    const name = bytes.toString("utf8", at + 110, at + 110 + nameSize - 1);
    const start = at + ((110 + nameSize + 3) & ~3);
    if ((mode & 0o170000) === 0o100000) yield { name, data: bytes.subarray(start, start + size) };
    at = start + ((size + 3) & ~3);
  }
}

test("a kernel and initrd of the user's own boot, with their command line, serial lines and our disk", {
  timeout: 240_000,
}, async (t) => {
  const folder = scratchFolder(t);
  const guest = await prepareGuest();
  const initrd = join(folder, "initrd");
  const init = `echo "MARK <$(cat /proc/cmdline)>"; sha256sum </dev/vda; grep -c . /proc/interrupts >/dev/ttyS1; read -r line; echo "heard $line"`;
  writeFileSync(initrd, ownInitramfs(readFileSync(guest.initrd), init));
  const image = randomImage(folder, "disk.img", 2 ** 20);
  const run = startVirtkit(
    [
      "run",
      ...[
        "-kernel",
        guest.kernel,
        "-initrd",
        initrd,
        "-append",
        "console=ttyS0 quiet mitigations=off our.own='a word'",
      ],
      ...["-m", "128M", "-serial", "stdio", "-serial", "file:second.log"],
      ...["-drive", "file=disk.img,format=raw,if=virtio"],
    ],
    { cwd: folder, input: "open" },
  );
  await run.sees(/MARK/);
  run.write("me\n");
  const { status, stdout, stderr } = await run.ended;
  const said = stdout.toString();
  assert.equal(stderr, "");
  assert.equal(status, 0);
  assert.match(said, /MARK <console=ttyS0 quiet mitigations=off our\.own='a word'>/);
  assert(said.includes(sha256OfFile(image)));
  assert.match(said, /heard me/);
  assert.match(readFileSync(join(folder, "second.log"), "utf8"), /^\d+\r?\n$/);
});
