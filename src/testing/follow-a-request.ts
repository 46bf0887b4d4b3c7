import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const SOURCES = fileURLToPath(new URL("../", import.meta.url));
const DOCUMENT = fileURLToPath(new URL("../../docs/follow-a-request.md", import.meta.url));

/** A line of a trace. */
export interface TraceLine {
  readonly kind: string;
  readonly [field: string]: unknown;
}

/** docs/follow-a-request.md, as far as tests hold it against the code. */
export function followARequest() {
  const text = readFileSync(DOCUMENT, "utf8");
  return {
    /** `Class.method` and file of each step. */
    functions: [...text.matchAll(/`(\w+)\.(#?\w+)`\s\(`([\w/.-]+)`\)/g)].map(
      ([, owner = "", method = "", file = ""]) => ({
        ...{ owner, method, file },
      }),
    ),
    /** The command that was traced. */
    command: /--exec '([^']+)'/.exec(text)?.[1] ?? assert.fail("the document has no command"),
    listing: (name: string): TraceLine[] => {
      const [, lines = assert.fail(`no listing '${name}'`)] =
        new RegExp(`<!-- trace: ${name} -->\n\`\`\`jsonl\n([^\`]+)\n\`\`\``).exec(text) ?? [];
      return parseTrace(lines);
    },
    /** The table of events at its end, as "driver add". */
    order: [...text.matchAll(/^\| (driver|device) \| `([a-z-]+)` +\|$/gm)].map(([, side, kind]) => `${side} ${kind}`),
  };
}

export function parseTrace(text: string): TraceLine[] {
  return text
    .trim()
    .split("\n")
    .map((line) => JSON.parse(line));
}

/** What is wrong with "the class has a method of this name, in this file", or undefined. */
export function missing({ owner, method, file }: { owner: string; method: string; file: string }): string | undefined {
  const path = `${SOURCES}${file}`;
  if (!existsSync(path)) return `${file} does not exist`;
  const source = readFileSync(path, "utf8");
  if (!new RegExp(`^export (abstract )?class ${owner}\\b`, "m").test(source)) return `no class ${owner} in ${file}`;
  const declared = new RegExp(`^  (protected )?(override )?(async )?${method}(<[^(]*>)?\\(`, "m");
  return declared.test(source) ? undefined : `no method ${method} in ${file}`;
}
