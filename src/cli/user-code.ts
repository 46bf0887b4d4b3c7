import type { Logger } from "../common/environment.ts";
import { faultText } from "../common/fault-text.ts";
import { isFromUserModule } from "../host/node/user-module.ts";

/**
 * What a user's module throws outside of a request, in a timer for instance, is logged and does not end the program; anything else does, as
 * ever. Returns what takes this back.
 */
export function catchUserCode(log: Logger): () => void {
  const caught = (error: unknown): void => {
    if (isFromUserModule(error)) {
      const [, place = ""] = /^\s+at .*?([^\s/\\(]+:\d+:\d+)\)?$/m.exec((error as Error).stack ?? "") ?? [];
      log.log("error", `a module throws outside of a request: ${faultText(error)} (${place}); the machine goes on`);
      return;
    }
    process.off("uncaughtException", caught);
    setImmediate(() => {
      throw error;
    });
  };
  process.on("uncaughtException", caught);
  return () => void process.off("uncaughtException", caught);
}
