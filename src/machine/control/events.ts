import type { Environment } from "../../common/environment.ts";
import type { MachineEnd } from "../machine-events.ts";
import type { ControlledMachine } from "./controlled-machine.ts";
import { throttle } from "./throttle.ts";

/** Every event that the control socket sends, with when it comes. */
export const CONTROL_EVENTS: Readonly<Record<string, string>> = {
  STOP: "The guest's CPU was halted.",
  RESUME: "The guest's CPU goes on.",
  POWERDOWN: "The guest was asked to switch itself off.",
  RESET: "The guest rebooted, or was reset.",
  SHUTDOWN: "The machine ended; images are flushed and closed. The connection is closed next.",
  DEVICE_DELETED: "A device is unplugged, and its drive is free.",
  DEVICE_UNPLUG_GUEST_ERROR: "The guest did not let go of a device.",
  BALLOON_CHANGE: "The balloon has another size; `actual` is the memory that the guest has left. At most one a second.",
  BLOCK_IO_ERROR: "A request of the guest's to a drive failed; the guest was told.",
};

type Tell = (name: string, data?: object) => void;

const END_REASONS: Readonly<Record<MachineEnd, string>> = {
  poweroff: "guest-shutdown",
  reset: "guest-reset",
  stopped: "host-signal",
  fault: "host-error",
};

const named = (id: string | undefined, path: string): object => ({ ...(id === undefined ? {} : { device: id }), path });

/** Tells a machine's events by QMP's names. `quitting` is true once a client asked for the end. Returns what ends it. */
export function watchEvents(
  machine: ControlledMachine,
  environment: Environment,
  quitting: () => boolean,
  tell: Tell,
): () => void {
  const balloon = throttle<number>(environment, (actual) => tell("BALLOON_CHANGE", { actual }));
  const offs = [
    balloon.stop,
    machine.on("pause", () => tell("STOP")),
    machine.on("resume", () => tell("RESUME")),
    machine.on("powerdown", () => tell("POWERDOWN")),
    machine.on("reset", (byGuest) =>
      tell("RESET", { guest: byGuest, reason: byGuest ? "guest-reset" : "host-qmp-system-reset" }),
    ),
    machine.on("end", (reason) => {
      const why = reason === "stopped" && quitting() ? "host-qmp-quit" : END_REASONS[reason];
      tell("SHUTDOWN", { guest: why.startsWith("guest"), reason: why });
    }),
    machine.on("deviceDeleted", (id, path) => tell("DEVICE_DELETED", named(id, path))),
    machine.on("deviceKept", (id, path) => tell("DEVICE_UNPLUG_GUEST_ERROR", named(id, path))),
    machine.on("balloon", balloon.push),
    machine.on("blockError", (drive, operation) =>
      tell("BLOCK_IO_ERROR", {
        device: drive,
        "node-name": drive,
        operation,
        action: "report",
        nospace: false,
        reason: "Input/output error",
      }),
    ),
  ];
  return () => {
    for (const off of offs) off();
  };
}
