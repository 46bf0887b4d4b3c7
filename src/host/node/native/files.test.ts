import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import {
  allocate,
  canLockRange,
  FALLOC_KEEP_SIZE,
  LOCK_EXCLUSIVE,
  LOCK_NONE,
  LOCK_SHARED,
  lockImage,
  lockRange,
  nextData,
  nextHole,
  openAt,
  punchHole,
  RESOLVE_IN_ROOT,
  zeroRange,
} from "./files.ts";
import { nativeProblem } from "./load.ts";

const limit = { timeout: 60_000, skip: nativeProblem() ?? false };
const folder = fs.mkdtempSync(join(tmpdir(), "virtkit-files-"));
after(() => fs.rmSync(folder, { recursive: true, force: true }));

const EXDEV = 18;
const ELOOP = 40;

test("holes are punched and found again", limit, () => {
  const path = join(folder, "holes");
  fs.writeFileSync(path, Buffer.alloc(1 << 20, 1));
  const fd = fs.openSync(path, "r+");
  const blocks = fs.fstatSync(fd).blocks;
  punchHole(fd, 262144, 524288);
  assert.ok(fs.fstatSync(fd).blocks < blocks);
  assert.equal(nextHole(fd, 0), 262144);
  assert.equal(nextData(fd, 262144), 786432);
  assert.equal(nextHole(fd, 786432), 1 << 20, "the end is a hole");
  assert.equal(nextData(fd, 1 << 20), undefined);
  assert.equal(nextHole(fd, (1 << 20) + 1), undefined);
  zeroRange(fd, 0, 4096);
  assert.equal(fs.readFileSync(path)[4095], 0);
  assert.equal(fs.readFileSync(path)[4096], 1);
  allocate(fd, 1 << 20, 4096);
  assert.equal(fs.fstatSync(fd).size, (1 << 20) + 4096);
  allocate(fd, 1 << 21, 4096, FALLOC_KEEP_SIZE);
  assert.equal(fs.fstatSync(fd).size, (1 << 20) + 4096);
  fs.closeSync(fd);
  assert.throws(() => punchHole(fd, 0, 4096), /EBADF/);
});

test("locks belong to the open file, not to the process", limit, () => {
  const path = join(folder, "locked");
  fs.writeFileSync(path, "");
  const [a, b] = [fs.openSync(path, "r+"), fs.openSync(path, "r+")];
  assert.equal(lockRange(a, LOCK_SHARED, 100, 1), true);
  assert.equal(lockRange(b, LOCK_SHARED, 100, 1), true);
  assert.equal(lockRange(b, LOCK_EXCLUSIVE, 100, 1), false);
  assert.equal(canLockRange(b, LOCK_EXCLUSIVE, 101, 1), true);
  assert.equal(lockRange(b, LOCK_NONE, 100, 1), true);
  assert.equal(canLockRange(b, LOCK_EXCLUSIVE, 100, 1), false);
  fs.closeSync(a);
  assert.equal(canLockRange(b, LOCK_EXCLUSIVE, 100, 1), true);
  fs.closeSync(b);
});

test("an image in use is refused by its bytes, readers share it", limit, () => {
  const path = join(folder, "image");
  fs.writeFileSync(path, "");
  const open = () => fs.openSync(path, "r+");
  const inUse = { code: "ERR_VIRTKIT_IMAGE_IN_USE" };
  const [writer, other] = [open(), open()];
  lockImage(writer, path, true);
  assert.throws(() => lockImage(other, path, true), inUse);
  assert.throws(() => lockImage(other, path, false), inUse);
  fs.closeSync(writer);
  lockImage(other, path, false);
  const reader = open();
  lockImage(reader, path, false);
  const late = open();
  assert.throws(() => lockImage(late, path, true), inUse);
  for (const fd of [other, reader]) fs.closeSync(fd);
  lockImage(late, path, true);
  fs.closeSync(late);
});

const qemuImg = spawnSync("qemu-img", ["--version"]).status === 0;

test("qemu-img refuses what is locked here", { ...limit, skip: limit.skip || (!qemuImg && "no qemu-img here") }, () => {
  const path = join(folder, "qemu.img");
  fs.writeFileSync(path, Buffer.alloc(1 << 20));
  const info = () => spawnSync("qemu-img", ["resize", "-f", "raw", path, "2M"], { encoding: "utf8", timeout: 30_000 });
  const fd = fs.openSync(path, "r+");
  lockImage(fd, path, true);
  assert.match(info().stderr, /lock/);
  fs.closeSync(fd);
  assert.equal(info().status, 0);
});

test("a path opens below its folder and not outside of it", limit, () => {
  fs.mkdirSync(join(folder, "share", "sub"), { recursive: true });
  fs.writeFileSync(join(folder, "share", "sub", "file"), "inside");
  fs.writeFileSync(join(folder, "secret"), "outside");
  fs.symlinkSync("/etc/passwd", join(folder, "share", "absolute"));
  fs.symlinkSync("../secret", join(folder, "share", "relative"));
  fs.symlinkSync("sub/file", join(folder, "share", "fine"));
  const share = fs.openSync(join(folder, "share"), fs.constants.O_RDONLY | fs.constants.O_DIRECTORY);
  for (const path of ["sub/file", "fine", Buffer.from("sub/../sub/file")]) {
    const fd = openAt(share, path);
    assert.equal(fs.readFileSync(fd, "utf8"), "inside");
    fs.closeSync(fd);
  }
  for (const path of ["../secret", "/etc/passwd", "absolute", "relative", "sub/../../secret"])
    assert.equal(openAt(share, path), -EXDEV);
  assert.equal(openAt(share, "fine", { flags: fs.constants.O_NOFOLLOW }), -ELOOP);
  assert.equal(openAt(share, "nothing"), -2);
  assert.equal(openAt(share, "a\0b"), -22);
  assert.equal(openAt(share, "x".repeat(5000)), -36);
  assert.equal(openAt(share, "/secret", { resolve: RESOLVE_IN_ROOT }), -2);
  const made = openAt(share, "new", { flags: fs.constants.O_CREAT | fs.constants.O_WRONLY, mode: 0o600 });
  assert.equal(fs.fstatSync(made).mode & 0o777, 0o600);
  fs.closeSync(made);
  fs.closeSync(share);
});
