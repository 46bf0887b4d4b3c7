import { oneOf, suggest } from "../../machine/nearest.ts";
import type { TraceRequest } from "../../node/machine-trace.ts";
import { TRACE_KINDS } from "../../trace/tracing.ts";
import type { TraceKind } from "../../trace/types.ts";
import { Keyval } from "./keyval.ts";

/** --trace, as `FILE` or `file=FILE,device=ID+ID,kind=KIND+KIND`. @throws UsageError */
export function parseTrace(text: string): TraceRequest {
  const keys = new Keyval("--trace", text, "file");
  const file = keys.text("file");
  if (file === undefined || file === "")
    return keys.fail("a file is missing", "Write --trace FILE, or --trace file=FILE,...");
  const devices = listOf(keys, "device");
  const kinds = listOf(keys, "kind")?.map((word) => kindOf(keys, word));
  keys.finish();
  return {
    option: keys.option,
    to: { file },
    ...(devices === undefined ? {} : { devices }),
    ...(kinds === undefined ? {} : { kinds }),
  };
}

function kindOf(keys: Keyval, word: string): TraceKind {
  const kind = TRACE_KINDS.find((one) => one === word);
  return (
    kind ??
    keys.fail(`there are no events of kind '${word}'`, suggest(word, TRACE_KINDS, `Valid: ${oneOf(TRACE_KINDS)}.`))
  );
}

/** `a+b+c`. */
function listOf(keys: Keyval, key: string): string[] | undefined {
  const words = keys.text(key)?.split("+");
  if (words?.includes("") === true) keys.fail(`'${key}' has an empty name in it`, `Write ${key}=NAME+NAME.`);
  return words;
}
