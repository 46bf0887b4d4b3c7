import { PARTS, STATEMENTS, type Statement } from "./statements.ts";

/** A test that ran and carries ids. */
export interface ConformanceTest {
  /** Relative to the root, with slashes. */
  readonly file: string;
  readonly shows: string;
  readonly ids: readonly string[];
  readonly passed: boolean;
}

/** What the tests that ran say about one statement. */
interface Verdict {
  readonly statement: Statement;
  readonly tests: readonly ConformanceTest[];
  readonly reason: string | undefined;
}

const isTested = ({ tests }: Verdict): boolean => tests.length > 0;
const isPassed = ({ tests }: Verdict): boolean => tests.length > 0 && tests.every((test) => test.passed);

/** How many tests a statement's row names; the rest, mostly the same test in other configurations, is a number. */
const NAMED = 3;

const verdicts = (
  tests: readonly ConformanceTest[],
  untested: ReadonlyMap<string, string>,
): ReadonlyMap<string, readonly Verdict[]> => {
  const byId = new Map<string, ConformanceTest[]>();
  for (const test of tests) for (const id of test.ids) byId.set(id, [...(byId.get(id) ?? []), test]);
  return new Map(
    [...PARTS.keys()].map((part) => [
      part,
      [...STATEMENTS.values()]
        .filter((statement) => statement.part === part)
        .map((statement) => ({
          statement,
          tests: byId.get(statement.id) ?? [],
          reason: untested.get(statement.id),
        })),
    ]),
  );
};

/** What is wrong, one line each: a failed test, an id that is tested and excused, or neither. */
export const problems = (
  tests: readonly ConformanceTest[],
  untested: ReadonlyMap<string, string>,
  parts: readonly string[],
): string[] =>
  parts
    .flatMap((part) => verdicts(tests, untested).get(part) ?? [])
    .flatMap((verdict) => {
      const { statement, reason } = verdict;
      if (isTested(verdict) && reason !== undefined) return [`tested, and listed as untested: ${statement.id}`];
      if (isTested(verdict) && !isPassed(verdict)) return [`failed: ${statement.id}`];
      if (!isTested(verdict) && reason === undefined)
        return [`missing: ${statement.id}\n    ${statement.keyword}: ${statement.words}`];
      return [];
    });

const percent = (part: number, whole: number): string => `${Math.floor((100 * part) / whole)} %`;

const table = (head: readonly string[], rows: readonly (readonly string[])[]): string[] => [
  `| ${head.join(" | ")} |`,
  `|${head.map(() => " --- |").join("")}`,
  ...rows.map((cells) => `| ${cells.map((cell) => cell.replaceAll("|", "\\|")).join(" | ")} |`),
];

const evidence = ({ tests, reason }: Verdict): string => {
  if (tests.length === 0) return reason === undefined ? "**missing**" : `not tested: ${reason}`;
  const names = [...new Set(tests.map((test) => `${test.passed ? "" : "**FAILED** "}${test.file}: ${test.shows}`))];
  names.sort((a, b) => Number(b.startsWith("**")) - Number(a.startsWith("**")) || (a < b ? -1 : 1));
  const more = names.length > NAMED ? [`and ${names.length - NAMED} more`] : [];
  return [...names.slice(0, NAMED), ...more].join("<br>");
};

const summaryRows = (ofPart: readonly Verdict[], part: string): string[][] =>
  ["device", "driver", "both"].map((side) => {
    const list = side === "both" ? ofPart : ofPart.filter(({ statement }) => statement.side === side);
    const passed = list.filter(isPassed).length;
    return [
      `${PARTS.get(part)} (${part})`,
      side,
      `${list.length}`,
      `${list.filter(isTested).length}`,
      `${passed}`,
      list.length === 0 ? "" : percent(passed, list.length),
    ];
  });

/** docs/conformance.md: the same for the same tests, whenever and wherever they ran. */
export const conformanceReport = (tests: readonly ConformanceTest[], untested: ReadonlyMap<string, string>): string => {
  const byPart = verdicts(tests, untested);
  const lines = [
    "# Conformance",
    "",
    "Which statements (MUST, MUST NOT) of VirtIO 1.4 a test of this repository checks. `npm run conformance` writes this page from",
    "the tests that ran; a test names its statements by the ids of [statements.csv](../conformance/statements.csv): side, clause, number.",
    "A statement is tested when a test that ran carries its id, and passed when each of those passed.",
    "",
    ...table(
      ["part", "side", "statements", "tested", "passed", ""],
      [...byPart].flatMap(([part, list]) => summaryRows(list, part)),
    ),
  ];
  for (const [part, list] of byPart) {
    lines.push("", `## ${PARTS.get(part)} (${part})`, "");
    lines.push(
      ...table(
        ["statement", "", "tests"],
        list.map((verdict) => [verdict.statement.id, verdict.statement.keyword, evidence(verdict)]),
      ),
    );
  }
  return `${lines.join("\n")}\n`;
};
