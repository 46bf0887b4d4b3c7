import { VirtkitError } from "../../../common/error.ts";

const SHT_STRTAB_LINK_AT = 24;
const DT_NEEDED = 1;
const PT_INTERP = 3;
const SHT_DYNAMIC = 6;

interface Section {
  readonly name: string;
  readonly type: number;
  readonly offset: number;
  readonly size: number;
  readonly link: number;
}

const cString = (bytes: Uint8Array, at: number): string => {
  const end = bytes.indexOf(0, at);
  return Buffer.from(bytes.subarray(at, end < 0 ? bytes.length : end)).toString("latin1");
};

/** The few parts of a little-endian ELF file (32 or 64 bits) that say what it needs. */
export class ElfFile {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #wide: boolean;
  readonly #sections: readonly Section[];

  /** @throws VirtkitError ERR_VIRTKIT_BAD_ELF, naming `name`, when the bytes are no such file */
  constructor(bytes: Uint8Array, name: string) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    if (bytes.length < 52 || this.#view.getUint32(0, false) !== 0x7f454c46 || bytes[5] !== 1) {
      throw new VirtkitError("ERR_VIRTKIT_BAD_ELF", `${name} is not an ELF file; refresh the guest's packages`);
    }
    this.#wide = bytes[4] === 2;
    try {
      this.#sections = this.#readSections();
    } catch (cause) {
      throw new VirtkitError("ERR_VIRTKIT_BAD_ELF", `${name} is a damaged ELF file; refresh the guest's packages`, {
        cause,
      });
    }
  }

  /** A field that is four bytes in 32-bit files and eight in 64-bit ones. */
  #word(at: number): number {
    return this.#wide ? Number(this.#view.getBigUint64(at, true)) : this.#view.getUint32(at, true);
  }

  #readSections(): Section[] {
    const view = this.#view;
    const wide = this.#wide;
    const start = this.#word(wide ? 40 : 32);
    const entrySize = view.getUint16(wide ? 58 : 46, true);
    const count = view.getUint16(wide ? 60 : 48, true);
    const namesIndex = view.getUint16(wide ? 62 : 50, true);
    const at = (index: number): number => start + index * entrySize;
    const offsetOf = (index: number): number => this.#word(at(index) + (wide ? 24 : 16));
    const names = count > 0 ? offsetOf(namesIndex) : 0;
    const sections: Section[] = [];
    for (let index = 0; index < count; index++) {
      sections.push({
        name: cString(this.#bytes, names + view.getUint32(at(index), true)),
        type: view.getUint32(at(index) + 4, true),
        offset: offsetOf(index),
        size: this.#word(at(index) + (wide ? 32 : 20)),
        link: view.getUint32(at(index) + (wide ? 40 : SHT_STRTAB_LINK_AT), true),
      });
    }
    return sections;
  }

  /** The bytes of a section, or nothing when there is none of that name. */
  section(name: string): Uint8Array | undefined {
    const found = this.#sections.find((section) => section.name === name);
    return found && this.#bytes.subarray(found.offset, found.offset + found.size);
  }

  /** The sonames of the shared libraries it is linked with (DT_NEEDED). */
  needed(): string[] {
    const dynamic = this.#sections.find((section) => section.type === SHT_DYNAMIC);
    if (!dynamic) return [];
    const strings = this.#sections[dynamic.link];
    const step = this.#wide ? 16 : 8;
    const out: string[] = [];
    for (let at = dynamic.offset; at + step <= dynamic.offset + dynamic.size; at += step) {
      if (this.#word(at) === DT_NEEDED) out.push(cString(this.#bytes, strings.offset + this.#word(at + step / 2)));
    }
    return out;
  }

  /** The path of the program's loader, such as /lib/ld-linux.so.2; nothing for static programs and libraries. */
  interpreter(): string | undefined {
    const wide = this.#wide;
    const start = this.#word(wide ? 32 : 28);
    const entrySize = this.#view.getUint16(wide ? 54 : 42, true);
    const count = this.#view.getUint16(wide ? 56 : 44, true);
    for (let index = 0; index < count; index++) {
      const at = start + index * entrySize;
      if (this.#view.getUint32(at, true) === PT_INTERP) return cString(this.#bytes, this.#word(at + (wide ? 8 : 4)));
    }
    return undefined;
  }
}
