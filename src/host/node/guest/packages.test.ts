import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { type AptPackage, parsePackage } from "./apt.ts";
import { choosePackages, compareKernelNames, type PackageLists } from "./packages.ts";
import { privateSources } from "./sources.ts";

const limit = { timeout: 10_000 };
const root = mkdtempSync(join(tmpdir(), "virtkit-packages-"));
after(() => rmSync(root, { recursive: true, force: true }));

const lists = (packages: Readonly<Record<string, readonly string[]>>): PackageLists => ({
  names: async (prefix) => Object.keys(packages).filter((name) => name.startsWith(prefix)),
  find: async (name): Promise<AptPackage | undefined> => {
    const depends = packages[name];
    return depends && { name, version: "1", architecture: "i386", size: 1, sha256: "0", depends };
  },
});
const others = { "busybox-static": [], seabios: [] };
const kernelOf = async (packages: Readonly<Record<string, readonly string[]>>): Promise<string> =>
  (await choosePackages(lists({ ...others, ...packages }), "i386")).kernel.name;

test("the kernel is what the metapackage depends on, unsigned where there is such a build", limit, async () => {
  const kernels = {
    "linux-image-6.1.0-9-686": [],
    "linux-image-6.1.0-9-686-unsigned": [],
    "linux-image-6.1.0-10-686-unsigned": [],
  };
  assert.equal(
    await kernelOf({ "linux-image-686": ["linux-image-6.1.0-9-686"], ...kernels }),
    "linux-image-6.1.0-9-686-unsigned",
  );
  assert.equal(
    await kernelOf({ "linux-image-686": ["linux-image-6.1.0-8-686"], "linux-image-6.1.0-8-686": [] }),
    "linux-image-6.1.0-8-686",
  );
});

test(
  "without a metapackage the highest number wins; debug, real-time and other flavours do not count",
  limit,
  async () => {
    const names = ["6.1.0-9-686", "6.1.0-10-686", "6.1.0-11-686-dbg", "6.1.0-12-rt-686", "6.1.0-13-686-pae"];
    assert.equal(
      await kernelOf(Object.fromEntries(names.map((name) => [`linux-image-${name}`, []]))),
      "linux-image-6.1.0-10-686",
    );
    assert(compareKernelNames("linux-image-6.1.0-9-686", "linux-image-6.1.0-10-686") < 0);
  },
);

test("a release with no kernel is told so, with two ways to go on", limit, async () => {
  await assert.rejects(kernelOf({}), {
    code: "ERR_VIRTKIT_NO_GUEST_KERNEL",
    message: /Debian 13.*-kernel and -initrd/,
  });
});

test("e2fsprogs comes with its libraries, and is left out when one of them is missing", limit, async () => {
  const kernel = { "linux-image-686": ["linux-image-6.1.0-9-686"], "linux-image-6.1.0-9-686": [] };
  const names = async (packages: Readonly<Record<string, readonly string[]>>): Promise<string[]> =>
    (await choosePackages(lists({ ...others, ...kernel, ...packages }), "i386")).all.map((item) => item.name).slice(3);
  assert.deepEqual(
    await names({ e2fsprogs: ["libc6", "libext2fs2", "logsave"], libc6: ["libgcc-s1"], libext2fs2: ["libc6"] }),
    ["e2fsprogs", "libc6", "libext2fs2"],
  );
  assert.deepEqual(await names({ e2fsprogs: ["libc6"] }), []);
  assert.deepEqual(await names({}), []);
});

test("a stanza is read with its dependencies, the first of alternatives", limit, () => {
  const text = [
    "Package: a",
    "Version: 1:2.3-4+b1",
    "Architecture: i386",
    "Pre-Depends: libc6 (>= 2.34), libb:any",
    "Depends: c | d, e (= 1)",
    "Size: 42",
    "SHA256: ABCDEF",
    "Description: text",
    " Size: 7",
    "",
    "Package: b",
  ].join("\n");
  assert.deepEqual(parsePackage(text), {
    name: "a",
    version: "1:2.3-4+b1",
    architecture: "i386",
    size: 42,
    sha256: "abcdef",
    depends: ["libc6", "libb", "c", "e"],
  });
  assert.equal(parsePackage("Package: a\n"), undefined);
});

const etc = (name: string, files: Readonly<Record<string, string>>): string => {
  const folder = join(root, name);
  mkdirSync(join(folder, "sources.list.d"), { recursive: true });
  for (const [path, text] of Object.entries(files)) writeFileSync(join(folder, path), text);
  return folder;
};

test("sources of both forms are copied without limits to the machine's architecture", limit, async () => {
  const folder = etc("both", {
    "sources.list":
      "# comment\ndeb [arch=amd64 signed-by=/k.gpg] http://x/debian trixie main\ndeb [arch=amd64] http://y z w\ndeb-src http://x/debian trixie main\n",
    "sources.list.d/a.sources":
      "Types: deb deb-src\nURIs: http://x\nSuites: trixie trixie-updates\nArchitectures: amd64\nSigned-By: /k.gpg\n",
    "sources.list.d/b.sources.disabled": "Types: deb\n",
  });
  const sources = await privateSources(folder, undefined);
  assert.deepEqual(
    sources.map(({ name }) => name),
    ["00-main.list", "a.sources"],
  );
  assert.equal(sources[0].text, "deb [signed-by=/k.gpg] http://x/debian trixie main\ndeb  http://y z w\n");
  assert.equal(sources[1].text, "Types: deb\nURIs: http://x\nSuites: trixie trixie-updates\nSigned-By: /k.gpg\n\n");
  const other = await privateSources(folder, "bookworm");
  assert.match(other[0].text, /debian bookworm main/);
  assert.match(other[1].text, /Suites: bookworm bookworm-updates/);
});

test("no sources at all is an error", limit, async () => {
  await assert.rejects(privateSources(etc("none", { "sources.list": "# deb http://x y z\n" }), undefined), {
    code: "ERR_VIRTKIT_NO_SOURCES",
  });
});
