/**
 * An error of the caller's: a wrong option, a missing file, a call out of order. `code` is stable and starts with
 * `ERR_VIRTKIT_`; the message names the option or argument and the way out. What a guest does wrong is never thrown.
 */
export class VirtkitError extends Error {
  readonly code: `ERR_VIRTKIT_${string}`;

  constructor(code: `ERR_VIRTKIT_${string}`, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = "VirtkitError";
    this.code = code;
  }
}

/** A number as messages show addresses: 0x1f000. */
export const hex = (value: number): string => `0x${value.toString(16)}`;
