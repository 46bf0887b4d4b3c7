import assert from "node:assert/strict";
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { type TestContext, test } from "node:test";
import { checkExt4, randomImage, scratchFolder, sha256, sha256OfFile, sparseImage } from "../testing/guest-files.ts";
import { type RunningProgram, startVirtkit } from "../testing/guest-program.ts";
import { QmpClient } from "../testing/qmp-client.ts";

const limit = { timeout: 180_000 };
const MIB = 2 ** 20;

interface Run {
  readonly run: RunningProgram;
  readonly qmp: QmpClient;
  readonly socket: string;
}

async function start(t: TestContext, args: readonly string[]): Promise<Run> {
  const socket = join(scratchFolder(t), "qmp.sock");
  const run = startVirtkit(["run", "--qmp", `unix:${socket},server`, ...args], { input: "open" });
  const qmp = await QmpClient.open(socket);
  t.after(() => qmp.close());
  return { run, qmp, socket };
}

const exec = (script: string): string[] => ["--exec", script];
const drive = (file: string, more = "if=virtio"): string[] => ["-drive", `file=${file},format=raw,${more}`];

/** The guest has written a line; returns what stands behind `word` in it. */
async function said(run: RunningProgram, word: string): Promise<string> {
  const pattern = new RegExp(`^${word} (.*)\\n`, "m");
  await run.sees(pattern);
  return pattern.exec(run.stdout)?.[1] ?? "";
}

const LOAD = `
load() {
  n=0
  while [ ! -e /tmp/enough ]; do
    head -c 1048576 /dev/urandom >/tmp/chunk
    dd if=/tmp/chunk of=/dev/vda bs=64k seek=$((n % 16 * 16)) conv=fsync 2>/dev/null || echo bad write
    dd if=/dev/vda bs=64k skip=$((n % 16 * 16)) count=16 iflag=direct 2>/dev/null | cmp - /tmp/chunk || echo bad data
    n=$((n + 1))
  done
  echo loads $n
}
appears() { while [ ! -b /dev/vdb ]; do sleep 0.05; done; }
goes() { while [ -b /dev/vdb ]; do sleep 0.05; done; }
`;

test("a disk is plugged in, used and unplugged, again and again, while another is under load", limit, async (t) => {
  const folder = scratchFolder(t);
  const loaded = sparseImage(folder, "loaded.img", 16 * MIB);
  const hot = randomImage(folder, "hot.img", 4 * MIB);
  const { run, qmp } = await start(t, [
    ...exec(`${LOAD}
      load & sleep 0.2
      for i in 1 2 3; do
        appears
        echo "found$i $(sha256sum </dev/vdb | cut -d ' ' -f 1)"
        head -c 1048576 /dev/urandom >/tmp/mine
        dd if=/tmp/mine of=/dev/vdb bs=64k conv=fsync 2>/dev/null
        echo "wrote$i $(sha256sum </tmp/mine | cut -d ' ' -f 1)"
        goes
        echo "gone$i yes"
      done
      appears
      # Now it goes while it is read and written.
      while dd if=/dev/vdb of=/dev/null bs=4k iflag=direct 2>/dev/null; do :; done &
      while dd if=/dev/zero of=/dev/vdb bs=4k oflag=direct 2>/dev/null; do :; done &
      sleep 0.3
      echo busy yes
      goes
      echo end yes
      touch /tmp/enough
      wait`),
    ...drive(loaded),
    ...drive(hot, "if=none,id=hot"),
  ]);
  const add = (): Promise<unknown> =>
    qmp.execute("device_add", { driver: "virtio-blk-pci", drive: "hot", id: "plugged", serial: "hot" });
  const remove = async (): Promise<void> => {
    await qmp.execute("device_del", { id: "plugged" });
    const { data } = await qmp.event("DEVICE_DELETED");
    assert.deepEqual(data, { device: "plugged", path: "/machine/peripheral/plugged" });
  };
  for (const round of [1, 2, 3]) {
    const before = sha256OfFile(hot);
    await add();
    assert.equal(await said(run, `found${round}`), before);
    const wrote = await said(run, `wrote${round}`);
    await remove();
    assert.equal(await said(run, `gone${round}`), "yes");
    assert.equal(sha256(readFileSync(hot).subarray(0, MIB)), wrote);
  }
  await add();
  await said(run, "busy");
  await remove();
  await said(run, "end");
  const { status, stdout, stderr } = await run.ended;
  assert.equal(status, 0, stderr);
  assert.doesNotMatch(stdout.toString(), /bad (write|data)/);
  assert(Number(await said(run, "loads")) > 3, "the load went on");
});

