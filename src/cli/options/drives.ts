import type { DriveOptions } from "../../machine/description.ts";
import { UsageError } from "../../machine/usage-error.ts";
import { parseDrive } from "./drive.ts";

/**
 * Every -drive. One without an id gets its interface and its index there: virtio0, virtio1, none0, ... One with if=virtio comes
 * in the order of its index, and without one it takes the first that is free.
 * `snapshot` is for those that do not say snapshot=on or off themselves.
 * @throws UsageError
 */
export function parseDrives(texts: readonly string[], snapshot = false): DriveOptions[] {
  const taken = new Set<string>();
  const drives = texts.map(parseDrive).map(({ index: wanted, id, ownSnapshot = snapshot, ...drive }) => {
    const index = wanted ?? firstFree(taken, drive.interface);
    const place = `${drive.interface}${index}`;
    if (taken.has(place) && drive.interface !== "none")
      throw new UsageError(`drive with bus=0, unit=${index} (index=${index}) exists`, {
        option: drive.option,
        hint: "Leave out index= for the next one.",
      });
    taken.add(place);
    return { index, drive: { ...drive, id: id ?? place, ...(ownSnapshot ? { snapshot: true } : {}) } };
  });
  const onVirtio = drives.filter(({ drive }) => drive.interface === "virtio").sort((a, b) => a.index - b.index);
  return [...drives.filter(({ drive }) => drive.interface === "none"), ...onVirtio].map(({ drive }) => drive);
}

function firstFree(taken: ReadonlySet<string>, kind: string): number {
  let index = 0;
  while (taken.has(`${kind}${index}`)) index++;
  return index;
}
