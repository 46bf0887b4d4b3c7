import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { ElfFile } from "./elf.ts";
import { prepareGuest } from "./prepare.ts";

const isDebian = spawnSync("apt-get", ["--version"]).status === 0;
const skip = !isDebian && process.env["CI"] !== "true" ? "needs apt-get and the distribution's package sources" : false;

test("a guest is prepared from this machine's own package sources, or found in its cache", {
  timeout: 300_000,
  skip,
}, async () => {
  const guest = await prepareGuest();
  assert.match(guest.kernelVersion, /^\d+\.\d+.*-686/);
  if (guest.vmlinux !== undefined) assert(new ElfFile(readFileSync(guest.vmlinux), "vmlinux").section(".text"));
  const initrd = readFileSync(guest.initrd);
  assert(initrd.length < 12_000_000, `the initramfs has ${initrd.length} bytes`);
  for (const name of [
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio-rng",
    "virtio_net",
    "virtio_balloon",
    "ext4",
  ]) {
    assert(initrd.includes(`/${name}.ko\n`), `${name} is loaded at boot`);
  }
  for (const name of [
    "9pnet_virtio.ko",
    "virtiofs.ko",
    "overlay.ko",
    "sbin/mke2fs",
    "lib/libc.so.6",
    "sbin/virtkit-agent",
  ]) {
    assert(initrd.includes(`${name}\0`), `${name} is there`);
  }
  assert.equal(readFileSync(guest.bios).length, 256 * 1024);
});
