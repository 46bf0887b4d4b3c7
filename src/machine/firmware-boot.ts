import { VirtkitError } from "../common/error.ts";
import type { MachineBackends } from "./machine-backends.ts";
import { PciDevice } from "./pci/pci-bus.ts";

const NOTHING_BOOTS = "No bootable device.";

/**
 * The firmware's list of what to boot from, as QEMU writes it (fw_cfg "bootorder"): a line for each device with a bootindex. Empty when none
 * has one: then the firmware goes by the order of the bus.
 */
export function bootOrderFile(backends: MachineBackends): Uint8Array {
  const lines = backends.bootOrder.flatMap((device) =>
    device instanceof PciDevice ? [`/pci@i0cf8/scsi@${place(device.devfn)}/disk@0,0`] : [],
  );
  return new TextEncoder().encode(lines.length === 0 ? "" : `${lines.join("\n")}\0`);
}

/** Slot and function in hexadecimal; function 0 is left out. */
function place(devfn: number): string {
  const slot = (devfn >> 3).toString(16);
  return (devfn & 7) === 0 ? slot : `${slot},${devfn & 7}`;
}

/** An engine whose firmware tells what it does. */
interface FirmwareLines {
  on(event: "firmware", listener: (line: string) => void): unknown;
}

/** Follows what the firmware says, to tell a machine that will never boot from one that is busy; `report` gets what it tried. */
export function onNothingToBoot(engine: FirmwareLines, report: (error: VirtkitError) => void): void {
  let tried: string[] = [];
  let trying = "";
  engine.on("firmware", (line) => {
    if (line.startsWith("Booting from ")) trying = line.replace(/\.+$/, "");
    else if (line.startsWith("Boot failed: ")) tried.push(`${trying}: ${line.slice("Boot failed: ".length)}`);
    if (!line.startsWith(NOTHING_BOOTS)) return;
    const said = [...tried, NOTHING_BOOTS].join("; ");
    tried = [];
    report(
      new VirtkitError(
        "ERR_VIRTKIT_NO_BOOT",
        `the firmware has nothing to boot from (${said}); give a virtio disk with a boot sector, or leave out -boot c for the prepared guest`,
      ),
    );
  });
}
