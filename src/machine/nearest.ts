import { closestMatch } from "leven";

/** The candidate that `name` was most likely meant to be, and whether it is so close that this is probable. */
export interface Nearest {
  readonly name: string;
  readonly likely: boolean;
}

/** Undefined only when there are no candidates. */
export function nearest(name: string, candidates: Iterable<string>): Nearest | undefined {
  const all = [...candidates];
  const wanted = name.toLowerCase();
  const same =
    all.find((candidate) => letters(candidate) === letters(name)) ?? all.find((candidate) => swapped(candidate, name));
  if (same !== undefined) return { name: same, likely: true };
  const limit = Math.min(name.length - 1, Math.max(2, Math.ceil(name.length / 3)));
  const close = closestMatch(name, all, { maxDistance: limit });
  if (close !== undefined) return { name: close, likely: true };
  const longer = wanted.length < 3 ? [] : all.filter((candidate) => candidate.toLowerCase().includes(wanted));
  const part = longer.sort((a, b) => a.length - b.length)[0];
  if (part !== undefined) return { name: part, likely: true };
  const far = closestMatch(name, all);
  return far === undefined ? undefined : { name: far, likely: false };
}

/** Without case, dashes and underscores, about which people are seldom sure. */
const letters = (name: string): string => name.toLowerCase().replace(/[-_]/g, "");

/** True when the letters are the same, and only two neighbours changed places. */
const swapped = (a: string, b: string): boolean => {
  const first = [...a].findIndex((letter, i) => letter !== b[i]);
  return first >= 0 && a === b.slice(0, first) + b.charAt(first + 1) + b.charAt(first) + b.slice(first + 2);
};

/** A sentence with the nearest valid name, and `more` (where all of them are listed) behind it. */
export function suggest(name: string, candidates: Iterable<string>, more?: string): string | undefined {
  const found = nearest(name, candidates);
  if (found === undefined) return more;
  const sentence = found.likely ? `Did you mean '${found.name}'?` : `The nearest valid name is '${found.name}'.`;
  return more === undefined ? sentence : `${sentence} ${more}`;
}

/** "a, b or c". */
export function oneOf(values: readonly string[]): string {
  return values.length < 2 ? values.join("") : `${values.slice(0, -1).join(", ")} or ${values.at(-1)}`;
}
