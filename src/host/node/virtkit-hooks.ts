import type { InitializeHook, ResolveHook } from "node:module";

/** Runs on Node's thread for loader hooks: the files behind the package's names, by `node:module`'s `register`. */
let own: ReadonlyMap<string, string> = new Map();

export const initialize: InitializeHook<ReadonlyMap<string, string>> = (files) => {
  own = files;
};

/** An import of virtkit that nothing else answers is the virtkit that runs. */
export const resolve: ResolveHook = async (specifier, context, nextResolve) => {
  const url = own.get(specifier);
  if (url === undefined) return nextResolve(specifier, context);
  try {
    return await nextResolve(specifier, context);
  } catch {
    return nextResolve(url, context);
  }
};
