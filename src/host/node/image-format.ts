import { open } from "node:fs/promises";

/** What the first bytes of other formats look like: where, and which. */
const SIGNATURES: readonly (readonly [format: string, offset: number, bytes: string])[] = [
  ["qcow2", 0, "QFI\xfb"],
  ["qed", 0, "QED\0"],
  ["vmdk", 0, "KDMV"],
  ["vmdk", 0, "COWD"],
  ["vmdk", 0, "# Disk DescriptorFile"],
  ["vhdx", 0, "vhdxfile"],
  ["vpc", 0, "conectix"],
  ["parallels", 0, "WithoutFreeSpace"],
  ["parallels", 0, "WithouFreSpacExt"],
  ["luks", 0, "LUKS\xba\xbe"],
  ["bochs", 0, "Bochs Virtual HD Image"],
  ["vdi", 0x40, "\x7f\x10\xda\xbe"],
];

/** The format of an image that begins with these bytes; "raw" when it is none of the known ones. */
export function formatOf(head: Uint8Array): string {
  const text = Buffer.from(head.buffer, head.byteOffset, head.byteLength).toString("latin1");
  const found = SIGNATURES.find(([, offset, bytes]) => text.startsWith(bytes, offset));
  return found?.[0] ?? "raw";
}

/** Reads an image's first sector and says what it is. */
export async function probeFormat(path: string): Promise<string> {
  const file = await open(path, "r");
  try {
    const head = new Uint8Array(512);
    const { bytesRead } = await file.read(head, 0, head.length, 0);
    return formatOf(head.subarray(0, bytesRead));
  } finally {
    await file.close();
  }
}
