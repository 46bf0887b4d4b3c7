import { randomBytes } from "node:crypto";
import * as fs from "node:fs/promises";
import { join } from "node:path";
import { OverlayBlockBackend } from "../../backend/block/overlay.ts";
import type { BlockBackend } from "../../backend/block/types.ts";
import type { Environment } from "../../common/environment.ts";
import { VirtkitError } from "../../common/error.ts";
import { FileBlockBackend } from "./file-block.ts";

/** QEMU's directory for large temporary files, where $TMPDIR names no other. */
const DEFAULT_FOLDER = "/var/tmp";

/**
 * A sparse file of `capacity` bytes in $TMPDIR (or /var/tmp) that has no name: the host takes it back when it is closed, or this
 * program ends, in whatever way.
 * @throws ERR_VIRTKIT_SCRATCH when it cannot be made
 */
async function openScratchFile(capacity: number, environment: Environment): Promise<FileBlockBackend> {
  const folder = process.env["TMPDIR"] || DEFAULT_FOLDER;
  const path = join(folder, `virtkit-${randomBytes(9).toString("base64url")}.overlay`);
  try {
    const handle = await fs.open(path, "wx", 0o600);
    try {
      await handle.truncate(capacity);
    } finally {
      await handle.close();
    }
    // Flushes have no meaning for what is gone after the next power cut.
    return await FileBlockBackend.open({ path, environment, noFlush: true, discard: "unmap" });
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new VirtkitError(
      "ERR_VIRTKIT_SCRATCH",
      `no temporary file in ${folder} (${why}); set TMPDIR to a directory with room for what the guest writes`,
      { cause },
    );
  } finally {
    await fs.rm(path, { force: true });
  }
}

/** An overlay over an image, with a scratch file. Closes `base` when it fails. @throws ERR_VIRTKIT_SCRATCH */
export async function openOverlay(
  base: BlockBackend,
  options: { readonly environment: Environment },
): Promise<OverlayBlockBackend> {
  try {
    return new OverlayBlockBackend(base, await openScratchFile(base.capacity, options.environment));
  } catch (error) {
    await base.close();
    throw error;
  }
}
