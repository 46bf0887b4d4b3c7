/** Why the machine starts over. */
export type ResetCause = "guest" | "triple-fault";

/** What a {@link V86Engine} tells, with what each event carries. Listeners run between two turns of the guest's, never inside it. */
export interface V86EngineEvents {
  /** The guest wrote to COM1 (port 0) .. COM4 (port 3). The bytes are the listener's own. */
  serial: [port: number, bytes: Uint8Array];
  /** The guest has been given all input of a serial port. */
  serialDrained: [port: number];
  /** A line that the firmware wrote to its debug port; of machines that boot from a disk. */
  firmware: [line: string];
  /** ACPI S5: the guest switched itself off. The engine has stopped. */
  poweroff: [];
  /**
   * The guest asked for a reset. When no listener calls stop() the functions are reset and the PC boots again; after stop() that
   * happens at the next start().
   */
  reset: [cause: ResetCause];
  /** The CPU halted with interrupts off: nothing but a reset can wake it (Linux without ACPI halts so). */
  halt: [];
  /** v86 itself or a device of ours failed; the engine has stopped for good. */
  fault: [error: Error];
}
