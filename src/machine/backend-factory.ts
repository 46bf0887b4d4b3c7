import type { BlockBackend } from "../backend/block/types.ts";
import type { CharBackend } from "../backend/char/types.ts";
import type { EntropySource } from "../backend/entropy/types.ts";
import type { ChardevOptions, DriveOptions } from "./description.ts";

/** Where random bytes come from: the host's generator, or a device file. */
export type EntropyOptions =
  | { readonly type: "builtin" }
  | { readonly type: "file"; readonly path: string; readonly id: string };

/**
 * Opens what lies outside the machine. The host's part (files, terminals, sockets) implements it. A failure is a VirtkitError
 * whose message says what could not be opened and why; the caller adds the option.
 */
export interface BackendFactory {
  /** Only called for a drive with a file. */
  openDrive(options: DriveOptions): Promise<BlockBackend>;
  /** Only called for a chardev that is not open already. */
  openChardev(options: ChardevOptions): Promise<CharBackend>;
  /** The default export of a user's module. */
  loadModule(file: string): Promise<unknown>;
  openEntropy(options: EntropyOptions): Promise<EntropySource>;
}
