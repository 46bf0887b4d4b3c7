import { existsSync, readdirSync, readFileSync } from "node:fs";

/** A MUST, MUST NOT, SHALL or SHALL NOT of the specification. */
export interface Statement {
  /** Side, clause and a number within it: `device: Basic Facilities of a Virtio Device / Device Status Field #1`. */
  readonly id: string;
  readonly side: string;
  /** The file of the specification it stands in, such as `split-ring`. */
  readonly part: string;
  readonly keyword: string;
  /** Some words around the keyword, to find the place. */
  readonly words: string;
}

/** The parts that docs/conformance.md reports, and what it calls them. */
export const PARTS: ReadonlyMap<string, string> = new Map([
  ["content", "core"],
  ["split-ring", "split"],
  ["packed-ring", "packed"],
  ["transport-pci", "PCI"],
  ["transport-mmio", "MMIO"],
  ["blk", "blk"],
  ["console", "console"],
  ["entropy", "rng"],
  ["balloon", "balloon"],
]);

const FOLDER = new URL("../../conformance/", import.meta.url);

/** A line of CSV, whose fields may be quoted but hold no line break. */
const fields = (line: string): string[] =>
  [...line.matchAll(/(?:^|,)(?:"((?:[^"]|"")*)"|([^,]*))/g)].map(
    ([, quoted, plain]) => quoted?.replaceAll('""', '"') ?? plain ?? "",
  );

const readStatements = (): Map<string, Statement> => {
  const [, ...lines] = readFileSync(new URL("statements.csv", FOLDER), "utf8").trimEnd().split("\n");
  return new Map(
    lines.map((line) => {
      const [id = "", side = "", part = "", keyword = "", words = ""] = fields(line);
      return [id, { id, side, part, keyword, words }];
    }),
  );
};

/** All statements, by id, in the order of the specification. */
export const STATEMENTS: ReadonlyMap<string, Statement> = readStatements();

const BRACKETS = /\[((?:device|driver): [^\]]+ #\d+)\]/;

/**
 * The name of a test that checks statements of the specification: what it shows, and in brackets their ids.
 * `npm run conformance` reads them back from the tests that ran.
 *
 * Throws when an id is not in conformance/statements.csv.
 */
export const statements = (shows: string, ...ids: readonly string[]): string => {
  const unknown = ids.find((id) => !STATEMENTS.has(id));
  if (unknown !== undefined) throw new Error(`'${unknown}' is no id of conformance/statements.csv`);
  if (ids.length === 0) throw new Error(`'${shows}' names no statement`);
  return `${shows} [${ids.join("; ")}]`;
};

/** Takes a name apart that was made by `statements`, or around it. Without ids when it is an ordinary name. */
export const parseTestName = (name: string): { readonly shows: string; readonly ids: readonly string[] } => {
  const found = BRACKETS.exec(name);
  if (found === null) return { shows: name, ids: [] };
  const shows = `${name.slice(0, found.index).trimEnd()}${name.slice(found.index + found[0].length)}`;
  return { shows, ids: (found[1] ?? "").split("; ") };
};

/** What conformance/untested/ says: ids of statements that no test can check, with the reason. */
export const readUntested = (): Map<string, string> => {
  const folder = new URL("untested/", FOLDER);
  const reasons = new Map<string, string>();
  for (const file of existsSync(folder) ? readdirSync(folder).sort() : []) {
    const part = file.replace(/\.json$/, "");
    const content: Readonly<Record<string, string>> = JSON.parse(readFileSync(new URL(file, folder), "utf8"));
    for (const [id, reason] of Object.entries(content)) {
      if (STATEMENTS.get(id)?.part !== part) throw new Error(`${file}: '${id}' is no statement of ${part}`);
      if (reason.trim() === "") throw new Error(`${file}: '${id}' has no reason`);
      reasons.set(id, reason);
    }
  }
  return reasons;
};
