import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import ts from "typescript";

/** What the worker needs of the sources. */
const FOLDERS = "spec common memory virtqueue backend device driver transport trace engine/loopback".split(" ");

/** Copies the core and the worker of this bench to `to`, with the hooks of traces or without. Returns how many were left out. */
export function copySources(root: string, to: string, hooks: boolean): number {
  writeFileSync(join(to, "package.json"), '{ "type": "module" }\n');
  mkdirSync(join(to, "bench/trace"), { recursive: true });
  cpSync(join(root, "bench/trace/worker.ts"), join(to, "bench/trace/worker.ts"));
  let left = 0;
  for (const file of FOLDERS.flatMap((folder) => filesIn(join(root, "src"), folder))) {
    const target = join(to, "src", file);
    mkdirSync(dirname(target), { recursive: true });
    const stripped = withoutHooks(readFileSync(join(root, "src", file), "utf8"));
    const text = ts.createPrinter().printFile(hooks ? stripped.before : stripped.after);
    writeFileSync(target, text);
    if (!hooks) left += stripped.count;
  }
  return left;
}

function filesIn(root: string, folder: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, encoding: "utf8" })
    .filter((name) => name.endsWith(".ts") && !name.endsWith(".test.ts"))
    .map((name) => join(folder, name));
}

function withoutHooks(text: string): { before: ts.SourceFile; after: ts.SourceFile; count: number } {
  const before = ts.createSourceFile("source.ts", text, ts.ScriptTarget.Latest, true);
  let count = 0;
  const { transformed } = ts.transform(before, [
    (context) => {
      const visit = (node: ts.Node): ts.Node => {
        if (!isHook(node)) return ts.visitEachChild(node, visit, context);
        count++;
        return ts.factory.createEmptyStatement();
      };
      return (file) => ts.visitEachChild(file, visit, context);
    },
  ]);
  return { before, after: transformed[0] ?? before, count };
}

/** `X.tracer?.emit(...)` as a statement, or an `if` that asks whether there is a tracer. */
function isHook(node: ts.Node): boolean {
  if (ts.isIfStatement(node)) return /\btracer !== undefined$/.test(node.expression.getText());
  if (!ts.isExpressionStatement(node) || !ts.isCallExpression(node.expression)) return false;
  return /\btracer\?\.emit$/.test(node.expression.expression.getText());
}
