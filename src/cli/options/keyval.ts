import { suggest } from "../../machine/nearest.ts";
import {
  type PropertySetting,
  parseBool,
  parseEnum,
  parseId,
  parseInteger,
  parseSize,
} from "../../machine/object-model/values.ts";
import { blame, UsageError } from "../../machine/usage-error.ts";

/** One `key=value` of an option, or a key alone (`bare`, and the value is "on"). */
export interface KeyvalEntry {
  readonly key: string;
  readonly value: string;
  readonly bare: boolean;
}

/**
 * Splits QEMU's option syntax: `key=value,key=value`, where `,,` stands for a comma in a value. When the first part has no `=`, it is
 * the value of `impliedKey`, if there is one.
 */
export function splitKeyval(text: string, impliedKey?: string): KeyvalEntry[] {
  const parts = splitAtCommas(text);
  return parts.map((part, index) => {
    const equals = part.indexOf("=");
    if (equals >= 0) return { key: part.slice(0, equals), value: part.slice(equals + 1), bare: false };
    if (index === 0 && impliedKey !== undefined) return { key: impliedKey, value: part, bare: false };
    return { key: part, value: "on", bare: true };
  });
}

/** The parts between single commas, each with its double commas made single. An empty text has no parts. */
function splitAtCommas(text: string): string[] {
  const parts: string[] = [];
  let part = "";
  for (let i = 0; i < text.length; i++) {
    if (text[i] !== ",") part += text[i];
    else if (text[i + 1] === ",") part += text[i++];
    else {
      parts.push(part);
      part = "";
    }
  }
  if (part !== "") parts.push(part);
  return parts;
}

/** True for `help` and `?`, which ask for a list instead of setting something. */
export const isHelp = (word: string): boolean => word === "help" || word === "?";

/** The text with its commas doubled, as a value needs them. */
export const escapeCommas = (text: string): string => text.replaceAll(",", ",,");

/**
 * The values of one option, taken key by key. As in QEMU the last of several equal keys counts. What was taken by the end is what
 * is valid: {@link finish} refuses the rest.
 */
export class Keyval {
  /** The option as it was typed, for messages. */
  readonly option: string;
  readonly #entries: readonly KeyvalEntry[];
  readonly #known = new Set<string>();

  /**
   * @param name of the option, with its dash
   * @param option what to call it in messages, where that is not the name and the text
   */
  constructor(name: string, text: string, impliedKey?: string, option?: string) {
    this.option = option ?? (text === "" ? name : `${name} ${text}`);
    this.#entries = splitKeyval(text, impliedKey);
  }

  /** What was given, as often as it was given. */
  get keys(): string[] {
    return this.#entries.map(({ key }) => key);
  }

  /** The value of `key` as text; undefined when it was not given. */
  text(key: string): string | undefined {
    this.#known.add(key);
    const negation = `no${key}`;
    const entry = this.#entries.filter((one) => one.key === key || (one.bare && one.key === negation)).at(-1);
    if (entry === undefined) return undefined;
    if (entry.key === key) return entry.value;
    this.#known.add(negation);
    return "off";
  }

  /** The value of the key or of one of its older names. */
  textOf(...keys: readonly string[]): string | undefined {
    return keys.map((key) => this.text(key)).find((value) => value !== undefined);
  }

  flag(key: string, ...olderNames: readonly string[]): boolean | undefined {
    return this.#read(this.textOf(key, ...olderNames), (text) => parseBool(text, { name: key }));
  }

  /** One of the given words. */
  word<T extends string>(key: string, values: readonly T[]): T | undefined {
    return this.#read(this.text(key), (text) => parseEnum(text, values, { name: key }));
  }

  integer(key: string, min: number, max: number): number | undefined {
    return this.#read(this.text(key), (text) => parseInteger(text, min, max, { name: key }));
  }

  /** Bytes; `unit` is the suffix of a bare number. */
  size(key: string, unit?: string): number | undefined {
    return this.#read(this.text(key), (text) => parseSize(text, { name: key }, unit));
  }

  id(): string | undefined {
    return this.#read(this.text("id"), (text) => parseId(text));
  }

  /** Reports something wrong with this option. */
  fail(reason: string, hint?: string): never {
    throw new UsageError(reason, { option: this.option, hint });
  }

  /** Runs `work`; what it finds wrong is reported as wrong with this option. */
  blame<T>(work: () => T): T {
    return blame(this.option, work);
  }

  /** For keys that are known, but not supported: fails when one was given, with the reason. */
  refuse(reasons: Readonly<Record<string, string>>): void {
    for (const { key } of this.#entries) {
      const reason = Object.hasOwn(reasons, key) ? reasons[key] : undefined;
      if (reason !== undefined) this.fail(`'${key}' is not supported: ${reason}`);
    }
  }

  /** Everything that was not taken by now, for an option whose keys depend on something else. */
  rest(): PropertySetting[] {
    const rest = this.#entries.filter(({ key }) => !this.#known.has(key));
    return rest.map(({ key, value, bare }) => (bare ? { name: key, value: true, bare } : { name: key, value }));
  }

  /** @throws UsageError when there is a key that nobody asked for */
  finish(): void {
    const unknown = this.#entries.find(({ key }) => !this.#known.has(key));
    if (unknown === undefined) return;
    const known = [...this.#known].filter((key) => !key.startsWith("no") || !this.#known.has(key.slice(2)));
    const hint = suggest(unknown.key, known, `Valid here: ${known.sort().join(", ")}.`);
    if (unknown.bare && unknown.key !== "") {
      const reason = `Invalid parameter '${unknown.key}'`;
      this.fail(reason, `${hint} A comma in a value is written twice (,,).`);
    }
    this.fail(`Invalid parameter '${unknown.key}'`, hint);
  }

  #read<T>(text: string | undefined, parse: (text: string) => T): T | undefined {
    return text === undefined ? undefined : this.blame(() => parse(text));
  }
}
