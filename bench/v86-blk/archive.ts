import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { debFileName, unpackDeb } from "../../src/host/node/guest/apt.ts";
import { defaultCacheDir } from "../../src/host/node/guest/cache.ts";
import { type CpioEntry, writeCpio } from "../../src/host/node/guest/cpio.ts";
import type { PreparedGuest } from "../../src/host/node/guest/guest-cache.ts";
import { packagesFolder, recordedGuests } from "../../src/host/node/guest/guest-cache.ts";
import { collectModules } from "../../src/host/node/guest/modules.ts";

/** The driver of v86's IDE controller, and that of the disks behind it. */
const PEER_MODULES = ["ata_piix", "sd_mod"];

/**
 * What the stock guest lacks for this bench, as an archive to put behind its own: the peer's drivers from the same kernel package, a
 * script that loads them, and the load.
 */
export async function benchArchive(guest: PreparedGuest, folder: string): Promise<Uint8Array> {
  const tree = join(folder, "kernel");
  mkdirSync(tree);
  await unpackDeb(await kernelPackage(guest), tree);
  const modules = await collectModules(join(tree, "lib/modules", guest.kernelVersion), PEER_MODULES);
  const entries: CpioEntry[] = modules.map(({ name, data }) => ({ type: "file", path: `bench/${name}.ko`, data }));
  const script = modules.map(({ name }) => `insmod /bench/${name}.ko 2>/dev/null\n`).join("");
  return writeCpio([
    { type: "directory", path: "bench" },
    ...entries,
    { type: "file", path: "bench/modules", data: Buffer.from(script) },
    { type: "file", path: "bench/load", data: compileLoad(folder), mode: 0o755 },
  ]);
}

async function kernelPackage(guest: PreparedGuest): Promise<string> {
  const cache = defaultCacheDir();
  const recorded = (await recordedGuests(cache)).find(({ manifest }) => manifest.id === guest.id);
  const kernel = recorded?.manifest.packages.find(({ name }) => name.startsWith("linux-image-"));
  if (kernel === undefined) throw new Error("the guest's kernel package is gone; run: virtkit guest --refresh");
  return join(packagesFolder(cache), debFileName(kernel));
}

function compileLoad(folder: string): Uint8Array {
  const source = fileURLToPath(new URL("load.c", import.meta.url));
  const program = join(folder, "load");
  const target = ["-m32", "-static", "-nostdlib", "-ffreestanding", "-fno-pic", "-no-pie", "-fno-stack-protector"];
  const { status, error } = spawnSync("cc", ["-O2", ...target, "-o", program, source], { stdio: "inherit" });
  if (status !== 0)
    throw error ?? new Error("cc could not compile bench/v86-blk/load.c for i386; install gcc (amd64 or i386)");
  return readFileSync(program);
}
