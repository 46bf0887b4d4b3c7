import { execFileSync } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { scratchFolder } from "../testing/guest-files.ts";
import { PROGRAM, startProgram } from "../testing/guest-program.ts";

const PROMPT = /root@virtkit:~# /;

test("the guest's console has the size of the window, and follows it", { timeout: 180_000 }, async (t) => {
  const folder = scratchFolder(t);
  execFileSync("mkfifo", [join(folder, "go")]);
  const words = [...PROGRAM, "start", "--disk", join(folder, "disk.img")].map((word) => `'${word}'`).join(" ");
  const later = "(read line <go; stty -F $terminal rows 20 cols 60) &";
  const command = `stty rows 33 cols 111; terminal=$(tty); ${later} ${words}`;
  const run = startProgram(["script", "-qfec", command, "/dev/null"], { cwd: folder, input: "open" });
  await run.sees(PROMPT);
  // The kernel is told by an interrupt, so it may know a moment after the prompt.
  const waitFor = (size: string) => `until [ "$(stty size)" = "${size}" ]; do :; done; echo it is "$(stty size)"\r`;
  run.write(waitFor("33 111"));
  await run.sees(/it is 33 111/);
  writeFileSync(join(folder, "go"), "\n");
  run.write(waitFor("20 60"));
  await run.sees(/it is 20 60/);
  run.write("\x01x");
  run.endInput();
  await run.ended;
});
