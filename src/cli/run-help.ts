import { Help } from "commander";
import { dashed } from "./options/raw-options.ts";
import { RUN_OPTIONS } from "./options/run-table.ts";

const EXAMPLES = `Examples:
  virtkit run -drive file=disk.img,format=raw,if=virtio
  virtkit run --exec 'sha256sum /dev/vda' -drive file=disk.img,format=raw,if=virtio,readonly=on
  virtkit run -m 256M -kernel bzImage -initrd initrd.cpio -append console=ttyS0 -nographic
  virtkit run -drive file=disk.img,format=raw,if=none,id=d0 \\
      -device virtio-blk-pci,drive=d0,addr=0x4,id=disk0,packed=on -device virtio-rng-pci
  virtkit run -device virtio-blk-pci,help
`;

/** What `virtkit run --help` prints, for lines of so many characters. */
export function runHelp(columns = 80): string {
  const helper = new Help();
  helper.prepareContext({ helpWidth: columns });
  const width = Math.max(...RUN_OPTIONS.map((spec) => dashed(spec).length)) + 1;
  const groups = new Map<string, string[]>();
  for (const spec of RUN_OPTIONS) {
    const term = `${dashed(spec)}${spec.argument === undefined ? "" : ` ${spec.argument}`}`;
    const lines = groups.get(spec.group) ?? [];
    groups.set(spec.group, lines);
    // A long term gets a line of its own, so that the descriptions stay aligned.
    const fits = term.length <= width;
    if (!fits) lines.push(`  ${term}`);
    lines.push(helper.formatItem(fits ? term : "", width, spec.help, helper));
  }
  const sections = [...groups].map(([title, lines]) => [title, ...lines, ""].join("\n"));
  return `${[
    "Usage: virtkit run [OPTION...]",
    "",
    "Runs a PC with virtio devices. The options are QEMU's; two dashes work as well as one.",
    "",
    ...sections,
    EXAMPLES,
  ].join("\n")}`;
}
