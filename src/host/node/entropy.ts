import { randomFillSync } from "node:crypto";
import type { EntropySource } from "../../backend/entropy/types.ts";

/** The operating system's generator, through OpenSSL. */
export function createEntropySource(): EntropySource {
  return { name: "node:crypto", fill: (into) => void randomFillSync(into) };
}
