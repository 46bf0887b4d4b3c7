import { mkdir, stat } from "node:fs/promises";
import { dirname, resolve } from "node:path";

/**
 * Makes a folder and those above it that are missing. Node's own `recursive` never returns where a file system refuses new
 * folders with ENOENT, as /proc does.
 * @throws the system's error (ENOENT, EACCES, ENOTDIR, ...) for the first folder that cannot be made
 */
export const makeFolder = async (path: string): Promise<void> => {
  const missing: string[] = [];
  for (let at = resolve(path); !(await exists(at)); at = dirname(at)) missing.push(at);
  for (const folder of missing.reverse()) {
    await mkdir(folder).catch((cause: NodeJS.ErrnoException) => {
      if (cause.code !== "EEXIST") throw cause;
    });
  }
};

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    (info) => {
      if (!info.isDirectory())
        throw Object.assign(new Error(`ENOTDIR: not a directory, '${path}'`), { code: "ENOTDIR" });
      return true;
    },
    (cause: NodeJS.ErrnoException) => {
      if (cause.code === "ENOENT") return false;
      throw cause;
    },
  );