test("a disk that is pulled out without asking leaves the guest and its other disk alone", limit, async (t) => {
  const folder = scratchFolder(t);
  const { run, qmp } = await start(t, [
    ...exec(`${LOAD}
      load & sleep 0.2
      echo "slot $(ls -d /sys/bus/pci/devices/*/virtio*/block/vdb | cut -d / -f 6)"
      read -r go
      echo "there $(ls /dev | grep -c vdb)"
      touch /tmp/enough
      wait`),
    ...drive(sparseImage(folder, "a.img", 16 * MIB)),
    ...drive(sparseImage(folder, "b.img", MIB), "if=none,id=b"),
    ...["-device", "virtio-blk-pci,drive=b,id=plain,addr=0x10"],
  ]);
  assert.equal(await said(run, "slot"), "0000:00:10.0");
  await assert.rejects(qmp.execute("device_del", { id: "virtkit-agent" }), /carries virtkit's own agent and stays/);
  await assert.rejects(
    qmp.execute("device_del", { id: "nobody" }),
    /^Error: DeviceNotFound: Device 'nobody' not found$/,
  );
  await assert.rejects(
    qmp.execute("device_add", { driver: "virtio-blk-pci", drive: "b", id: "twice" }),
    /Drive 'b' is already in use/,
  );
  await qmp.execute("device_del", { id: "plain" });
  await qmp.event("DEVICE_DELETED");
  // A failed attempt leaves the drive free.
  for (const wrong of [{ addr: "0x3.9" }, { "queue-size": 3 }, { addr: "0x0" }, { "no-such": 1 }])
    await assert.rejects(qmp.execute("device_add", { driver: "virtio-blk-pci", drive: "b", id: "again", ...wrong }));
  await qmp.execute("device_add", { driver: "virtio-blk-pci", drive: "b", id: "again", addr: "0x10" });
  run.write("go\n");
  assert.equal(await said(run, "there"), "1");
  assert.equal((await run.ended).status, 0);
  assert.doesNotMatch(run.stdout, /bad (write|data)/);
});

test("a disk grows while it is mounted; one that would shrink is refused and the guest goes on", limit, async (t) => {
  const image = sparseImage(scratchFolder(t), "disk.img", 32 * MIB);
  const { run, qmp } = await start(t, [
    ...exec(`
      mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt && head -c 4194304 /dev/urandom >/mnt/file && sync
      sum=$(sha256sum </mnt/file)
      echo "mounted $(blockdev --getsize64 /dev/vda)"
      while [ $(cat /sys/block/vda/size) = 65536 ]; do sleep 0.05; done
      echo "grown $(blockdev --getsize64 /dev/vda)"
      resize2fs /dev/vda 2>/dev/null
      [ "$sum" = "$(sha256sum </mnt/file)" ] && head -c 1048576 /dev/zero >/mnt/more && sync && echo "same yes"
      head -c 45000000 /dev/zero >/mnt/large && sync && echo "fits yes"
      read -r go
      umount /mnt`),
    ...drive(image, "if=virtio,id=d0"),
  ]);
  assert.equal(await said(run, "mounted"), String(32 * MIB));
  await qmp.execute("block_resize", { device: "d0", size: 64 * MIB });
  assert.equal(await said(run, "grown"), String(64 * MIB));
  await said(run, "same");
  await said(run, "fits");
  assert.equal(statSync(image).size, 64 * MIB);
  for (const [size, why] of [
    [MIB, /Cannot shrink 'd0' from 67108864 to 1048576 bytes: the guest would lose what lies past the new end/],
    [0, /Cannot shrink/],
    [-1, /Parameter 'size' expects a >0 size/],
    [64 * MIB + 1, /give a multiple of 512/],
  ] as const)
    await assert.rejects(qmp.execute("block_resize", { device: "d0", size }), why);
  await assert.rejects(qmp.execute("block_resize", { device: "d9", size: MIB }), /Cannot find device='d9'/);
  assert.equal(statSync(image).size, 64 * MIB);
  run.write("go\n");
  assert.equal((await run.ended).status, 0, run.stderr);
  checkExt4(image);
});

test("the balloon changes what memory the guest has", limit, async (t) => {
  const { run, qmp } = await start(t, [
    ...exec(`
      total() { sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo; }
      echo "before $(total)"
      read -r go; echo "less $(total)"
      read -r go; echo "again $(total)"`),
    ...["-m", "256M", "-device", "virtio-balloon-pci"],
  ]);
  const before = Number(await said(run, "before"));
  assert.deepEqual(await qmp.execute("query-balloon"), { actual: 256 * MIB });
  const becomes = async (size: number): Promise<void> => {
    await qmp.execute("balloon", { value: size });
    await qmp.event("BALLOON_CHANGE", ({ data }) => data?.["actual"] === size);
    assert.deepEqual(await qmp.execute("query-balloon"), { actual: size });
    run.write("go\n");
  };
  await becomes(192 * MIB);
  assert.equal(Number(await said(run, "less")), before - 64 * 1024);
  await becomes(256 * MIB);
  assert.equal(Number(await said(run, "again")), before);
  assert.equal((await run.ended).status, 0);
});

test("a guest that is stopped does nothing, and goes on where it was", limit, async (t) => {
  const image = sparseImage(scratchFolder(t), "disk.img", 8 * MIB);
  const { run, qmp } = await start(t, [
    ...exec(`
      (while :; do dd if=/dev/zero of=/dev/vda bs=64k oflag=direct 2>/dev/null; done) &
      i=0; while [ ! -e /tmp/enough ]; do i=$((i + 1)); echo "tick $i"; read -t 1 go && touch /tmp/enough; done
      kill %1; echo "last $i"`),
    ...drive(image),
  ]);
  await run.sees(/tick 2/);
  await qmp.execute("stop");
  await qmp.event("STOP");
  assert.deepEqual(await qmp.execute("query-status"), { running: false, status: "paused" });
  await qmp.execute("stop");
  // What the guest wrote before is through by then; a guest that runs would tick on.
  await new Promise((resolve) => setTimeout(resolve, 500));
  const written = run.stdout;
  const stats = await qmp.execute("query-blockstats");
  await new Promise((resolve) => setTimeout(resolve, 2500));
  assert.equal(run.stdout, written);
  assert.deepEqual(await qmp.execute("query-blockstats"), stats);
  await assert.rejects(qmp.execute("system_powerdown"), /paused/);
  await qmp.execute("cont");
  await qmp.event("RESUME");
  const [last = "0"] = /\d+(?=\n$)/.exec(written) ?? [];
  await run.sees(new RegExp(`tick ${Number(last) + 1}\\n`));
  run.write("go\n");
  await said(run, "last");
  assert.equal((await run.ended).status, 0);
});

test("garbage, half messages and a second client: a clear answer each, and the guest goes on", limit, async (t) => {
  const { run, qmp, socket } = await start(t, exec("echo up yes; read -r go; echo end yes"));
  await said(run, "up");
  const second = QmpClient.open(socket);
  for (const garbage of ["not json\n", "[1,2\u0000\n", '{"execute":5}', '{"execute":"nothing"}', "}".repeat(1000)]) {
    qmp.send(garbage.endsWith("}") ? garbage : `${garbage}\n`);
    const { error } = await qmp.next();
    assert(error !== undefined && error.desc.length > 5, garbage);
    if (garbage.startsWith("}}")) qmp.send("\n");
  }
  qmp.send(Buffer.alloc(3_000_000, "x"));
  qmp.send("\n");
  assert.match((await qmp.next()).error?.desc ?? "", /a message has at most/);
  qmp.send(`${"[".repeat(100_000)}\n`);
  assert.match((await qmp.next()).error?.desc ?? "", /nested deeper/);
  assert.deepEqual(await qmp.execute("query-status"), { running: true, status: "running" });
  qmp.send('{"execute":"query-st');
  qmp.close();
  const next = await second;
  t.after(() => next.close());
  assert.deepEqual(await next.execute("query-status"), { running: true, status: "running" });
  run.write("go\n");
  const { status, stderr } = await run.ended;
  assert.equal(status, 0);
  assert.equal(stderr, "");
  assert.equal((await next.event("SHUTDOWN")).data?.["reason"], "guest-shutdown");
  await next.closed;
  assert.equal(existsSync(socket), false);
});

test("system_powerdown switches the guest off, whatever it runs", limit, async (t) => {
  const image = sparseImage(scratchFolder(t), "disk.img", 32 * MIB);
  const { run, qmp, socket } = await start(t, [
    ...exec("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt && echo mounted yes && while :; do date >/mnt/now; done"),
    ...drive(image),
  ]);
  await said(run, "mounted");
  await qmp.execute("system_powerdown");
  await qmp.event("POWERDOWN");
  assert.deepEqual((await qmp.event("SHUTDOWN")).data, { guest: true, reason: "guest-shutdown" });
  assert.match((await run.ended).stderr, /the guest switched itself off|the guest.s agent went away/);
  assert.equal(existsSync(socket), false);
  checkExt4(image);
});

test("without a command: reset, power off, and quit", limit, async (t) => {
  const { run, qmp } = await start(t, ["-nodefaults", "-device", "virtio-rng-pci,id=rng"]);
  await qmp.execute("system_reset");
  assert.deepEqual((await qmp.event("RESET")).data, { guest: false, reason: "host-qmp-system-reset" });
  await qmp.execute("device_del", { id: "rng" });
  await qmp.event("DEVICE_DELETED");
  await qmp.execute("system_powerdown");
  assert.deepEqual((await qmp.event("SHUTDOWN")).data, { guest: true, reason: "guest-shutdown" });
  assert.equal((await run.ended).status, 0);

  const other = await start(t, ["-nodefaults"]);
  await other.qmp.execute("query-block");
  assert.deepEqual(await other.qmp.execute("quit"), {});
  assert.deepEqual((await other.qmp.event("SHUTDOWN")).data, { guest: false, reason: "host-qmp-quit" });
  await other.qmp.closed;
  assert.equal((await other.run.ended).status, 0);
});
