import { join } from "node:path";
import { VirtkitError } from "../../../common/error.ts";
import { makeFolder } from "../make-folder.ts";
import { GuestBuilder, guestFiles, recipeOf } from "./builder.ts";
import { cacheError, defaultCacheDir, sweepTemporary, temporaryFolder, withLock } from "./cache.ts";
import {
  allDownloaded,
  guestsFolder,
  install,
  type Manifest,
  type PreparedGuest,
  pruneGuests,
  prunePackages,
  recordedGuests,
  toGuest,
  wholeGuests,
} from "./guest-cache.ts";
import { GUEST_ARCHITECTURES } from "./packages.ts";
import type { OnGuestProgress } from "./progress.ts";

export interface PrepareGuestOptions {
  /** The guest's architecture. Default and only one so far: `i386`. */
  readonly arch?: string;
  /** Default: `defaultCacheDir()`. */
  readonly cacheDir?: string;
  /** Looks for newer packages even when a guest is cached. */
  readonly refresh?: boolean;
  /** Another release of the machine's distribution to take the packages from, such as `bookworm`. */
  readonly suite?: string;
  /** A folder laid out like /etc/apt to take sources and keyrings from. Default /etc/apt. */
  readonly aptFolder?: string;
  readonly onProgress?: OnGuestProgress;
  /** Stops at once: tools are killed, unfinished files removed, nothing that was cached is lost. */
  readonly signal?: AbortSignal;
}

/**
 * A guest of stock Debian packages: from the cache when there, else made without root from what the machine's own
 * package sources offer. Several processes may call it at once; one does the work.
 * @throws VirtkitError with the way out: ERR_VIRTKIT_GUEST_ARCH, ERR_VIRTKIT_NOT_DEBIAN, ERR_VIRTKIT_NO_SOURCES,
 *   ERR_VIRTKIT_NO_NETWORK, ERR_VIRTKIT_NO_GUEST_KERNEL, ERR_VIRTKIT_NO_PACKAGE, ERR_VIRTKIT_BAD_PACKAGE,
 *   ERR_VIRTKIT_DISK_FULL, ERR_VIRTKIT_CACHE, ERR_VIRTKIT_ABORTED
 */
export const prepareGuest = async (options: PrepareGuestOptions = {}): Promise<PreparedGuest> => {
  const arch = options.arch ?? "i386";
  if (!GUEST_ARCHITECTURES.includes(arch)) {
    throw new VirtkitError(
      "ERR_VIRTKIT_GUEST_ARCH",
      `arch: no guest for ${arch}; known: ${GUEST_ARCHITECTURES.join(", ")}`,
    );
  }
  const cacheDir = options.cacheDir ?? defaultCacheDir();
  const files = await guestFiles();
  const recipe = recipeOf(files);
  const fits = (manifest: Manifest): boolean =>
    manifest.arch === arch && (options.suite === undefined || manifest.suite === options.suite);
  const cached = async (): Promise<PreparedGuest | undefined> => {
    const found = (await wholeGuests(cacheDir)).find(({ manifest }) => fits(manifest) && manifest.recipe === recipe);
    return found && toGuest(found.folder, found.manifest);
  };
  const hit = options.refresh ? undefined : await cached();
  if (hit) return hit;

  const parent = guestsFolder(cacheDir);
  try {
    await makeFolder(parent);
  } catch (cause) {
    throw cacheError(cause, cacheDir);
  }
  const onWait = (): void => options.onProgress?.({ stage: "wait", done: 0, total: 1, unit: "steps" });
  return withLock(cacheDir, options.signal, onWait, async () => {
    const made = options.refresh ? undefined : await cached();
    if (made) return made;
    await sweepTemporary(parent);
    const work = temporaryFolder(parent);
    try {
      const builder = new GuestBuilder(cacheDir, work.path, arch, options);
      const older = (await recordedGuests(cacheDir)).find(({ manifest }) => fits(manifest))?.manifest;
      const reusable = !options.refresh && older && (await allDownloaded(cacheDir, older.packages));
      const packages = reusable ? older.packages : await builder.fetchPackages();
      const { folder, manifest } = await builder.build(packages, files);
      const guest = await install(folder, join(parent, manifest.id), manifest);
      await pruneGuests(cacheDir, manifest);
      await prunePackages(cacheDir);
      return guest;
    } catch (cause) {
      throw cacheError(cause, cacheDir);
    } finally {
      await work.remove();
    }
  });
};
