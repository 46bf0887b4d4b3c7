import { suggest } from "../../machine/nearest.ts";
import { UsageError } from "../../machine/usage-error.ts";
import { REFUSED_OPTIONS, RUN_OPTIONS, type RunOptionSpec } from "./run-table.ts";

/** What was given, in order, by the option's first name. A flag has an empty text each time. */
export type RawOptions = ReadonlyMap<string, readonly string[]>;

const BY_NAME: ReadonlyMap<string, RunOptionSpec> = new Map(
  RUN_OPTIONS.flatMap((spec) => [spec.name, ...(spec.aliases ?? [])].map((name) => [name, spec] as const)),
);

/** `-drive`, `--exec`: how an option is written. Those that QEMU does not have get two dashes. */
export function dashed(spec: RunOptionSpec): string {
  return `${spec.group.startsWith("virtkit") ? "--" : "-"}${spec.name}`;
}

/** The options given, or that help is asked for. */
export type RunArguments = { readonly kind: "options"; readonly options: RawOptions } | { readonly kind: "help" };

/**
 * Reads QEMU's command line: `-drive X`, one dash or two, and an argument that may begin with a dash itself. `--drive=X` is taken too.
 * @throws UsageError for an option that there is not, one that is not supported, or one without its argument
 */
export function readRunArguments(argv: readonly string[]): RunArguments {
  const options = new Map<string, string[]>();
  for (let i = 0; i < argv.length; i++) {
    const word = argv[i] ?? "";
    const [, dashes = "", name = "", value] = /^(--?)([^=]+)(?:=(.*))?$/s.exec(word) ?? [];
    if (dashes === "") throw unexpected(word);
    if (name === "help" || name === "h") return { kind: "help" };
    const spec = BY_NAME.get(name);
    if (spec === undefined || (value !== undefined && dashes === "-")) throw unknownOption(`${dashes}${name}`, name);
    const given = options.get(spec.name) ?? [];
    options.set(spec.name, given);
    if (spec.argument === undefined) {
      if (value !== undefined) throw new UsageError("takes no argument", { option: `${dashes}${name}` });
      given.push("");
      continue;
    }
    const argument = value ?? argv[++i];
    if (argument === undefined)
      throw new UsageError("requires an argument", { option: word, hint: `Write ${word} ${spec.argument}` });
    given.push(argument);
  }
  return { kind: "options", options };
}

function unexpected(word: string): UsageError {
  const looksLikeImage = /\.(img|raw|iso|qcow2?|vmdk|vdi)$/i.test(word);
  const hint = looksLikeImage
    ? `To use it as a disk: -drive file=${word},format=raw,if=virtio`
    : "Everything is given by options; `virtkit run --help` lists them.";
  return new UsageError("unexpected argument", { option: word === "" ? "''" : word, hint });
}

function unknownOption(option: string, name: string): UsageError {
  if (REFUSED_OPTIONS.has(name))
    return new UsageError("this option of QEMU's is not supported", { option, hint: REFUSED_OPTIONS.get(name) });
  const shown = new Map(RUN_OPTIONS.map((spec) => [spec.name, dashed(spec)]));
  const hint = suggest(name, shown.keys())?.replace(
    /'([^']+)'/,
    (_, found: string) => `'${shown.get(found) ?? found}'`,
  );
  return new UsageError("invalid option", { option, hint: `${hint} \`virtkit run --help\` lists all of them.` });
}
