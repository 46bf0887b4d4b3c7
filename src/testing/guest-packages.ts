import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { gzipSync } from "node:zlib";

/** A 32-bit little-endian ELF file with nothing but named sections, as far as tools that look for sections care. */
export const fakeElf = (sections: Readonly<Record<string, Uint8Array>>): Uint8Array => {
  const names = Object.keys(sections);
  const strings = Buffer.from(`\0${names.join("\0")}\0.shstrtab\0`);
  const bodies = [...names.map((name) => sections[name]), strings];
  const headersAt = 52 + bodies.reduce((sum, body) => sum + body.length, 0);
  const out = Buffer.alloc(headersAt + (bodies.length + 1) * 40);
  out.write("\x7fELF", 0, "latin1");
  out.set([1, 1, 1], 4);
  out.writeUInt32LE(headersAt, 32);
  out.writeUInt16LE(52, 40);
  out.writeUInt16LE(40, 46);
  out.writeUInt16LE(bodies.length + 1, 48);
  out.writeUInt16LE(bodies.length, 50);
  let at = 52;
  bodies.forEach((body, index) => {
    const header = headersAt + (index + 1) * 40;
    out.set(body, at);
    out.writeUInt32LE(strings.indexOf(`\0${names[index] ?? ".shstrtab"}\0`) + 1, header);
    out.writeUInt32LE(1, header + 4);
    out.writeUInt32LE(at, header + 16);
    out.writeUInt32LE(body.length, header + 20);
    at += body.length;
  });
  return out;
};

/** A kernel module of no code that says what it needs. */
export const fakeModule = (depends: readonly string[], aliases: readonly string[] = []): Uint8Array =>
  fakeElf({
    ".modinfo": Buffer.from(
      [`depends=${depends.join(",")}`, ...aliases.map((alias) => `alias=${alias}`), ""].join("\0"),
    ),
  });

/** A bzImage whose payload is `kernel`, packed with gzip. */
export const fakeBzImage = (kernel: Uint8Array): Uint8Array => {
  const payload = gzipSync(kernel);
  const out = Buffer.alloc(1024 + payload.length);
  out[0x1f1] = 1;
  out.write("HdrS", 0x202, "latin1");
  out.writeUInt16LE(0x20f, 0x206);
  out.writeUInt32LE(0, 0x248);
  out.writeUInt32LE(payload.length, 0x24c);
  out.set(payload, 1024);
  return out;
};

/** "hello", packed as zstd. */
export const zstdHello: Uint8Array = Uint8Array.of(
  40,
  181,
  47,
  253,
  4,
  88,
  41,
  0,
  0,
  104,
  101,
  108,
  108,
  111,
  163,
  109,
  159,
  136,
);

export interface FakePackage {
  readonly name: string;
  readonly version: string;
  readonly depends?: string;
  readonly files: Readonly<Record<string, Uint8Array | string>>;
}

/** Writes packages and a folder like /etc/apt whose only source is them. @returns that folder */
export const fakeRepository = (root: string, packages: readonly FakePackage[]): string => {
  const stanzas = packages.map((item) => {
    const control = [
      `Package: ${item.name}`,
      `Version: ${item.version}`,
      "Architecture: i386",
      "Maintainer: Nobody <nobody@localhost>",
      ...(item.depends === undefined ? [] : [`Depends: ${item.depends}`]),
      "Description: made for a test",
    ].join("\n");
    const tree = join(root, "trees", item.name);
    for (const [path, data] of Object.entries({ ...item.files, "DEBIAN/control": `${control}\n` })) {
      mkdirSync(dirname(join(tree, path)), { recursive: true });
      writeFileSync(join(tree, path), data);
    }
    const deb = join(root, "repo", `${item.name}.deb`);
    mkdirSync(dirname(deb), { recursive: true });
    execFileSync("dpkg-deb", ["--root-owner-group", "-Znone", "--build", tree, deb], { stdio: "ignore" });
    const bytes = readFileSync(deb);
    const sha256 = createHash("sha256").update(bytes).digest("hex");
    return `${control}\nFilename: ./${item.name}.deb\nSize: ${bytes.length}\nSHA256: ${sha256}\n`;
  });
  writeFileSync(join(root, "repo", "Packages"), stanzas.join("\n"));
  const etc = join(root, "etc");
  mkdirSync(etc, { recursive: true });
  writeFileSync(join(etc, "sources.list"), `deb [trusted=yes arch=amd64] file:${join(root, "repo")} ./\n`);
  return etc;
};

/** The packages of a guest that would not boot, version `kernel` of the kernel. */
export const fakeGuestPackages = (kernel: string): FakePackage[] => {
  const modules = `lib/modules/${kernel}`;
  return [
    { name: "linux-image-686", version: "1", depends: `linux-image-${kernel} (= 1)`, files: {} },
    {
      name: `linux-image-${kernel}-unsigned`,
      version: "1",
      files: {
        [`boot/vmlinuz-${kernel}`]: fakeBzImage(Buffer.from(`the kernel ${kernel}`)),
        [`${modules}/modules.builtin`]: "kernel/drivers/virtio/virtio_pci.ko\n",
        [`${modules}/kernel/virtio.ko`]: fakeModule([]),
        [`${modules}/kernel/virtio_blk.ko`]: fakeModule(["virtio"], ["virtio:d00000002v*"]),
      },
    },
    { name: "busybox-static", version: "1", files: { "bin/busybox": "a busybox" } },
    {
      name: "seabios",
      version: "1",
      files: { "usr/share/seabios/bios-256k.bin": "a bios", "usr/share/seabios/vgabios-stdvga.bin": "a vga bios" },
    },
  ];
};
