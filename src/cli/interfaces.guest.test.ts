import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { randomImage, scratchFolder, sha256OfFile } from "../testing/guest-files.ts";
import { execInGuest } from "../testing/guest-program.ts";

const limit = { timeout: 120_000 };
const MiB = 2 ** 20;

interface Row {
  /** Of virtio-blk-pci. */
  readonly options: string;
  /** What the guest says of VERSION_1 and RING_PACKED. */
  readonly features: "0 0" | "1 0" | "1 1";
  readonly interrupt: "msix" | "intx";
}

const INTERFACES: readonly Pick<Row, "options" | "features">[] = [
  { options: "disable-modern=on", features: "0 0" },
  { options: "disable-legacy=on", features: "1 0" },
  { options: "disable-legacy=off,disable-modern=off", features: "1 0" },
  { options: "packed=on", features: "1 1" },
];
const ROWS: readonly Row[] = INTERFACES.flatMap(({ options, features }): Row[] => [
  { options, features, interrupt: "msix" },
  { options: `${options},vectors=0`, features, interrupt: "intx" },
]);
const CONTROLLER = { msix: /MSI/, intx: /IO-APIC/ };

/** A line of a trace, as far as this test looks at it. */
interface Line {
  readonly device: string;
  readonly kind: string;
  readonly register?: string;
  readonly format?: string;
  readonly by?: string;
}

for (const { options, features, interrupt } of ROWS)
  test(`a stock guest reads and writes a disk with ${options}`, limit, async (t) => {
    const folder = scratchFolder(t);
    const image = randomImage(folder, "disk.img", 4 * MiB);
    const trace = join(folder, "trace");
    const before = sha256OfFile(image);
    const { status, stdout, stderr } = await execInGuest(
      `sha256sum /dev/vda | cut -d ' ' -f 1
       dd if=/dev/vda of=/tmp/all bs=1M 2>/dev/null && dd if=/tmp/all of=/dev/vda bs=1M conv=notrunc 2>/dev/null; sync
       f=$(cat /sys/block/vda/device/features); echo $(echo $f | cut -c 33) $(echo $f | cut -c 35)
       grep virtio0 /proc/interrupts`,
      [
        ...[
          "-drive",
          `file=${image},format=raw,if=none,id=d0`,
          "-device",
          `virtio-blk-pci,drive=d0,id=disk,${options}`,
        ],
        ...["--trace", `file=${trace},device=disk`],
      ],
    );
    assert.equal(stderr, "");
    assert.equal(status, 0);
    const [sum, bits, ...lines] = stdout.toString().trim().split("\n");
    assert.equal(sum, before);
    assert.equal(bits, features);
    assert.match(lines.join("\n"), CONTROLLER[interrupt]);
    assert.equal(sha256OfFile(image), before);
    checkTrace(readFileSync(trace, "utf8"), features, interrupt);
  });

function checkTrace(text: string, features: Row["features"], interrupt: Row["interrupt"]): void {
  assert.ok(text.endsWith("\n"));
  const lines: Line[] = text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
  assert.deepEqual([...new Set(lines.map(({ device }) => device))], ["disk"]);
  const registers = new Set(lines.map(({ register }) => register));
  const legacy = features === "0 0";
  for (const name of ["QUEUE_PFN", "QUEUE_NOTIFY"]) assert.equal(registers.has(name), legacy, name);
  for (const name of ["queue_enable", "queue_desc", "notify"]) assert.equal(registers.has(name), !legacy, name);
  const formats = new Set(lines.flatMap(({ format }) => format ?? []));
  assert.deepEqual([...formats], [features === "1 1" ? "packed" : "split"]);
  const ways = new Set(lines.flatMap(({ kind, by }) => (kind === "interrupt" ? [by] : [])));
  assert.deepEqual([...ways], [interrupt]);
}
