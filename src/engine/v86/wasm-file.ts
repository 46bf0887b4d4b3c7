import { readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { VirtkitError } from "../../common/error.ts";
import { V86_VERSION } from "./internals.ts";

/**
 * v86's WebAssembly module from the installed package (Node only).
 * @throws ERR_VIRTKIT_V86_WASM when it is not there
 */
export async function readV86Wasm(): Promise<Uint8Array> {
  try {
    const main = createRequire(import.meta.url).resolve("v86");
    return new Uint8Array(await readFile(join(dirname(main), "v86.wasm")));
  } catch (cause) {
    throw new VirtkitError(
      "ERR_VIRTKIT_V86_WASM",
      `the package v86 is not installed as it should be: run npm install v86@${V86_VERSION}`,
      { cause },
    );
  }
}
