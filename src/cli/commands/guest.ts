import { VirtkitError } from "../../common/error.ts";
import { oneOf, suggest } from "../../machine/nearest.ts";
import { UsageError } from "../../machine/usage-error.ts";
import type { CliOutput } from "../output.ts";

export interface GuestCommandOptions {
  readonly action: string;
  /** Of the guest to remove; undefined for all. */
  readonly id?: string | undefined;
  readonly cache?: string;
  readonly refresh?: boolean;
  readonly suite?: string;
  readonly arch?: string;
}

const ACTIONS = ["prepare", "list", "remove"];

/** `virtkit guest`: prepares, lists or removes guests. Returns the status to exit with. */
export async function guestCommand(options: GuestCommandOptions, output: CliOutput): Promise<number> {
  const { action, id } = options;
  const option = `guest ${action}`;
  if (!ACTIONS.includes(action))
    throw new UsageError(`'${action}' is not an action`, {
      option,
      hint: suggest(action, ACTIONS, `Valid: ${oneOf(ACTIONS)}.`),
    });
  if (id !== undefined && action !== "remove")
    throw new UsageError(`unexpected argument '${id}'`, { option, hint: "Only `virtkit guest remove` takes an id." });
  if (action === "list") await list(options, output);
  else if (action === "remove") await remove(options, output);
  else await prepare(options, output);
  return 0;
}

async function list({ cache }: GuestCommandOptions, output: CliOutput): Promise<void> {
  const { listGuests } = await import("../../host/node/guest/index.ts");
  const guests = await listGuests(cache);
  if (guests.length === 0) output.out("No guest is prepared yet; `virtkit guest` prepares one.\n");
  for (const guest of guests)
    output.out(`${guest.id}  ${guest.arch}  Linux ${guest.kernelVersion}  ${megabytes(guest.size)}  ${guest.folder}\n`);
}

async function remove({ cache, id }: GuestCommandOptions, output: CliOutput): Promise<void> {
  const { listGuests, removeGuests } = await import("../../host/node/guest/index.ts");
  if (id !== undefined) {
    const known = (await listGuests(cache)).map((guest) => guest.id);
    if (!known.includes(id))
      throw new UsageError(`there is no guest '${id}'`, { option: "guest remove", hint: suggest(id, known) });
  }
  for (const removed of await removeGuests(cache, id)) output.out(`removed ${removed}\n`);
}

/** Ctrl-C stops it at once; nothing half-made stays. */
async function prepare(options: GuestCommandOptions, output: CliOutput): Promise<void> {
  const { prepareGuest, progressRenderer } = await import("../../host/node/guest/index.ts");
  const progress = progressRenderer();
  const abort = new AbortController();
  const stop = (): void => abort.abort();
  process.once("SIGINT", stop).once("SIGTERM", stop);
  try {
    const { arch, suite, cache, refresh } = options;
    const guest = await prepareGuest({
      ...(arch === undefined ? {} : { arch }),
      ...(suite === undefined ? {} : { suite }),
      ...(cache === undefined ? {} : { cacheDir: cache }),
      refresh: refresh ?? false,
      onProgress: progress.onProgress,
      signal: abort.signal,
    });
    progress.finish();
    output.out(`Linux ${guest.kernelVersion} (${guest.arch}), ${megabytes(guest.size)}, in ${guest.folder}\n`);
  } catch (error) {
    if (error instanceof VirtkitError && error.code === "ERR_VIRTKIT_GUEST_ARCH")
      throw UsageError.of(`--arch ${options.arch}`, error);
    throw error;
  } finally {
    progress.finish();
    process.removeListener("SIGINT", stop).removeListener("SIGTERM", stop);
  }
}

const megabytes = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
