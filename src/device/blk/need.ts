import { VirtkitError } from "../../common/error.ts";

export const isPowerOfTwo = (n: number): boolean => n > 0 && Number.isInteger(Math.log2(n));
export const isWithin = (n: number, low: number, high: number): boolean => Number.isInteger(n) && n >= low && n <= high;

/** @throws ERR_VIRTKIT_BLK_OPTION unless `ok`, naming the property `what` and the values it may have */
export function need(ok: boolean, what: string, range: string): void {
  if (!ok) throw new VirtkitError("ERR_VIRTKIT_BLK_OPTION", `block device: ${what} is out of range; give ${range}`);
}
