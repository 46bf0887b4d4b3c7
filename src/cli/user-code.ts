import { writeSync } from "node:fs";
import type { Logger } from "../common/environment.ts";
import { faultText } from "../common/fault-text.ts";
import { hasUserModules, isFromUserModule } from "../host/node/user-module.ts";

/** Milliseconds that timers and sockets of a user's may keep the program after its end. */
const LINGER = 1000;

/**
 * What a user's module throws outside of a request, in a timer for instance, is logged and does not end the program; anything else does, as
 * ever. A module that ends the program is told of, and is no success. Returns what takes this back, after which modules cannot keep the
 * program alive for long.
 */
export function catchUserCode(log: Logger): () => void {
  const caught = (error: unknown): void => {
    if (isFromUserModule(error)) {
      const [, place = ""] = /^\s+at .*?([^\s/\\(]+:\d+:\d+)\)?$/m.exec((error as Error).stack ?? "") ?? [];
      log.log("error", `a module throws outside of a request: ${faultText(error)} (${place}); the machine goes on`);
      return;
    }
    process.off("uncaughtException", caught).off("exit", exiting);
    setImmediate(() => {
      throw error;
    });
  };
  const exiting = (status: number): void => {
    if (!hasUserModules()) return;
    writeSync(process.stderr.fd, `virtkit: a module ended the program with process.exit(${status})\n`);
    process.exitCode = 1;
  };
  // Only a program that nothing is left to do for comes here: no module ended it.
  const idle = (): void => void process.off("exit", exiting);
  process.on("uncaughtException", caught).on("exit", exiting).on("beforeExit", idle);
  return () => {
    process.off("uncaughtException", caught).off("exit", exiting).off("beforeExit", idle);
    if (hasUserModules()) setTimeout(() => process.exit(), LINGER).unref();
  };
}
