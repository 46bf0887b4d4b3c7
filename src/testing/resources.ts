import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";

/** What this process holds of the kernel's. */
export function heldResources(mapsOf = "memfd:"): { descriptors: number; mappings: number } {
  const maps = readFileSync("/proc/self/maps", "utf8").split("\n");
  return {
    descriptors: readdirSync("/proc/self/fd").length,
    mappings: maps.filter((line) => line.includes(mapsOf)).length,
  };
}

/** After a thousand cycles of the same thing. Fewer than before is what others in the process gave back meanwhile. */
export function assertNothingLeft(before: ReturnType<typeof heldResources>, mapsOf?: string): void {
  const now = heldResources(mapsOf);
  assert.ok(now.descriptors <= before.descriptors, `descriptors: ${before.descriptors} before, ${now.descriptors} now`);
  assert.ok(now.mappings <= before.mappings, `mappings: ${before.mappings} before, ${now.mappings} now`);
}
