import { Command, CommanderError } from "commander";
import { VirtkitError } from "../common/error.ts";
import { UsageError } from "../machine/usage-error.ts";
import type { CliOutput } from "./output.ts";
import { runHelp } from "./run-help.ts";
import { readVersion } from "./version.ts";

/** A wrong option or value. */
export const EXIT_USAGE = 2;
/** Anything else that went wrong. */
export const EXIT_FAILURE = 1;

const EXAMPLES = `
Examples:
  virtkit start                        a shell in a guest, with a disk that keeps its files
  virtkit run --exec 'uname -a'        a command in a guest
  virtkit run -drive file=disk.img,format=raw,if=virtio
  virtkit run -device help             the devices there are
`;

/**
 * Runs one command line and returns the status to exit with: what the command says, 2 for a wrong option or value, 1 for other
 * failures. Errors are printed, not thrown.
 * @param argv without the program's own name
 */
export async function runCli(argv: readonly string[], output: CliOutput): Promise<number> {
  let status = 0;
  const program = createProgram(output, (result) => {
    status = result;
  });
  try {
    await program.parseAsync(withCommand(argv), { from: "user" });
    return status;
  } catch (error) {
    return report(error, output);
  }
}

/** QEMU's options without a command are those of `run`. */
function withCommand(argv: readonly string[]): string[] {
  const first = argv[0] ?? "--help";
  const own = ["-h", "--help", "-V", "--version"];
  // QEMU's way to ask.
  if (first === "-version") return ["--version"];
  return first.startsWith("-") && !own.includes(first) ? ["run", ...argv] : argv.length === 0 ? [first] : [...argv];
}

/** Prints what went wrong and returns the status for it. */
export function report(error: unknown, output: CliOutput): number {
  if (error instanceof CommanderError && error.exitCode === 0) return 0;
  if (error instanceof CommanderError) {
    output.err(`virtkit: ${error.message.replace(/^error: /, "")}\n`);
    return EXIT_USAGE;
  }
  if (error instanceof VirtkitError) {
    output.err(`virtkit: ${error.message}\n`);
    return error instanceof UsageError ? EXIT_USAGE : EXIT_FAILURE;
  }
  output.err(`virtkit: internal error: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
  return EXIT_FAILURE;
}

function createProgram(output: CliOutput, done: (status: number) => void): Command {
  const program = new Command("virtkit")
    .description("VirtIO for TypeScript: machines with virtio devices, from QEMU's options.")
    .version(readVersion(), "-V, --version", "print the version")
    .helpOption("-h, --help", "print this help")
    .enablePositionalOptions()
    .exitOverride()
    .configureOutput({
      writeOut: (text) => output.out(text),
      writeErr: () => undefined,
      getOutHelpWidth: () => output.columns,
    })
    .addHelpText("after", EXAMPLES);
  addRun(program, output, done);
  addStart(program, done);
  addGuest(program, output, done);
  return program;
}

function addRun(program: Command, output: CliOutput, done: (status: number) => void): void {
  const run = program
    .command("run")
    .summary("run a machine, with QEMU's options")
    .usage("[OPTION...]")
    .helpOption(false)
    .allowUnknownOption()
    .allowExcessArguments()
    .passThroughOptions()
    .configureHelp({ formatHelp: () => runHelp(output.columns) });
  run.action(async () => {
    const { readRunArguments } = await import("./options/raw-options.ts");
    const given = readRunArguments(run.args);
    if (given.kind === "help") {
      output.out(runHelp(output.columns));
      return;
    }
    const { buildRunOptions } = await import("./options/run-options.ts");
    const request = buildRunOptions(given.options);
    if (request.kind === "help") {
      const { answer, registryFor } = await import("./help-topics.ts");
      output.out(answer(request.topics, await registryFor(request.topics)));
      return;
    }
    const { runCommand } = await import("./commands/run.ts");
    done(await runCommand(request.options));
  });
}

interface StartFlags {
  readonly cache?: string;
  readonly disk?: string;
  readonly savedState: boolean;
  readonly trace?: string;
  readonly stats?: boolean;
}

function addStart(program: Command, done: (status: number) => void): void {
  program
    .command("start")
    .summary("a shell in a guest, with a disk that keeps its files")
    .description(
      "Boots the prepared guest into a shell. Its disk, an ext4 file system, keeps its files from run to run.",
    )
    .option("--cache <DIR>", "where prepared guests are kept")
    .option("--disk <FILE>", "the disk's image; made if it does not exist")
    .option("--no-saved-state", "boot the kernel instead of restoring the saved state")
    .option("--trace <FILE>", "write what the devices do into a file")
    .option("--stats", "print counters and latencies of the queues at the end")
    .action(async (flags: StartFlags) => {
      const { startCommand } = await import("./commands/start.ts");
      const { parseTrace } = await import("./options/trace.ts");
      const { cache, disk, savedState, trace, stats = false } = flags;
      const traces = trace === undefined ? [] : [parseTrace(trace)];
      done(await startCommand({ cache, disk, useSavedState: savedState, traces, stats }));
    });
}

interface GuestFlags {
  readonly cache?: string;
  readonly refresh?: boolean;
  readonly suite?: string;
  readonly arch?: string;
}

function addGuest(program: Command, output: CliOutput, done: (status: number) => void): void {
  program
    .command("guest")
    .summary("prepare a guest: kernel, modules, BIOS and initial RAM disk")
    .description("Prepares a guest from the distribution's packages, without root, and keeps it in a cache.")
    .argument("[action]", "prepare, list or remove", "prepare")
    .argument("[id]", "the guest to remove; all without it")
    .option("--cache <DIR>", "where prepared guests are kept")
    .option("--refresh", "look for newer packages even when a guest is there")
    .option("--suite <NAME>", "release of the distribution to take packages from, such as bookworm")
    .option("--arch <NAME>", "architecture of the guest (default: i386)")
    .action(async (action: string, id: string | undefined, flags: GuestFlags) => {
      const { guestCommand } = await import("./commands/guest.ts");
      done(await guestCommand({ action, id, ...flags }, output));
    });
}
