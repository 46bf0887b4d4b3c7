/** Why a machine ended. */
export type MachineEnd = "poweroff" | "reset" | "stopped" | "fault";

/** Events by name, with what each carries. */
export interface MachineEvents {
  /** The guest's shell or agent is there (a prepared guest), or its kernel started (any other). */
  up: [];
  /** Bytes on COM1 (0) .. COM4 (3), boot messages included. */
  serial: [port: number, bytes: Uint8Array];
  /** The guest reboots, by itself or because it was reset. */
  reset: [byGuest: boolean];
  /** The CPU was halted by `pause`, or goes on. */
  pause: [];
  resume: [];
  /** The guest was asked to switch itself off. */
  powerdown: [];
  /** A device is unplugged, and what it was connected to is free again. */
  deviceDeleted: [id: string | undefined, path: string];
  /** The guest was asked to let go of a device and did not. */
  deviceKept: [id: string | undefined, path: string];
  /** The guest says that its balloon has another size: bytes of memory that it has left. */
  balloon: [actual: number];
  /** A request of the guest's to a drive failed. */
  blockError: [drive: string, operation: "read" | "write"];
  /** The machine ended; `error` with "fault". */
  end: [reason: MachineEnd, error: Error | undefined];
}
