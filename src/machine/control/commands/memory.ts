import { findBalloon } from "../../balloon.ts";
import { type Command, command } from "../command.ts";
import type { ControlledMachine } from "../controlled-machine.ts";
import { ControlError } from "../errors.ts";
import { treeOf } from "../lookup.ts";

function balloonOf(machine: ControlledMachine): ReturnType<typeof findBalloon> {
  try {
    return findBalloon(treeOf(machine));
  } catch (error) {
    throw new ControlError("No balloon device has been activated", "DeviceNotActive", error);
  }
}

/** The memory balloon. */
export const MEMORY_COMMANDS: readonly Command[] = [
  command({
    name: "balloon",
    help: "Asks the guest to get by with so much memory; it follows when it can. Needs virtio-balloon-pci.",
    arguments: { value: { type: "int", help: "bytes of memory that the guest is to have" } },
    run: ({ value }, { machine }) => {
      balloonOf(machine);
      if (value <= 0) throw new ControlError("Parameter 'target' expects a size");
      machine.setMemory(value);
    },
  }),
  command({
    name: "query-balloon",
    help: "The memory that the balloon leaves to the guest, in bytes.",
    run: (_, { machine }) => ({ actual: machine.description.memory - balloonOf(machine).actual }),
  }),
];
