import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { VirtkitError } from "../../../common/error.ts";

export interface SourceFile {
  readonly name: string;
  readonly text: string;
}

const otherSuite = (text: string, codenames: readonly string[], suite: string): string =>
  codenames.reduce((result, codename) => result.replaceAll(new RegExp(`\\b${codename}\\b`, "g"), suite), text);

/** Drops what limits a deb822 source to the machine's own architecture, and sources of source code. */
const deb822 = (text: string): string =>
  text
    .split("\n")
    .filter((line) => !/^Architectures(-Add|-Remove)?:/i.test(line))
    .map((line) => (/^Types:/i.test(line) ? "Types: deb" : line))
    .join("\n");

const oneLine = (text: string): string =>
  text
    .split("\n")
    .filter((line) => /^\s*deb\s/.test(line))
    .map((line) => line.replace(/\[([^\]]*)\]/, (_, options: string) => bracket(options)))
    .join("\n");

const bracket = (options: string): string => {
  const kept = options.split(/\s+/).filter((option) => option !== "" && !/^arch[-+]?=/.test(option));
  return kept.length === 0 ? "" : `[${kept.join(" ")}]`;
};

const DEBIAN_RELEASES = ["bullseye", "bookworm", "trixie", "forky", "duke", "sid"];

/**
 * Copies of the machine's package sources for a private APT: both forms (.list and .sources), without limits to the
 * machine's architecture; with `suite`, its releases' names are replaced.
 * @throws VirtkitError ERR_VIRTKIT_NO_SOURCES
 */
export const privateSources = async (etc: string, suite: string | undefined): Promise<SourceFile[]> => {
  const folder = join(etc, "sources.list.d");
  const names = (await readdir(folder).catch((): string[] => [])).filter((name) => /\.(list|sources)$/.test(name));
  const files = [
    { name: "00-main.list", path: join(etc, "sources.list") },
    ...names.map((name) => ({ name, path: join(folder, name) })),
  ];
  const out: SourceFile[] = [];
  for (const { name, path } of files) {
    const text = await readFile(path, "utf8").catch(() => "");
    const copied = name.endsWith(".sources") ? deb822(text) : oneLine(text);
    if (!/\S/.test(copied)) continue;
    out.push({ name, text: `${suite === undefined ? copied : otherSuite(copied, DEBIAN_RELEASES, suite)}\n` });
  }
  if (out.length === 0) {
    throw new VirtkitError(
      "ERR_VIRTKIT_NO_SOURCES",
      `no package sources are configured in ${etc}: add the distribution's, or give a kernel and an initramfs of ` +
        "your own with -kernel and -initrd",
    );
  }
  return out;
};
