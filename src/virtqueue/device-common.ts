import { VirtkitError } from "../common/error.ts";

export function notInFlight(id: number): VirtkitError {
  return new VirtkitError(
    "ERR_VIRTKIT_NOT_IN_FLIGHT",
    `chain ${id} is not in flight; push each popped chain exactly once`,
  );
}

export function writtenTooMuch(id: number, written: number, room: number): VirtkitError {
  return new VirtkitError(
    "ERR_VIRTKIT_WRITTEN",
    `chain ${id} has room for ${room} bytes, so ${written} cannot have been written`,
  );
}
