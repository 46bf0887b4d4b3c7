import type { Environment } from "../../common/environment.ts";
import { VirtkitError } from "../../common/error.ts";
import { baseName, faultText } from "../../common/fault-text.ts";
import type { DiskContext } from "./disk.ts";
import { DiskBackend } from "./disk-backend.ts";
import { checkDisk } from "./disk-check.ts";

/** Milliseconds that a request, and opening the disk, may take unless said otherwise. */
export const DISK_TIMEOUT = 10_000;

export interface OpenDiskOptions {
  readonly environment: Environment;
  /** For messages; default "the disk". */
  readonly name?: string;
  /** What {@link DiskContext.options} has. Default nothing. */
  readonly options?: Readonly<Record<string, string>>;
  /** Milliseconds that opening may take, and a request before it becomes an I/O error; 0 for as long as it takes. Default 10000. */
  readonly timeout?: number;
  /** Rejects when opening is not to be waited for any longer. */
  readonly stopped?: Promise<never>;
  /** Default false. */
  readonly readOnly?: boolean;
  /** Flushes are answered without being done. Default false. */
  readonly noFlush?: boolean;
}

/**
 * Makes a back end of a user's disk: a `Disk`, a function that opens one, or a `BlockBackend`, which is then kept at arm's length too.
 * @throws ERR_VIRTKIT_MODULE when it is no disk, or cannot be opened
 */
export async function openDisk(source: unknown, options: OpenDiskOptions): Promise<DiskBackend> {
  const { environment, name = "the disk", timeout = DISK_TIMEOUT, readOnly = false, noFlush = false } = options;
  const context: DiskContext = {
    options: options.options ?? {},
    readOnly,
    log: (message, level = "warn") => environment.log.log(level, `${name}: ${message}`),
  };
  const given =
    typeof source === "function"
      ? await open(source as Factory, context, { name, environment, timeout, stopped: options.stopped })
      : source;
  return new DiskBackend(checkDisk(given, name), { name, environment, timeout, readOnly, noFlush });
}

type Factory = (context: DiskContext) => unknown;

interface Opening {
  readonly name: string;
  readonly environment: Environment;
  readonly timeout: number;
  readonly stopped: Promise<never> | undefined;
}

async function open(factory: Factory, context: DiskContext, opening: Opening): Promise<unknown> {
  const { name, environment, timeout, stopped } = opening;
  let cancel = (): void => {};
  const over = new Promise<never>((_, reject) => {
    const late = `${name}: opening it takes longer than ${timeout / 1000} s; its function has to return the disk (the drive's timeout=SECONDS changes how long it waits)`;
    if (timeout > 0) cancel = environment.after(timeout, () => reject(new VirtkitError("ERR_VIRTKIT_MODULE", late)));
  });
  try {
    return await Promise.race([callIt(factory, context, name), over, ...(stopped === undefined ? [] : [stopped])]);
  } finally {
    cancel();
  }
}

async function callIt(factory: Factory, context: DiskContext, name: string): Promise<unknown> {
  try {
    return await factory(context);
  } catch (cause) {
    const why = faultText(cause, baseName(name));
    throw new VirtkitError("ERR_VIRTKIT_MODULE", `${name}: opening it failed: ${why}`, { cause });
  }
}
