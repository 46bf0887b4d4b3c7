import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { fakeGuestPackages, fakeRepository } from "../../../testing/guest-packages.ts";
import { listGuests, removeGuests } from "./guest-cache.ts";
import { prepareGuest } from "./prepare.ts";
import type { GuestStage } from "./progress.ts";
import { stateStore } from "./state-store.ts";

const hasTools = ["apt-get", "dpkg-deb"].every((tool) => spawnSync(tool, ["--version"]).status === 0);
const skip = !hasTools && process.env["CI"] !== "true" ? "needs apt-get and dpkg-deb" : false;
const limit = { timeout: 60_000, skip };
const root = mkdtempSync(join(tmpdir(), "virtkit-prepare-"));
after(() => rmSync(root, { recursive: true, force: true }));

let count = 0;
const fresh = (kernel = "9.9.0-10-686"): { root: string; aptFolder: string; cacheDir: string } => {
  const folder = join(root, String(count++));
  return {
    root: folder,
    aptFolder: fakeRepository(folder, fakeGuestPackages(kernel)),
    cacheDir: join(folder, "cache"),
  };
};

const leftovers = (cacheDir: string): string[] =>
  readdirSync(cacheDir, { recursive: true, encoding: "utf8" }).filter((name) => name.includes(".tmp-"));

test("a guest is made from packages, kept, and found again without any source", limit, async () => {
  const { aptFolder, cacheDir, root: folder } = fresh();
  const stages: GuestStage[] = [];
  const guest = await prepareGuest({
    aptFolder,
    cacheDir,
    onProgress: ({ stage, done, total }) => {
      assert(done >= 0 && done <= total && total >= 1);
      if (stages.at(-1) !== stage) stages.push(stage);
    },
  });
  assert.deepEqual(stages, ["update", "resolve", "download", "unpack", "kernel", "initramfs", "store"]);
  assert.equal(guest.kernelVersion, "9.9.0-10-686");
  assert.equal(readFileSync(guest.bios, "utf8"), "a bios");
  assert.equal(readFileSync(guest.vmlinux ?? "", "utf8"), "the kernel 9.9.0-10-686");
  const initrd = readFileSync(guest.initrd, "latin1");
  assert.match(initrd, /virtio_blk\.ko: kernel\/virtio\.ko\n/);
  assert.match(initrd, /alias virtio:d00000002v\* virtio_blk\n/);
  assert.deepEqual(leftovers(cacheDir), []);

  rmSync(join(folder, "repo"), { recursive: true });
  const again = await prepareGuest({ aptFolder, cacheDir, onProgress: () => assert.fail("there is nothing to do") });
  assert.deepEqual(again, guest);
  assert.deepEqual(await listGuests(cacheDir), [guest]);
});

test("a damaged guest is made again from the packages that are still there", limit, async () => {
  const { aptFolder, cacheDir, root: folder } = fresh();
  const guest = await prepareGuest({ aptFolder, cacheDir });
  rmSync(join(folder, "repo"), { recursive: true });
  writeFileSync(guest.initrd, "short");
  assert.deepEqual(await listGuests(cacheDir), []);
  const again = await prepareGuest({ aptFolder, cacheDir });
  assert.equal(again.id, guest.id);
  assert.notEqual(readFileSync(guest.initrd, "utf8"), "short");
  rmSync(guest.folder, { recursive: true });
  await assert.rejects(prepareGuest({ aptFolder, cacheDir }), { code: "ERR_VIRTKIT_NO_NETWORK" });
});

test("a damaged package is found out, removed, and fetched again by the next try", limit, async () => {
  const { aptFolder, cacheDir } = fresh();
  const guest = await prepareGuest({ aptFolder, cacheDir });
  const packages = join(cacheDir, "packages");
  const name = readdirSync(packages).find((file) => file.startsWith("seabios_")) ?? "";
  const bytes = readFileSync(join(packages, name));
  bytes[bytes.length - 1] ^= 1;
  writeFileSync(join(packages, name), bytes);
  writeFileSync(guest.initrd, "short");
  await assert.rejects(prepareGuest({ aptFolder, cacheDir }), { code: "ERR_VIRTKIT_BAD_PACKAGE", message: /seabios/ });
  assert.equal((await prepareGuest({ aptFolder, cacheDir })).id, guest.id);
});

