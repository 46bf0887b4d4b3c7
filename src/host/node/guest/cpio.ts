/** What one entry of an archive is. Times are 0 and owners root, so that equal input gives equal bytes. */
export type CpioEntry =
  | { readonly type: "directory"; readonly path: string; readonly mode?: number }
  | { readonly type: "file"; readonly path: string; readonly data: Uint8Array; readonly mode?: number }
  | { readonly type: "symlink"; readonly path: string; readonly target: string }
  | {
      readonly type: "device";
      readonly path: string;
      readonly major: number;
      readonly minor: number;
      readonly mode?: number;
    };

const S_IFCHR = 0o020000;
const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;

const HEADER_BYTES = 110;
const encoder = new TextEncoder();

interface Raw {
  readonly mode: number;
  readonly data: Uint8Array;
  readonly major: number;
  readonly minor: number;
}

const NOTHING = new Uint8Array(0);

const raw = (entry: CpioEntry): Raw => {
  switch (entry.type) {
    case "directory":
      return { mode: S_IFDIR | (entry.mode ?? 0o755), data: NOTHING, major: 0, minor: 0 };
    case "file":
      return { mode: S_IFREG | (entry.mode ?? 0o644), data: entry.data, major: 0, minor: 0 };
    case "symlink":
      return { mode: S_IFLNK | 0o777, data: encoder.encode(entry.target), major: 0, minor: 0 };
    case "device":
      return { mode: S_IFCHR | (entry.mode ?? 0o600), data: NOTHING, major: entry.major, minor: entry.minor };
  }
};

const pad4 = (length: number): number => (length + 3) & ~3;
const hex8 = (value: number): string => value.toString(16).padStart(8, "0");

/** One "newc" header: the magic and thirteen fields of eight hexadecimal digits. */
const header = (inode: number, entry: Raw, nameBytes: number): Uint8Array =>
  encoder.encode(
    `070701${[
      inode,
      entry.mode,
      0, // uid
      0, // gid
      1, // links
      0, // mtime
      entry.data.length,
      0, // device major of the file system
      0, // device minor of the file system
      entry.major,
      entry.minor,
      nameBytes,
      0, // checksum, used by "070702" only
    ]
      .map(hex8)
      .join("")}`,
  );

/**
 * An archive in cpio's "newc" form, uncompressed, as Linux unpacks it for its first root file system. Entries keep
 * their order; a directory must come before what lies in it. Paths have no leading slash.
 */
export const writeCpio = (entries: readonly CpioEntry[]): Uint8Array => {
  const parts: { readonly name: Uint8Array; readonly entry: Raw }[] = entries.map((entry) => ({
    name: encoder.encode(`${entry.path}\0`),
    entry: raw(entry),
  }));
  parts.push({ name: encoder.encode("TRAILER!!!\0"), entry: { mode: 0, data: NOTHING, major: 0, minor: 0 } });

  let size = 0;
  for (const { name, entry } of parts) size += pad4(HEADER_BYTES + name.length) + pad4(entry.data.length);
  const out = new Uint8Array(size);
  let at = 0;
  parts.forEach(({ name, entry }, index) => {
    out.set(header(index + 1, entry, name.length), at);
    out.set(name, at + HEADER_BYTES);
    at += pad4(HEADER_BYTES + name.length);
    out.set(entry.data, at);
    at += pad4(entry.data.length);
  });
  return out;
};
