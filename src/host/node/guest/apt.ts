import { access, mkdir, readdir, readFile, rename, stat, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { VirtkitError } from "../../../common/error.ts";
import { type RunOptions, type RunResult, run } from "./process.ts";
import type { OnGuestProgress } from "./progress.ts";
import { privateSources } from "./sources.ts";

/** A package as the lists know it. */
export interface AptPackage {
  readonly name: string;
  readonly version: string;
  readonly architecture: string;
  readonly size: number;
  /** Of the .deb file, in lower-case hexadecimal. */
  readonly sha256: string;
  /** Names of the packages it needs (Pre-Depends and Depends, the first of alternatives). */
  readonly depends: readonly string[];
}

export interface AptOptions {
  /** Of the guest: `i386`. */
  readonly architecture: string;
  /** Another release of the same distribution to take packages from, such as `bookworm`. */
  readonly suite?: string | undefined;
  /** Where the machine's APT is configured. Default /etc/apt. */
  readonly etc?: string;
  readonly signal?: AbortSignal | undefined;
  readonly onProgress?: OnGuestProgress | undefined;
}

const quote = (value: string): string => `"${value.replaceAll("\\", "/").replaceAll('"', "")}"`;

const lastLines = (text: string, count: number): string => text.trim().split("\n").slice(-count).join("\n");

const NOT_DEBIAN =
  "preparing a guest takes its kernel from Debian packages and needs apt-get, apt-cache, apt-config and dpkg-deb; " +
  "on another system give a kernel and an initramfs of your own with -kernel and -initrd";

/**
 * APT with lists, cache and settings of its own in a private folder: it needs no root and changes nothing of the
 * machine's. Sources are copies of the machine's; keyrings, proxies and credentials are the machine's own.
 */
export class PrivateApt {
  readonly #root: string;
  readonly #options: AptOptions;
  readonly #config: string;

  private constructor(root: string, options: AptOptions) {
    this.#root = root;
    this.#options = options;
    this.#config = join(root, "apt.conf");
  }

  /**
   * @param root an absolute path that is created; the caller removes it
   * @throws VirtkitError ERR_VIRTKIT_NOT_DEBIAN, ERR_VIRTKIT_NO_SOURCES
   */
  static async create(root: string, options: AptOptions): Promise<PrivateApt> {
    const apt = new PrivateApt(root, options);
    const etc = options.etc ?? "/etc/apt";
    for (const folder of ["state/lists/partial", "cache/archives/partial", "etc/sources.list.d", "etc/preferences.d"]) {
      await mkdir(join(root, folder), { recursive: true });
    }
    await writeFile(join(root, "state/status"), "");
    const settings = await apt.#machineSettings();
    await writeFile(apt.#config, apt.#settings(etc, settings));
    const sources = await privateSources(etc, options.suite);
    for (const source of sources) await writeFile(join(root, "etc/sources.list.d", source.name), source.text);
    return apt;
  }

  /** The machine's Acquire settings (proxies, retries, certificates), without its hooks. */
  async #machineSettings(): Promise<string> {
    const dump = await this.#run("apt-config", ["dump"], {});
    const lines = Buffer.from(dump.stdout).toString("utf8").split("\n");
    return lines.filter((line) => line.startsWith("Acquire::") && !line.startsWith("Acquire::Languages")).join("\n");
  }

  #settings(etc: string, machine: string): string {
    const { architecture } = this.#options;
    const lines = [
      machine,
      `Dir::State ${quote(join(this.#root, "state"))};`,
      `Dir::State::status ${quote(join(this.#root, "state/status"))};`,
      `Dir::Cache ${quote(join(this.#root, "cache"))};`,
      `Dir::Etc ${quote(join(this.#root, "etc"))};`,
      'Dir::Etc::parts "/dev/null";',
      'Dir::Etc::main "/dev/null";',
      `Dir::Etc::trusted ${quote(join(etc, "trusted.gpg"))};`,
      `Dir::Etc::trustedparts ${quote(join(etc, "trusted.gpg.d"))};`,
      `Dir::Etc::netrc ${quote(join(etc, "auth.conf"))};`,
      `Dir::Etc::netrcparts ${quote(join(etc, "auth.conf.d"))};`,
      `APT::Architecture ${quote(architecture)};`,
      `APT::Architectures { ${quote(architecture)}; };`,
      'Acquire::Languages "none";',
      'Acquire::IndexTargets::deb::DEP-11 { DefaultEnabled "false"; };',
      'Acquire::IndexTargets::deb::Contents-deb { DefaultEnabled "false"; };',
      'Acquire::Retries "2";',
    ];
    // APT as root would hand the download to a user who may not enter a private folder.
    if (process.getuid?.() === 0) lines.push('APT::Sandbox::User "root";');
    return `${lines.join("\n")}\n`;
  }

  async #run(tool: string, args: readonly string[], options: RunOptions): Promise<RunResult> {
    try {
      return await run(tool, args, {
        ...options,
        signal: this.#options.signal,
        env: tool === "apt-config" ? {} : { APT_CONFIG: this.#config },
      });
    } catch (cause) {
      if (!(cause instanceof VirtkitError) || cause.code !== "ERR_VIRTKIT_TOOL_MISSING") throw cause;
      throw new VirtkitError("ERR_VIRTKIT_NOT_DEBIAN", `${tool} is not installed: ${NOT_DEBIAN}`, { cause });
    }
  }

  /** Runs apt-get with its progress turned into ours; `total` gives the scale of 100 %. */
  async #get(args: readonly string[], stage: "update" | "download", total: number, cwd?: string): Promise<RunResult> {
    const report = this.#options.onProgress;
    const unit = stage === "download" ? "bytes" : "steps";
    report?.({ stage, done: 0, total, unit });
    const result = await this.#run("apt-get", ["-q", "-o", "APT::Status-Fd=3", ...args], {
      ...(cwd === undefined ? {} : { cwd }),
      onStatusLine: (line) => {
        const [kind, , percent] = line.split(":");
        const share = Number(percent) / 100;
        if (kind === "dlstatus" && share >= 0 && share <= 1)
          report?.({ stage, done: Math.floor(share * total), total, unit });
      },
    });
    report?.({ stage, done: total, total, unit });
    return result;
  }

  /**
   * Fetches the package lists. One source that does not answer is no failure as long as some list came.
   * @throws VirtkitError ERR_VIRTKIT_NO_NETWORK
   */
  async update(): Promise<void> {
    const result = await this.#get(["update"], "update", 100);
    const lists = await readdir(join(this.#root, "state/lists"));
    if (lists.some((name) => name.includes("_Packages"))) return;
    throw new VirtkitError(
      "ERR_VIRTKIT_NO_NETWORK",
      `the package lists for ${this.#options.architecture} could not be fetched: look at the network and at the ` +
        "machine's package sources and try again, or give a kernel and an initramfs of your own with -kernel and " +
        `-initrd. apt-get said:\n${lastLines(result.stderr, 4)}`,
    );
  }

  /** All package names that begin with `prefix`. */
  async names(prefix: string): Promise<string[]> {
    const result = await this.#run("apt-cache", ["pkgnames", prefix], {});
    return Buffer.from(result.stdout).toString("utf8").split("\n").filter(Boolean);
  }

  /** The version of `name` that would be installed, or nothing when there is no such package. */
  async find(name: string): Promise<AptPackage | undefined> {
    const result = await this.#run("apt-cache", ["show", "--no-all-versions", name], {});
    const text = Buffer.from(result.stdout).toString("utf8");
    return result.code === 0 ? parsePackage(text) : undefined;
  }

  /**
   * Downloads packages into `folder`, each as NAME_SHA256.deb; those already there are kept.
   * @throws VirtkitError ERR_VIRTKIT_NO_NETWORK, ERR_VIRTKIT_DISK_FULL
   */
  async download(packages: readonly AptPackage[], folder: string): Promise<void> {
    const wanted: AptPackage[] = [];
    for (const item of packages) if (!(await exists(join(folder, debFileName(item))))) wanted.push(item);
    if (wanted.length === 0) return;
    const incoming = join(this.#root, "incoming");
    await mkdir(incoming, { recursive: true });
    const total = wanted.reduce((sum, item) => sum + item.size, 0);
    const names = wanted.map((item) => `${item.name}=${item.version}`);
    const result = await this.#get(["download", ...names], "download", total, incoming);
    if (result.code !== 0) throw downloadError(result.stderr);
    for (const file of await readdir(incoming)) {
      const item = wanted.find((candidate) => basename(file).startsWith(`${candidate.name}_`));
      if (item && (await stat(join(incoming, file))).size === item.size) {
        await rename(join(incoming, file), join(folder, debFileName(item)));
      }
    }
  }
}

const downloadError = (stderr: string): VirtkitError =>
  /No space left|ENOSPC/.test(stderr)
    ? new VirtkitError(
        "ERR_VIRTKIT_DISK_FULL",
        "the disk is full; make room, or put the cache elsewhere with VIRTKIT_CACHE",
      )
    : new VirtkitError(
        "ERR_VIRTKIT_NO_NETWORK",
        `the guest's packages could not be downloaded; look at the network and try again. apt-get said:\n${lastLines(stderr, 4)}`,
      );

const exists = (path: string): Promise<boolean> =>
  access(path).then(
    () => true,
    () => false,
  );

/** The file that holds a package in the cache. */
export const debFileName = (item: AptPackage): string => `${item.name}_${item.sha256.slice(0, 16)}.deb`;

/** The first stanza of `apt-cache show`. */
export const parsePackage = (text: string): AptPackage | undefined => {
  const fields = new Map<string, string>();
  for (const line of text.split("\n\n", 1)[0].split("\n")) {
    const field = /^([A-Za-z0-9-]+):\s*(.*)$/.exec(line);
    if (field) fields.set(field[1], field[2]);
  }
  const name = fields.get("Package");
  const version = fields.get("Version");
  const sha256 = fields.get("SHA256");
  if (!name || !version || !sha256) return undefined;
  const depends = [fields.get("Pre-Depends"), fields.get("Depends")]
    .flatMap((list) => (list ?? "").split(","))
    .map((item) => item.split("|")[0].trim().split(/[ (:]/)[0])
    .filter(Boolean);
  return {
    name,
    version,
    architecture: fields.get("Architecture") ?? "",
    size: Number(fields.get("Size") ?? 0),
    sha256: sha256.toLowerCase(),
    depends,
  };
};

/** Unpacks a .deb below `folder`. */
export const unpackDeb = async (deb: string, folder: string, signal?: AbortSignal): Promise<void> => {
  const result = await run("dpkg-deb", ["--extract", deb, folder], { signal });
  if (result.code === 0) return;
  if (/No space left/.test(result.stderr)) throw downloadError(result.stderr);
  throw new VirtkitError(
    "ERR_VIRTKIT_BAD_PACKAGE",
    `${basename(deb)} could not be unpacked; try: virtkit guest --refresh. dpkg-deb said:\n${lastLines(result.stderr, 3)}`,
  );
};

/** What the machine calls itself, for messages and for sources: `Debian GNU/Linux 12 (bookworm)`, `bookworm`. */
export const readRelease = async (path = "/etc/os-release"): Promise<{ title: string; codename: string }> => {
  const text = await readFile(path, "utf8").catch(() => "");
  const value = (key: string): string => new RegExp(`^${key}="?([^"\n]*)"?$`, "m").exec(text)?.[1] ?? "";
  return { title: value("PRETTY_NAME") || "this system", codename: value("VERSION_CODENAME") };
};
