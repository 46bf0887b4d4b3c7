import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export interface CodeBlock {
  /** Of the document, from 1: where the block begins. */
  readonly line: number;
  readonly language: string;
  readonly code: string;
}

const ROOT = new URL("../../", import.meta.url);

interface Package {
  readonly exports: Readonly<Record<string, string>>;
}

/** The fenced blocks of README.md. */
export const readmeBlocks = (): CodeBlock[] => blocksOf("README.md");

/** The fenced blocks of a document. */
export const blocksOf = (document: string): CodeBlock[] => {
  const blocks: CodeBlock[] = [];
  const lines = readFileSync(new URL(document, ROOT), "utf8").split("\n");
  for (let at = 0; at < lines.length; at++) {
    const [, language] = /^```(\w+)/.exec(lines[at] ?? "") ?? [];
    if (language === undefined) continue;
    const end = lines.indexOf("```", at);
    blocks.push({ line: at + 1, language, code: lines.slice(at + 1, end).join("\n") });
    at = end;
  }
  return blocks;
};

/** Those that say by a comment in their first line that a test runs them. */
export const runnableBlocks = (language: string): CodeBlock[] =>
  readmeBlocks().filter(
    (block) => block.language === language && /^(\/\/|#) runs$/.test(block.code.split("\n")[0] ?? ""),
  );

/** The source that stands behind an import of the package by its name, by package.json's `exports`. */
const sourceOf = (specifier: string): string => {
  const { exports }: Package = JSON.parse(readFileSync(new URL("package.json", ROOT), "utf8"));
  const target = exports[specifier.replace(/^virtkit/, ".")];
  if (target === undefined) throw new Error(`package.json exports no ${specifier}`);
  return fileURLToPath(new URL(target.replace(/^\.\/dist\//, "src/").replace(/\.js$/, ".ts"), ROOT));
};

/** The program with the package's sources in place of the package. */
export const fromSources = (code: string): string =>
  code.replace(
    /from "(virtkit(?:\/[^"]+)?)"/g,
    (_, specifier: string) => `from ${JSON.stringify(sourceOf(specifier))}`,
  );

/** The files of a guide, by the names in their first lines (`// file: NAME`), as they stand there. */
export const guideFiles = (document: string): Map<string, string> =>
  new Map(
    blocksOf(document).flatMap(({ code }): [string, string][] => {
      const [, name] = /^\/\/ file: (\S+)\n/.exec(code) ?? [];
      return name === undefined ? [] : [[name, `${code}\n`]];
    }),
  );

/** The command lines of a document that run virtkit, as words without the program's own name. */
export const commandLines = (document: string): string[][] =>
  blocksOf(document)
    .filter(({ language }) => language === "sh")
    .flatMap(({ code }) => code.split("\n"))
    .filter((line) => line.startsWith("virtkit "))
    .map((line) => [...line.matchAll(/'([^']*)'|(\S+)/g)].map(([, quoted, plain]) => quoted ?? plain ?? "").slice(1));
