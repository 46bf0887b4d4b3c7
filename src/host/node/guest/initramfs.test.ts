import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import { fakeModule, zstdHello } from "../../../testing/guest-packages.ts";
import { type CpioEntry, writeCpio } from "./cpio.ts";
import { ElfFile } from "./elf.ts";
import { buildInitramfs, hideApplets } from "./initramfs.ts";
import { collectModules, modulesAlias, modulesDep } from "./modules.ts";

const limit = { timeout: 10_000 };
const root = mkdtempSync(join(tmpdir(), "virtkit-initramfs-"));
after(() => rmSync(root, { recursive: true, force: true }));

let count = 0;
const tree = (files: Readonly<Record<string, Uint8Array | string>>): string => {
  const folder = join(root, String(count++));
  for (const [path, data] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, path)), { recursive: true });
    writeFileSync(join(folder, path), data);
  }
  return folder;
};

interface Read {
  readonly name: string;
  readonly mode: number;
  readonly major: number;
  readonly minor: number;
  readonly data: Buffer;
}

/** Reads an archive by the form's description (cpio(5), "New ASCII Format"). */
const readCpio = (bytes: Uint8Array): Read[] => {
  const archive = Buffer.from(bytes);
  const out: Read[] = [];
  for (let at = 0; ; ) {
    assert.equal(archive.toString("latin1", at, at + 6), "070701");
    const field = (index: number): number =>
      Number.parseInt(archive.toString("latin1", at + 6 + index * 8, at + 14 + index * 8), 16);
    const size = field(6);
    const nameEnd = at + 110 + field(11);
    const name = archive.toString("utf8", at + 110, nameEnd - 1);
    const dataAt = Math.ceil(nameEnd / 4) * 4;
    if (name === "TRAILER!!!") return out;
    out.push({
      name,
      mode: field(1),
      major: field(9),
      minor: field(10),
      data: archive.subarray(dataAt, dataAt + size),
    });
    at = Math.ceil((dataAt + size) / 4) * 4;
  }
};

test("an archive holds folders, files of any length, links and device nodes", limit, () => {
  const entries: CpioEntry[] = [
    { type: "directory", path: "dev" },
    { type: "device", path: "dev/console", major: 5, minor: 1 },
    { type: "symlink", path: "sh", target: "busybox" },
    ...[0, 1, 2, 3, 4, 5].map(
      (size): CpioEntry => ({ type: "file", path: `f${size}`, data: new Uint8Array(size).fill(size), mode: 0o755 }),
    ),
  ];
  const read = readCpio(writeCpio(entries));
  assert.deepEqual(
    read.map(({ name, mode }) => [name, mode.toString(8)]),
    [
      ["dev", "40755"],
      ["dev/console", "20600"],
      ["sh", "120777"],
      ...[0, 1, 2, 3, 4, 5].map((size) => [`f${size}`, "100755"]),
    ],
  );
  assert.deepEqual([read[1].major, read[1].minor], [5, 1]);
  assert.equal(read[2].data.toString(), "busybox");
  for (const size of [0, 1, 2, 3, 4, 5]) assert.deepEqual([...read[3 + size].data], new Array(size).fill(size));
  assert.deepEqual(writeCpio(entries), writeCpio(entries), "equal input gives equal bytes");
});

const modules = {
  "modules.builtin": "kernel/drivers/built-in_one.ko\n",
  "kernel/a.ko": fakeModule(["b", "c"], ["alias-of-a"]),
  "kernel/b.ko": fakeModule(["d-d"]),
  "kernel/c.ko": fakeModule(["d_d", "built_in_one"]),
  "kernel/d-d.ko": fakeModule([]),
};

