import { type Command, command, versionInfo } from "../command.ts";
import { ControlError } from "../errors.ts";

/** The machine as a whole. */
export const MACHINE_COMMANDS: readonly Command[] = [
  command({
    name: "query-status",
    help: "Whether the guest runs.",
    waits: false,
    run: (_, { machine }) => ({ running: machine.runState === "running", status: machine.runState }),
  }),
  command({
    name: "query-version",
    help: "The version of virtkit, in the place of QEMU's.",
    waits: false,
    run: (_, { version }) => versionInfo(version),
  }),
  command({
    name: "query-commands",
    help: "The names of all commands.",
    waits: false,
    run: (_, { commandNames }) => commandNames.map((name) => ({ name })),
  }),
  command({
    name: "query-name",
    help: "What `-name` says.",
    waits: false,
    run: (_, { machine }) => (machine.name === undefined ? {} : { name: machine.name }),
  }),
  command({
    name: "query-kvm",
    help: "Always off: guests run in an emulator.",
    waits: false,
    run: () => ({ enabled: false, present: false }),
  }),
  command({
    name: "stop",
    help: "Halts the guest's CPU and waits until no I/O is on its way. Harmless when it is halted.",
    run: (_, { machine }) => machine.pause(),
  }),
  command({
    name: "cont",
    help: "Lets the guest go on. Harmless while it runs.",
    run: (_, { machine }) => machine.resume(),
  }),
  command({
    name: "system_powerdown",
    help: "Asks the guest to switch itself off: through virtkit's own helper in a prepared guest, else by the ACPI power button.",
    run: (_, { machine }) => {
      if (machine.runState !== "running") throw new ControlError("The guest is paused; let it go on with 'cont' first");
      machine.powerdown();
    },
  }),
  command({
    name: "system_reset",
    help: "Resets the machine; the guest boots again.",
    run: (_, { machine }) => machine.reset(),
  }),
  command({
    name: "quit",
    help: "Cuts the power. Images are flushed and closed.",
    waits: false,
    run: (_, { afterReply, quit }) => afterReply(quit),
  }),
];
