/**
 * What somebody else's code threw, in one line: its message, and the place in the code where that is known. `near` is part of
 * the file's name: the first frame in that file is shown.
 */
export function faultText(error: unknown, near?: string): string {
  if (!(error instanceof Error)) return String(error);
  const frames = [...(error.stack ?? "").matchAll(/^\s+at .*?([^\s/\\(]+:\d+:\d+)\)?$/gm)].map(
    ([, place = ""]) => place,
  );
  const place = near === undefined ? undefined : frames.find((frame) => frame.startsWith(near));
  const text = `${error.name}: ${error.message}`.split("\n", 1)[0] as string;
  return place === undefined ? text : `${text} (${place})`;
}

/** The last part of a path. */
export const baseName = (path: string): string =>
  path.slice(Math.max(path.lastIndexOf("/"), path.lastIndexOf("\\")) + 1);
