import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createHash, randomFillSync } from "node:crypto";
import {
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { TestContext } from "node:test";
import { prepareGuest } from "../host/node/guest/prepare.ts";

/** A folder that is removed after the test. */
export const scratchFolder = (t: Pick<TestContext, "after">): string => {
  const folder = mkdtempSync(join(tmpdir(), "virtkit-test-"));
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
};

/** An image of random bytes. */
export const randomImage = (folder: string, name: string, bytes: number): string => {
  const path = join(folder, name);
  writeFileSync(path, randomFillSync(Buffer.alloc(bytes)));
  return path;
};

/** An image of zeros that takes no room. */
export const sparseImage = (folder: string, name: string, bytes: number): string => {
  const path = join(folder, name);
  writeFileSync(path, "");
  truncateSync(path, bytes);
  return path;
};

export const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");

export const sha256OfFile = (path: string): string => sha256(readFileSync(path));

/** What must stay as it is of a file that may not be changed. */
export const fingerprint = (path: string): string => {
  const { size, mtimeNs, mode } = statSync(path, { bigint: true });
  return `${sha256OfFile(path)} ${size} ${mtimeNs} ${mode}`;
};

/** Runs a tool of the host's; it must end well. */
export const hostTool = (file: string, ...args: readonly string[]): string => {
  const { PATH = "" } = process.env;
  const env = { ...process.env, PATH: `${PATH}:/usr/sbin:/sbin`, NODE_OPTIONS: "" };
  const { status, stdout, stderr, error } = spawnSync(file, args, { env, encoding: "utf8" });
  assert.equal(error, undefined, `${file} is needed for this test`);
  assert.equal(status, 0, `${file} ${args.join(" ")} ends with ${status}:\n${stdout}${stderr}`);
  return stdout;
};

/** Checks an image's ext4 file system without mending anything. */
export const checkExt4 = (image: string): void => {
  hostTool("e2fsck", "-f", "-n", image);
};

/** A cache with the prepared guest in it and no saved states. The guest's files are the usual cache's own. */
export const cacheWithoutStates = async (folder: string): Promise<string> => {
  const guest = await prepareGuest();
  const cache = join(folder, "cache");
  const copy = join(cache, "guests", guest.id);
  mkdirSync(copy, { recursive: true });
  for (const name of readdirSync(guest.folder)) writeFileSync(join(copy, name), readFileSync(join(guest.folder, name)));
  return cache;
};

/** Names of all files in a folder and those below. */
export const filesIn = (folder: string): string[] =>
  readdirSync(folder, { recursive: true, encoding: "utf8" })
    .filter((name) => statSync(join(folder, name)).isFile())
    .sort();
