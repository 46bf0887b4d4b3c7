import assert from "node:assert/strict";
import { test } from "node:test";
import { randomImage, scratchFolder, sha256OfFile } from "../testing/guest-files.ts";
import { execInGuest } from "../testing/guest-program.ts";

const limit = { timeout: 120_000 };
const MiB = 2 ** 20;

/** Options of virtio-blk-pci, and what the guest then says: VERSION_1, RING_PACKED, and the form of its interrupts. */
const ROWS: readonly [options: string, version1: string, packed: string, interrupt: RegExp][] = [
  ["disable-legacy=auto", "1", "0", /MSI/],
  ["disable-modern=on", "0", "0", /MSI/],
  ["disable-modern=on,vectors=0", "0", "0", /IO-APIC/],
  ["disable-legacy=on,packed=on", "1", "1", /MSI/],
];

for (const [options, version1, packed, interrupt] of ROWS)
  test(`a stock guest reads and writes a disk with ${options}`, limit, async (t) => {
    const folder = scratchFolder(t);
    const image = randomImage(folder, "disk.img", 4 * MiB);
    const before = sha256OfFile(image);
    const { status, stdout, stderr } = await execInGuest(
      `sha256sum /dev/vda | cut -d ' ' -f 1
       dd if=/dev/vda of=/tmp/all bs=1M 2>/dev/null && dd if=/tmp/all of=/dev/vda bs=1M conv=notrunc 2>/dev/null; sync
       f=$(cat /sys/block/vda/device/features); echo $(echo $f | cut -c 33) $(echo $f | cut -c 35)
       grep virtio0 /proc/interrupts`,
      [...["-drive", `file=${image},format=raw,if=none,id=d0`], ...["-device", `virtio-blk-pci,drive=d0,${options}`]],
    );
    assert.equal(stderr, "");
    assert.equal(status, 0);
    const [sum, bits, ...lines] = stdout.toString().trim().split("\n");
    assert.equal(sum, before);
    assert.equal(bits, `${version1} ${packed}`);
    assert.match(lines.join("\n"), interrupt);
    assert.equal(sha256OfFile(image), before);
  });
