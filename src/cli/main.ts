import { EXIT_BROKEN_PIPE } from "./output.ts";
import { EXIT_FAILURE, runCli } from "./program.ts";

// Without a listener Node ends with a stack trace when the reader of `virtkit run --help | head` has seen enough.
let failure: NodeJS.ErrnoException | undefined;
process.stdout.on("error", (error) => {
  failure ??= error;
});
process.stderr.on("error", () => {});

const status = await runCli(process.argv.slice(2), {
  out: (text) => void process.stdout.write(text),
  err: (text) => void process.stderr.write(text),
  columns: process.stdout.columns ?? 80,
});
process.exitCode = status;

// Streams report a failed write later than it was made.
setImmediate(() => {
  if (failure === undefined || status !== 0) return;
  process.exitCode = failure.code === "EPIPE" ? EXIT_BROKEN_PIPE : EXIT_FAILURE;
  if (failure.code !== "EPIPE")
    process.stderr.write(`virtkit: standard output cannot be written: ${failure.message}\n`);
});
