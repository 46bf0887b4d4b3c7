import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, test } from "node:test";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("../../../..", import.meta.url));
const folder = fs.mkdtempSync(join(tmpdir(), "virtkit-package-"));
after(() => fs.rmSync(folder, { recursive: true, force: true }));

interface Manifest {
  readonly files: string[];
  readonly exports: Record<string, string>;
  readonly dependencies: Record<string, string>;
}
const manifest = JSON.parse(fs.readFileSync(join(root, "package.json"), "utf8")) as Manifest;

const npmCli = (): string | undefined =>
  [
    process.env["npm_execpath"],
    join(dirname(fs.realpathSync(process.execPath)), "../lib/node_modules/npm/bin/npm-cli.js"),
  ].find((name) => name !== undefined && fs.existsSync(name));

function run(program: string, args: string[], cwd: string, env: NodeJS.ProcessEnv = process.env) {
  // The tests' own loader is not there.
  const clean = { ...env, NODE_OPTIONS: "", npm_config_offline: "true", npm_config_update_notifier: "false" };
  const result = spawnSync(program, args, { cwd, env: clean, encoding: "utf8", timeout: 120_000 });
  return { ...result, output: `${result.stdout}${result.stderr}` };
}

/** What `npm pack` makes of the sources as they are, with a dist/ of their own: the checkout's may be old. */
function pack(npm: string): string {
  const stage = join(folder, "stage");
  fs.mkdirSync(stage);
  for (const name of ["package.json", ...manifest.files.filter((file) => file !== "dist")])
    fs.cpSync(join(root, name), join(stage, name), { recursive: true });
  const tsc = join(root, "node_modules/typescript/bin/tsc");
  const built = run(process.execPath, [tsc, "-p", "tsconfig.build.json", "--outDir", join(stage, "dist")], root);
  assert.equal(built.status, 0, built.output);
  const packed = run(process.execPath, [npm, "pack", "--ignore-scripts", "--silent"], stage);
  assert.equal(packed.status, 0, packed.output);
  return join(stage, packed.stdout.trim());
}

/** Unpacks it where `npm install` would, its dependencies beside it, so that no registry is asked. */
function install(tarball: string): { project: string; installed: string } {
  const project = join(folder, "project");
  const installed = join(project, "node_modules", "virtkit");
  fs.mkdirSync(installed, { recursive: true });
  assert.equal(run("tar", ["-xzf", tarball, "--strip-components=1", "-C", installed], project).status, 0);
  for (const name of Object.keys(manifest.dependencies))
    fs.symlinkSync(fs.realpathSync(join(root, "node_modules", name)), join(project, "node_modules", name));
  const dependencies = { virtkit: "*" };
  fs.writeFileSync(join(project, "package.json"), JSON.stringify({ name: "project", type: "module", dependencies }));
  return { project, installed };
}

/** A folder of programs that has no compiler. */
function poorPath(): string {
  const bin = join(folder, "bin");
  fs.mkdirSync(bin);
  fs.symlinkSync(process.execPath, join(bin, "node"));
  fs.symlinkSync("/bin/sh", join(bin, "sh"));
  return bin;
}

const subpaths = (installed: string): string[] =>
  Object.keys(manifest.exports).flatMap((key) => {
    if (key.endsWith(".json")) return [];
    if (!key.includes("*")) return [key === "." ? "virtkit" : `virtkit${key.slice(1)}`];
    const inFolder = fs.readdirSync(join(installed, "dist", key.slice(2, -2)));
    const modules = inFolder.filter((name) => name.endsWith(".js"));
    return modules.map((name) => `virtkit${key.slice(1, -1)}${name.slice(0, -3)}`);
  });

test("a packed virtkit installs without a compiler, says what is lost in one line, and builds later", {
  timeout: 300_000,
}, (t) => {
  const npm = npmCli();
  if (npm === undefined) return t.skip("no npm beside this node");
  const { project, installed } = install(pack(npm));
  const poor = { ...process.env, PATH: poorPath(), CC: "" };
  const rebuild = ["rebuild", "virtkit", "--foreground-scripts", "--silent"];
  const without = run(process.execPath, [npm, ...rebuild], project, poor);
  assert.equal(without.status, 0, without.output);
  const lines = without.output.split("\n").filter((line) => line.startsWith("virtkit: "));
  assert.equal(lines.length, 1, without.output);
  assert.match(lines[0] as string, /no C compiler: install gcc .* will not work, the rest does$/);

  const names = subpaths(installed);
  assert.ok(names.includes("virtkit/spec/ring") && names.includes("virtkit/host/node/native"));
  const code = `
    for (const name of ${JSON.stringify(names)}) await import(name);
    const { createMemoryFile, nativeProblem } = await import("virtkit/host/node/native");
    try { createMemoryFile("x", 4096); console.log("works"); } catch (error) { console.log(error.code, nativeProblem()); }`;
  const use = () => run(process.execPath, ["--input-type=module", "-e", code], project, poor);
  const imported = use();
  assert.equal(imported.status, 0, imported.output);
  assert.match(
    imported.stdout,
    /^ERR_VIRTKIT_NATIVE the native add-on is not built; install a C compiler and run: node /,
  );

  const withOne = run(process.execPath, [npm, ...rebuild], project);
  assert.equal(withOne.status, 0, withOne.output);
  if (withOne.output.includes("is not built")) return t.diagnostic(`no second half: ${withOne.output}`);
  assert.equal(use().stdout, "works\n");
});
