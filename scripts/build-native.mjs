// Compiles native/src to native/build/virtkit.node: npm's install script, `npm run build:native`. Needs a C compiler ($CC, cc, gcc or
// clang) and Node's headers, and no network. What is missing costs one line and no failure: all but the add-on's users works.
//   --strict          with warnings as errors, to nowhere: `npm run check`
//   --nodedir DIR     where include/node/node_api.h is; else beside the running node, else npm's setting of that name
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, renameSync, rmSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const options = { strict: { type: "boolean", default: false }, nodedir: { type: "string" } };
const { values } = parseArgs({ options });
const root = fileURLToPath(new URL("..", import.meta.url));
const folder = join(root, "native", "src");
const build = join(root, "native", "build");
const output = join(build, "virtkit.node");
const sources = readdirSync(folder).map((name) => join(folder, name));

if (values.strict || !isFresh()) {
  const problem = process.platform === "linux" ? compile() : `it is for Linux, and this is ${process.platform}`;
  if (problem !== undefined) {
    const lost = "vhost-user, taps and io_uring will not work";
    console.error(`virtkit: the native add-on is not built (${problem}): ${lost}, the rest does`);
    // Sources that do not compile are our fault, a machine without a compiler is nobody's.
    if (values.strict && problem.startsWith("errors")) process.exitCode = 1;
  }
}

function isFresh() {
  if (!existsSync(output)) return false;
  const built = statSync(output).mtimeMs;
  return [...sources, fileURLToPath(import.meta.url)].every((name) => statSync(name).mtimeMs <= built);
}

/** Compiles and loads the add-on once. Returns what is in the way. */
function compile() {
  const headers = findHeaders();
  if (headers === undefined)
    return "no node_api.h: install Node's headers or pass --nodedir, then `npm rebuild virtkit`";
  const compiler = findCompiler();
  if (compiler === undefined)
    return "no C compiler: install gcc or clang and libc's headers, then `npm rebuild virtkit`";
  mkdirSync(build, { recursive: true });
  const result = join(build, `virtkit-${process.pid}.node`);
  const language = ["-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-pthread"];
  const macros = ["-D_GNU_SOURCE", "-D_FILE_OFFSET_BITS=64", "-DNAPI_VERSION=8", "-DNODE_GYP_MODULE_NAME=virtkit"];
  // A worker's end unloads what only it had loaded, and the signal handler with it: nodelete.
  const link = ["-shared", "-Wl,-z,nodelete", "-Wl,-z,relro", "-Wl,-z,now"];
  const warnings = values.strict ? ["-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wvla"] : ["-w"];
  const files = sources.filter((name) => name.endsWith(".c"));
  const args = [...language, ...macros, ...warnings, ...link, `-I${headers}`, ...files, "-o", result];
  try {
    const { status, stderr } = spawnSync(compiler, args, { encoding: "utf8" });
    if (status !== 0) {
      if (values.strict) console.error(stderr);
      return `errors from ${compiler}: ${firstError(stderr)}`;
    }
    createRequire(import.meta.url)(result);
    if (!values.strict) renameSync(result, output);
    return undefined;
  } catch (error) {
    return `errors on loading it: ${error.message.split("\n")[0]}`;
  } finally {
    rmSync(result, { force: true });
  }
}

function firstError(text) {
  return (text ?? "").split("\n").find((line) => /error/.test(line)) ?? "it gave no reason";
}

function findHeaders() {
  const beside = dirname(dirname(process.execPath));
  return [values.nodedir, beside, process.env.npm_config_nodedir]
    .filter((name) => name !== undefined && name !== "")
    .flatMap((name) => [join(name, "include", "node"), join(name, "src")])
    .find((name) => existsSync(join(name, "node_api.h")));
}

function findCompiler() {
  const asked = process.env.CC;
  const names = asked === undefined || asked === "" ? ["cc", "gcc", "clang"] : [asked];
  return names.find((name) => spawnSync(name, ["--version"], { stdio: "ignore" }).status === 0);
}