test("refresh takes a newer kernel, and of many only two guests are kept, with their states", limit, async () => {
  const { aptFolder, cacheDir, root: folder } = fresh("9.9.0-8-686");
  const ids = [(await prepareGuest({ aptFolder, cacheDir })).id];
  const states = stateStore(cacheDir);
  await states.put({ guestId: ids[0], memoryBytes: 1, engineVersion: "x" }, Uint8Array.of(1));
  for (const number of [9, 10]) {
    rmSync(join(folder, "repo"), { recursive: true });
    rmSync(join(folder, "trees"), { recursive: true });
    fakeRepository(folder, fakeGuestPackages(`9.9.0-${number}-686`));
    assert.equal((await prepareGuest({ aptFolder, cacheDir })).id, ids.at(-1), "without refresh it stays as it is");
    const newer = await prepareGuest({ aptFolder, cacheDir, refresh: true });
    assert.equal(newer.kernelVersion, `9.9.0-${number}-686`);
    ids.push(newer.id);
  }
  assert.deepEqual(
    (await listGuests(cacheDir)).map((guest) => guest.id),
    [ids[2], ids[1]],
  );
  assert.deepEqual(await states.list(), []);
});

test("two at once make one guest", limit, async () => {
  const { aptFolder, cacheDir } = fresh();
  const stages = new Set<GuestStage>();
  const onProgress = ({ stage }: { stage: GuestStage }): unknown => stages.add(stage);
  const [a, b] = await Promise.all([
    prepareGuest({ aptFolder, cacheDir, onProgress }),
    prepareGuest({ aptFolder, cacheDir, onProgress }),
  ]);
  assert.deepEqual(a, b);
  assert(stages.has("wait"), "one of them waited");
  assert.deepEqual(leftovers(cacheDir), []);
});

test("stopped at any stage it leaves nothing behind and can go on", limit, async () => {
  const { aptFolder, cacheDir } = fresh();
  for (const at of ["update", "resolve", "download", "unpack", "kernel", "initramfs", "store"] as const) {
    const stop = new AbortController();
    const onProgress = ({ stage }: { stage: GuestStage }): void => {
      if (stage === at) stop.abort();
    };
    await assert.rejects(
      prepareGuest({ aptFolder, cacheDir, onProgress, refresh: true, signal: stop.signal }),
      (cause: Error) => {
        assert.equal((cause as Error & { code?: string }).code, "ERR_VIRTKIT_ABORTED", `${at}: ${cause.message}`);
        return true;
      },
    );
    assert.deepEqual(leftovers(cacheDir), []);
    assert.deepEqual(await listGuests(cacheDir), []);
    rmSync(join(cacheDir, "packages"), { recursive: true, force: true });
  }
  await prepareGuest({ aptFolder, cacheDir });
});

test("each missing piece is named with the way out", limit, async () => {
  const { cacheDir, root: folder } = fresh();
  const packages = fakeGuestPackages("9.9.0-10-686");
  const without = (name: string): string =>
    fakeRepository(
      join(folder, name),
      packages.filter((item) => !item.name.startsWith(name)),
    );
  await assert.rejects(prepareGuest({ aptFolder: without("linux-image"), cacheDir }), {
    code: "ERR_VIRTKIT_NO_GUEST_KERNEL",
    message: /-kernel and -initrd/,
  });
  await assert.rejects(prepareGuest({ aptFolder: without("seabios"), cacheDir }), {
    code: "ERR_VIRTKIT_NO_PACKAGE",
    message: /seabios/,
  });
  await assert.rejects(prepareGuest({ aptFolder: join(folder, "nothing"), cacheDir }), {
    code: "ERR_VIRTKIT_NO_SOURCES",
  });
  await assert.rejects(prepareGuest({ arch: "vax", cacheDir }), { code: "ERR_VIRTKIT_GUEST_ARCH", message: /i386/ });
  await assert.rejects(prepareGuest({ cacheDir: "/dev/null/cache" }), {
    code: "ERR_VIRTKIT_CACHE",
    message: /VIRTKIT_CACHE/,
  });
});

test("removing a guest removes its packages too", limit, async () => {
  const { aptFolder, cacheDir } = fresh();
  const guest = await prepareGuest({ aptFolder, cacheDir });
  assert.deepEqual(await removeGuests(cacheDir, "0000000000000000"), []);
  assert.deepEqual(await removeGuests(cacheDir), [guest.id]);
  assert.deepEqual(await listGuests(cacheDir), []);
  assert.deepEqual(readdirSync(join(cacheDir, "packages")), []);
});