test("modules come after all they need; built-in and unknown ones are left out", limit, async () => {
  const found = await collectModules(tree(modules), ["a", "built_in_one", "no_such"]);
  assert.deepEqual(
    found.map((module) => module.name),
    ["d_d", "b", "c", "a"],
  );
  assert.equal(modulesDep(found).split("\n").at(-2), "kernel/a.ko: kernel/c.ko kernel/b.ko kernel/d-d.ko");
  assert.equal(modulesAlias(found), "alias alias-of-a a\n");
});

test("a module whose need is missing is an error that names both", limit, async () => {
  const folder = tree({ "kernel/a.ko": fakeModule(["gone"]) });
  await assert.rejects(collectModules(folder, ["a"]), { code: "ERR_VIRTKIT_GUEST_MODULE", message: /a needs gone/ });
});

test("packed modules are unpacked", limit, async () => {
  const found = await collectModules(tree({ "kernel/a.ko.zst": zstdHello }), ["a"]).catch(
    (cause: Error) => cause.message,
  );
  // What comes out is read as a module, which "hello" is not.
  assert.match(String(found), /not an ELF file/);
});

test(
  "the initramfs holds busybox, the modules and our files, without e2fsprogs where there is none",
  limit,
  async () => {
    const files = Object.fromEntries(
      Object.entries(modules).map(([path, data]) => [`usr/lib/modules/7.7/${path}`, data]),
    );
    const folder = tree({
      "usr/bin/busybox": "busybox",
      ...files,
      "usr/lib/modules/7.7/kernel/virtio_blk.ko": fakeModule(["d_d"]),
    });
    const read = readCpio(
      await buildInitramfs({ tree: folder, kernelVersion: "7.7", files: new Map([["init", "#!/bin/sh"]]) }),
    );
    const get = (name: string): Read | undefined => read.find((entry) => entry.name === name);
    assert.equal(get("bin/busybox")?.mode, 0o100755);
    assert.equal(get("init")?.mode, 0o100755);
    assert.equal(get("dev/ttyS0")?.minor, 64);
    assert.equal(
      get("etc/virtkit-modules")?.data.toString(),
      "/lib/modules/7.7/kernel/d-d.ko\n/lib/modules/7.7/kernel/virtio_blk.ko\n",
    );
    assert.equal(get("sbin/mke2fs"), undefined);
    const at = (name: string): number => read.findIndex((entry) => entry.name === name);
    for (const { name } of read) {
      if (name.includes("/"))
        assert(at(dirname(name)) >= 0 && at(dirname(name)) < at(name), `the folder of ${name} comes first`);
    }
  },
);

test("an applet is hidden by its last character, and only where its name is certain", limit, () => {
  const text = (value: Uint8Array): string => Buffer.from(value).toString("latin1");
  assert.equal(text(hideApplets(Buffer.from("a\0mke2fs\0mkfifo\0"), ["mke2fs"])), "a\0mke2f_\0mkfifo\0");
  for (const unsure of ["\0xmke2fs\0", "\0mke2fs\0mke2fs\0 \0mke2fs\0", ""]) {
    assert.equal(text(hideApplets(Buffer.from(unsure), ["mke2fs"])), unsure);
  }
});

test("a program's loader and libraries are found by its headers", {
  ...limit,
  skip: process.platform !== "linux" && "needs an ELF program",
}, () => {
  const elf = new ElfFile(readFileSync(process.execPath), "node");
  assert.match(elf.interpreter() ?? "", /ld/);
  assert(
    elf.needed().some((name) => /^(libc|libm|ld)/.test(name)),
    elf.needed().join(),
  );
});

test("what is no ELF file, or is cut short, is refused by name", limit, () => {
  assert.throws(() => new ElfFile(new Uint8Array(100), "some.ko"), {
    code: "ERR_VIRTKIT_BAD_ELF",
    message: /some\.ko/,
  });
  assert.throws(() => new ElfFile(fakeModule(["a"]).subarray(0, 80), "cut.ko"), {
    code: "ERR_VIRTKIT_BAD_ELF",
    message: /cut\.ko/,
  });
});
