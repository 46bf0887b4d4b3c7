import assert from "node:assert/strict";
import { test } from "node:test";
import { VirtkitError } from "../common/error.ts";
import { deviceListHelp } from "../machine/object-model/device-help.ts";
import { createTypeRegistry } from "../machine/types.ts";
import { report, runCli } from "./program.ts";

const OPTIONS = { timeout: 20_000 };

async function cli(...argv: string[]): Promise<{ status: number; out: string; err: string }> {
  let [out, err] = ["", ""];
  const status = await runCli(argv, {
    out: (text) => {
      out += text;
    },
    err: (text) => {
      err += text;
    },
    columns: 80,
  });
  return { status, out, err };
}

const HELP: readonly [argv: readonly string[], out: RegExp][] = [
  [[], /^Usage: virtkit/],
  [["--help"], /Commands:\n +run +.*\n +start/],
  [["--version"], /^\d+\.\d+\.\d+\n$/],
  [["run", "--help"], /^Usage: virtkit run [\s\S]*\n {2}-m SIZE {2}[\s\S]*\n {2}--exec COMMAND/],
  [["run", "-h"], /^Usage: virtkit run/],
  [["-help"], /^Usage: virtkit run/],
  [["help", "run"], /^Usage: virtkit run/],
  [["help", "guest"], /^Usage: virtkit guest/],
  [["run", "-device", "virtio-blk-pci,help"], /^virtio-blk-pci options:\n {2}acpi-index=/],
  [["run", "-chardev", "help"], /^Available chardev backend types:\n/],
  [["run", "-machine", "help"], /^Supported machines are:\npc /],
  [["run", "-M", "?"], /^Supported machines are:\npc /],
  [["run", "-accel", "help"], /^Accelerators supported:\ntcg /],
  [["run", "-cpu", "help"], /^Available CPUs:\n/],
  [["-version"], /^\d+\.\d+\.\d+/],
];

for (const [argv, out] of HELP)
  test(`virtkit ${argv.join(" ")}`, OPTIONS, async () => {
    const result = await cli(...argv);
    assert.match(result.out, out);
    assert.deepEqual([result.status, result.err], [0, ""]);
  });

test("QEMU's options work without a command", OPTIONS, async () => {
  const result = await cli("-device", "help");
  assert.deepEqual(result, { status: 0, out: deviceListHelp(createTypeRegistry()), err: "" });
});

test("the lines of the help fit the terminal", OPTIONS, async () => {
  const { out } = await cli("run", "--help");
  const options = out
    .slice(0, out.indexOf("Examples:"))
    .split("\n")
    .filter((line) => line.startsWith("  "));
  assert.deepEqual(
    options.filter((line) => line.length > 80),
    [],
  );
});

const WRONG: readonly [argv: readonly string[], err: RegExp][] = [
  [["rnu"], /^virtkit: unknown command 'rnu'\n\(Did you mean run\?\)\n$/],
  [["start", "--dsik", "x"], /^virtkit: unknown option '--dsik'\n\(Did you mean --disk\?\)/],
  [["guest", "lsit"], /^virtkit: guest lsit: 'lsit' is not an action\nDid you mean 'list'\?/],
  [["run", "-drvie", "x"], /^virtkit: -drvie: invalid option\nDid you mean '-drive'\?/],
  [["-drvie", "x"], /^virtkit: -drvie: invalid option/],
  [
    ["run", "-device", "virtio-blk-pc"],
    /^virtkit: -device virtio-blk-pc: 'virtio-blk-pc' is not a valid device model name\nDid/,
  ],
  [
    ["run", "-device", "virtio-blk-pc,help"],
    /^virtkit: -device virtio-blk-pc,help: .*\nDid you mean 'virtio-blk-pci'\?/,
  ],
  [
    ["run", "-device", "virtio-rng-pci,packd=on"],
    /Property 'virtio-rng-pci\.packd' not found\nDid you mean 'packed'\?/,
  ],
];

for (const [argv, err] of WRONG)
  test(`refused: virtkit ${argv.join(" ")}`, OPTIONS, async () => {
    const result = await cli(...argv);
    assert.match(result.err, err);
    assert.deepEqual([result.status, result.out], [2, ""]);
  });

test("other failures exit with 1, and bugs show where they are", OPTIONS, () => {
  const errors: string[] = [];
  const output = { out: () => undefined, err: (text: string) => void errors.push(text), columns: 80 };
  assert.equal(report(new VirtkitError("ERR_VIRTKIT_GUEST_APT", "no apt here"), output), 1);
  assert.deepEqual(errors, ["virtkit: no apt here\n"]);
  assert.equal(report(new TypeError("oops"), output), 1);
  assert.match(errors[1] ?? "", /internal error: TypeError: oops\n +at /);
});
