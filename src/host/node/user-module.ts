import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { stat } from "node:fs/promises";
import { register } from "node:module";
import { basename, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { VirtkitError } from "../../common/error.ts";
import { faultText } from "../../common/fault-text.ts";

/** Milliseconds that a module's own statements may take unless said otherwise, such as a top-level await. */
const LOAD_LIMIT = 10_000;
const ROOT = new URL("../../../", import.meta.url);
const KINDS = "give an ES module: a file that ends in .mjs or .js, with a default export";

interface Package {
  readonly name: string;
  readonly exports: Readonly<Record<string, string>>;
}

export interface LoadOptions {
  /** Milliseconds that loading may take; 0 for as long as it takes. Default 10000. */
  readonly limit?: number;
  /** Ends the waiting. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * The default export of a user's module. An import of `virtkit/...` in it is this virtkit, where no other is installed.
 * @throws ERR_VIRTKIT_MODULE when there is no such file, it is no JavaScript, throws while it loads or takes too long, or has no default
 * export
 */
export async function loadUserModule(path: string, options: LoadOptions = {}): Promise<unknown> {
  await checkFile(path);
  provideVirtkit();
  const url = pathToFileURL(resolve(path)).href;
  loaded.add(url);
  const exports = await importIt(path, url, options);
  if ("default" in exports) return exports["default"];
  const names = Object.keys(exports);
  const has = names.length === 0 ? "it exports nothing" : `it exports ${names.join(", ")}`;
  throw wrong(path, `there is no default export (${has}); write \`export default ...\``);
}

const wrong = (path: string, why: string, cause?: unknown): VirtkitError =>
  new VirtkitError("ERR_VIRTKIT_MODULE", `the module ${path} cannot be used: ${why}`, { cause });

async function checkFile(path: string): Promise<void> {
  const found = await stat(path).catch((cause: NodeJS.ErrnoException) => {
    throw wrong(path, cause.code === "ENOENT" ? "no such file" : cause.message, cause);
  });
  if (!found.isFile()) throw wrong(path, `it is ${found.isDirectory() ? "a directory" : "no file"}; ${KINDS}`);
}

const loaded = new Set<string>();

/** Whether users' code may run in this program. */
export const hasUserModules = (): boolean => loaded.size > 0;

/** Whether an exception that nobody caught was thrown in a user's module, or in something that it called. */
export function isFromUserModule(error: unknown): boolean {
  const stack = error instanceof Error ? (error.stack ?? "") : "";
  return [...loaded].some((url) => stack.includes(`${url}:`));
}

async function importIt(
  path: string,
  url: string,
  { limit = LOAD_LIMIT, signal }: LoadOptions,
): Promise<Readonly<Record<string, unknown>>> {
  const late = `it is still loading after ${limit / 1000} s; a top-level await in it does not end`;
  const patience = waitAtMost(limit, signal, () => wrong(path, late));
  try {
    return await Promise.race([import(url), patience.over]);
  } catch (error) {
    throw error instanceof VirtkitError && ["ERR_VIRTKIT_MODULE", "ERR_VIRTKIT_STOPPED"].includes(error.code)
      ? error
      : wrong(path, why(error, path), error);
  } finally {
    patience.end();
  }
}

/** Keeps the program alive while something of the user's is waited for, which need not hold anything that does. */
export function waitAtMost(
  limit: number,
  signal: AbortSignal | undefined,
  late: () => Error,
): { readonly over: Promise<never>; end(): void } {
  let end = (): void => {};
  const over = new Promise<never>((_, reject) => {
    const timer = limit > 0 ? setTimeout(() => reject(late()), limit) : setInterval(() => {}, 2 ** 30);
    const aborted = (): void => reject(new VirtkitError("ERR_VIRTKIT_STOPPED", "it was stopped meanwhile"));
    signal?.addEventListener("abort", aborted);
    if (signal?.aborted === true) aborted();
    end = () => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", aborted);
    };
  });
  over.catch(() => {});
  return { over, end: () => end() };
}

function why(error: unknown, path: string): string {
  const { code } = error as { code?: unknown };
  if (
    code === "ERR_UNKNOWN_FILE_EXTENSION" ||
    code === "ERR_IMPORT_ATTRIBUTE_MISSING" ||
    code === "ERR_IMPORT_ASSERTION_TYPE_MISSING"
  )
    return `it is no JavaScript, by its name; ${KINDS}`;
  if (error instanceof SyntaxError) return `${syntaxErrorText(error, path)}; ${KINDS}`;
  if (code === "ERR_MODULE_NOT_FOUND" || code === "ERR_PACKAGE_PATH_NOT_EXPORTED")
    return `${firstLine((error as Error).message)}; install what it imports beside it`;
  return `it throws while it loads: ${faultText(error, basename(path))}`;
}

/** An import does not say where a syntax error is; Node's own check of the file does. */
function syntaxErrorText(error: SyntaxError, path: string): string {
  const { stderr } = spawnSync(process.execPath, ["--check", path], {
    encoding: "utf8",
    timeout: 5000,
    env: { ...process.env, NODE_OPTIONS: "" },
  });
  const [, line] = /^.*:(\d+)$/m.exec(firstLine(stderr ?? "")) ?? [];
  const text = `SyntaxError: ${firstLine(error.message)}`;
  return line === undefined ? text : `${text} (${basename(path)}:${line})`;
}

const firstLine = (text: string): string => text.split("\n", 1)[0] as string;

let provided = false;

/** Makes `virtkit/...` known to modules that lie where no virtkit is installed. */
function provideVirtkit(): void {
  if (provided) return;
  provided = true;
  const { name, exports }: Package = JSON.parse(readFileSync(new URL("package.json", ROOT), "utf8"));
  const files = new Map<string, string>();
  for (const [key, target] of Object.entries(exports))
    if (target.endsWith(".js") && !target.includes("*")) files.set(name + key.slice(1), runningFile(target));
  const hooks = new URL(runningFile("./dist/host/node/virtkit-hooks.js"));
  register(hooks, { data: files });
}

/** The file of this build, or of the sources when they run as they are. */
function runningFile(target: string): string {
  const fromSources = import.meta.url.endsWith(".ts");
  const file = fromSources ? target.replace(/^\.\/dist\//, "src/").replace(/\.js$/, ".ts") : target;
  return new URL(file, ROOT).href;
}
