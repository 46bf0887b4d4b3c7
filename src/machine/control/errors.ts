import { VirtkitError } from "../../common/error.ts";
import { UsageError } from "../usage-error.ts";

/** The classes of errors of QMP; most are "GenericError". */
export type ControlErrorClass =
  | "GenericError"
  | "CommandNotFound"
  | "DeviceNotActive"
  | "DeviceNotFound"
  | "KVMMissingCap";

/** Why a command was not carried out, for the client. */
export class ControlError extends VirtkitError {
  readonly errorClass: ControlErrorClass;

  constructor(description: string, errorClass: ControlErrorClass = "GenericError", cause?: unknown) {
    super("ERR_VIRTKIT_CONTROL", description, cause === undefined ? undefined : { cause });
    this.errorClass = errorClass;
  }

  /** What the client is told of any failure. */
  static of(error: unknown): ControlError {
    if (error instanceof ControlError) return error;
    if (error instanceof UsageError)
      return new ControlError(
        error.hint === undefined ? error.reason : `${error.reason}. ${error.hint}`,
        "GenericError",
        error,
      );
    return new ControlError(error instanceof Error ? error.message : String(error), "GenericError", error);
  }
}

/** A device that there is not, or no more. */
export const deviceNotFound = (id: string): ControlError =>
  new ControlError(`Device '${id}' not found`, "DeviceNotFound");
