/** A JSON value that came in, or why what came is none. */
export type JsonItem = { readonly value: unknown } | { readonly error: string };

/** Bytes of one value at most. */
export const MESSAGE_MAX = 1024 * 1024;
/** Brackets in brackets at most. */
export const NESTING_MAX = 1024;

const LF = 0x0a;
const QUOTE = 0x22;
const BACKSLASH = 0x5c;
const OPEN_ARRAY = 0x5b;
const CLOSE_ARRAY = 0x5d;
const OPEN_OBJECT = 0x7b;
const CLOSE_OBJECT = 0x7d;
/** Never part of UTF-8: a client sends it to have the parser start afresh. */
const SENTINEL = 0xff;

const isSpace = (byte: number): boolean => byte === 0x20 || byte === 0x09 || byte === LF || byte === 0x0d;
const isOpening = (byte: number): boolean => byte === OPEN_OBJECT || byte === OPEN_ARRAY;
const isClosing = (byte: number): boolean => byte === CLOSE_OBJECT || byte === CLOSE_ARRAY;

/**
 * Cuts a stream of bytes into JSON values, which may stand on one line or go over several and may come in pieces. What is no JSON
 * becomes one error; reading goes on at the next line, or behind a byte 0xff. Memory is bounded by {@link MESSAGE_MAX}.
 */
export class JsonStream {
  readonly #emit: (item: JsonItem) => void;
  #bytes = new Uint8Array(256);
  #length = 0;
  /** Closing brackets that are still due, the innermost last. */
  #open: number[] = [];
  #inString = false;
  #escaped = false;
  /** Everything up to the end of the line is dropped. */
  #skipping = false;

  constructor(emit: (item: JsonItem) => void) {
    this.#emit = emit;
  }

  /** True between the first byte of a value and its last. */
  get isInside(): boolean {
    return this.#length > 0;
  }

  push(bytes: Uint8Array): void {
    for (const byte of bytes) this.#take(byte);
  }

  #take(byte: number): void {
    if (this.#skipping) {
      if (byte === LF || byte === SENTINEL) this.#skipping = false;
      return;
    }
    if (byte === SENTINEL) {
      if (this.isInside) this.#fail("the message was cut short", false);
      return;
    }
    if (!this.isInside && isSpace(byte)) return;
    if (this.#length >= MESSAGE_MAX) this.#fail(`a message has at most ${MESSAGE_MAX} bytes`, byte !== LF);
    else if (this.#inString) this.#takeInString(byte);
    else this.#takePlain(byte);
  }

  #takeInString(byte: number): void {
    if (byte < 0x20) {
      this.#fail(`a string has the control character 0x${byte.toString(16).padStart(2, "0")} in it`, byte !== LF);
      return;
    }
    this.#append(byte);
    if (this.#escaped) this.#escaped = false;
    else if (byte === BACKSLASH) this.#escaped = true;
    else if (byte === QUOTE) {
      this.#inString = false;
      if (this.#open.length === 0) this.#finish();
    }
  }

  #takePlain(byte: number): void {
    if (byte < 0x20 && !isSpace(byte)) {
      this.#fail(`stray byte 0x${byte.toString(16).padStart(2, "0")}`, true);
    } else if (this.#open.length === 0 && this.isInside) {
      // A number or a word on its own ends where something else begins.
      // Of what is no value at all the rest of the line is dropped with it, so that a line of text is one error.
      if (isSpace(byte)) this.#skipping = !this.#finish() && byte !== LF;
      else if (isOpening(byte) || isClosing(byte) || byte === QUOTE) this.#fail("a value is expected", true);
      else this.#append(byte);
    } else if (isClosing(byte)) {
      if (this.#open.at(-1) !== byte) {
        this.#fail(`stray '${String.fromCharCode(byte)}'`, true);
        return;
      }
      this.#append(byte);
      this.#open.pop();
      if (this.#open.length === 0) this.#finish();
    } else {
      this.#append(byte);
      if (byte === QUOTE) this.#inString = true;
      else if (isOpening(byte)) this.#nest(byte === OPEN_OBJECT ? CLOSE_OBJECT : CLOSE_ARRAY);
    }
  }

  #nest(closing: number): void {
    this.#open.push(closing);
    if (this.#open.length > NESTING_MAX) this.#fail(`brackets are nested deeper than ${NESTING_MAX}`, true);
  }

  #append(byte: number): void {
    if (this.#length === this.#bytes.length) {
      const larger = new Uint8Array(this.#bytes.length * 2);
      larger.set(this.#bytes);
      this.#bytes = larger;
    }
    this.#bytes[this.#length++] = byte;
  }

  /** False when the text was no JSON. */
  #finish(): boolean {
    const bytes = this.#bytes.subarray(0, this.#length);
    let item: JsonItem;
    try {
      item = { value: JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes)) };
    } catch (error) {
      const why = error instanceof SyntaxError ? error.message : "the text is no UTF-8";
      item = { error: `JSON parse error, ${why}` };
    }
    this.#clear();
    this.#emit(item);
    return "value" in item;
  }

  #fail(why: string, skip: boolean): void {
    this.#clear();
    this.#skipping = skip;
    this.#emit({ error: `JSON parse error, ${why}` });
  }

  #clear(): void {
    if (this.#bytes.length > 64 * 1024) this.#bytes = new Uint8Array(256);
    this.#length = 0;
    this.#open = [];
    this.#inString = false;
    this.#escaped = false;
  }
}
