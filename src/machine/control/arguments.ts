import { ControlError } from "./errors.ts";

/** An argument of a command; its type by QAPI's names. */
export interface ArgumentSpec {
  readonly type: "str" | "int" | "bool";
  readonly optional?: true;
  readonly help: string;
}

export type ArgumentSpecs = Readonly<Record<string, ArgumentSpec>>;

interface TypeMap {
  readonly str: string;
  readonly int: number;
  readonly bool: boolean;
}

/** The arguments as a handler gets them. */
export type ArgumentValues<S extends ArgumentSpecs> = {
  readonly [K in keyof S]: S[K] extends { readonly optional: true }
    ? TypeMap[S[K]["type"]] | undefined
    : TypeMap[S[K]["type"]];
};

const TYPE_NAMES = { str: "string", int: "integer", bool: "boolean" } as const;

/** Whether a JSON value is of an argument's type; integers beyond 2^53 cannot be told apart and are none. */
function fits(type: ArgumentSpec["type"], value: unknown): boolean {
  if (type === "int") return typeof value === "number" && Number.isSafeInteger(value);
  return typeof value === (type === "str" ? "string" : "boolean");
}

/**
 * Checks a command's arguments. With `open`, others than those declared are left for the handler.
 * @throws ControlError in QEMU's words
 */
export function checkArguments(specs: ArgumentSpecs, given: Readonly<Record<string, unknown>>, open: boolean): void {
  for (const [name, spec] of Object.entries(specs)) {
    if (!Object.hasOwn(given, name)) {
      if (spec.optional !== true) throw new ControlError(`Parameter '${name}' is missing`);
    } else if (!fits(spec.type, given[name]))
      throw new ControlError(`Invalid parameter type for '${name}', expected: ${TYPE_NAMES[spec.type]}`);
  }
  const extra = open ? undefined : Object.keys(given).find((name) => !Object.hasOwn(specs, name));
  if (extra !== undefined) throw new ControlError(`Parameter '${extra}' is unexpected`);
}
