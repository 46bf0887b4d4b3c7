import assert from "node:assert/strict";
import * as fs from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { type PunchCall, punchHoleLater, runFallocate } from "./punch-call.ts";

const limit = { timeout: 60_000 };
const folder = fs.mkdtempSync(join(tmpdir(), "virtkit-punch-"));
after(() => fs.rmSync(folder, { recursive: true, force: true }));

const punch = (call: PunchCall, fd: number, offset: number, length: number) =>
  new Promise<string | undefined>((resolve) => call(fd, offset, length, resolve));

for (const [name, call] of [
  ["the system call, where there is one", punchHoleLater],
  ["fallocate(1)", runFallocate],
] as const)
  test(`${name}: blocks are given back, the rest stays, and a failure is said`, limit, async () => {
    const path = join(folder, name);
    fs.writeFileSync(path, Buffer.alloc(1 << 20, 1));
    const fd = fs.openSync(path, "r+");
    const { blocks } = fs.fstatSync(fd);
    const holes = [0, 1, 2].map((i) => punch(call, fd, 65536 + i * 131072, 65536));
    assert.deepEqual(await Promise.all(holes), [undefined, undefined, undefined]);
    assert.ok(fs.fstatSync(fd).blocks <= blocks - (3 * 65536) / 512);
    const bytes = fs.readFileSync(path);
    assert.deepEqual([bytes[65535], bytes[65536], bytes[131071], bytes[131072], bytes.length], [1, 0, 0, 1, 1 << 20]);
    fs.closeSync(fd);
    const device = fs.openSync("/dev/null", "r+");
    assert.match((await punch(call, device, 0, 65536)) as string, /ENODEV|fallocate ended with/);
    fs.closeSync(device);
  });
