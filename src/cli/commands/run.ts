import type { Readable } from "node:stream";
import type { Environment } from "../../common/environment.ts";
import { VirtkitError } from "../../common/error.ts";
import { NodeBackends } from "../../host/node/backend-factory.ts";
import { ControlSocket } from "../../host/node/control-socket.ts";
import { createEnvironment, createLogger } from "../../host/node/environment.ts";
import { progressRenderer } from "../../host/node/guest/index.ts";
import { ControlServer } from "../../machine/control/server.ts";
import { blameAsync, UsageError } from "../../machine/usage-error.ts";
import type { VirtualMachine } from "../../machine/virtual-machine.ts";
import { assembleMachine } from "../../node/create-machine.ts";
import { statsTable } from "../../trace/stats-table.ts";
import { connectTerminal } from "../console-size.ts";
import type { ControlOptions } from "../options/control.ts";
import type { ExecOptions, RunOptions } from "../options/run-options.ts";
import { EXIT_BROKEN_PIPE, OutputError, ProcessOutput } from "../output.ts";
import { Session } from "../session.ts";
import { catchUserCode } from "../user-code.ts";
import { readVersion } from "../version.ts";

/** Which option is to blame for what only the engine finds out. */
const BLAMED: Readonly<Record<string, string>> = {
  ERR_VIRTKIT_MEMORY_SIZE: "-m",
  ERR_VIRTKIT_APPEND: "-append",
  ERR_VIRTKIT_INITRD: "-initrd",
  ERR_VIRTKIT_KERNEL: "-kernel",
};

/** A command that ran out of time, as timeout(1) has it. */
const EXIT_TIMEOUT = 124;

/** `virtkit run`: runs the machine until it ends. Returns the status to exit with. */
export async function runCommand(options: RunOptions): Promise<number> {
  const quiet = options.exec !== undefined;
  const environment = createEnvironment(createLogger("warn"));
  if (!quiet) for (const warning of options.warnings) environment.log.log("warn", warning);
  return runMachine(options, environment);
}

/** {@link RunOptions} and what only `start` asks for. */
export interface SessionOptions extends RunOptions {
  /** Where the guest's init mounts a disk, "vda:/root". */
  readonly data?: string;
  /** With an agent the guest is switched off in order when the user quits. */
  readonly agent?: boolean;
}

/** Makes and runs a machine for the user of a terminal. Returns the status to exit with. */
export async function runMachine(options: SessionOptions, environment: Environment): Promise<number> {
  const session = new Session();
  const uncatch = catchUserCode(environment.log);
  const progress = progressRenderer();
  const backends = new NodeBackends({
    environment,
    signal: session.signal,
    onQuit: () => session.quit(),
    onInterrupt: () => process.kill(process.pid, "SIGINT"),
  });
  try {
    const machine = await assembleMachine({
      description: options.machine,
      source: options.boot,
      agent: options.exec !== undefined || options.agent === true,
      control: options.controls.length > 0,
      name: options.name,
      noReboot: options.noReboot,
      bios: options.bios,
      cacheDir: options.cache,
      useSavedState: options.useSavedState,
      traces: options.traces,
      stats: options.stats,
      ...(options.data === undefined ? {} : { data: options.data }),
      term: process.env["TERM"],
      onProgress: progress.onProgress,
      signal: session.signal,
      environment,
      backends,
    });
    progress.finish();
    session.adopt(machine);
    const sockets = await openControls(machine, options.controls, environment);
    try {
      return await run(machine, options, session, backends);
    } finally {
      await sockets.close();
      if (machine.stats !== undefined) process.stderr.write(statsTable(machine.stats));
    }
  } catch (error) {
    if (session.isEnding) return session.status ?? 0;
    const option = error instanceof VirtkitError ? BLAMED[error.code] : undefined;
    throw option === undefined ? error : UsageError.of(option, error);
  } finally {
    progress.finish();
    session.close();
    uncatch();
  }
}

/** Listens for clients; with `wait` until there is one. */
async function openControls(
  machine: VirtualMachine,
  controls: readonly ControlOptions[],
  environment: Environment,
): Promise<{ close(): Promise<void> }> {
  const server = new ControlServer({ machine, environment, version: readVersion() });
  const sockets: ControlSocket[] = [];
  const close = async (): Promise<void> => {
    await Promise.all(sockets.map((socket) => socket.close()));
    server.close();
  };
  try {
    for (const { option, address } of controls)
      sockets.push(await blameAsync(option, () => ControlSocket.open({ server, address, environment })));
    const waiting = sockets.filter((_, index) => controls[index]?.wait === true);
    const ended = machine.ended.then(() => undefined);
    await Promise.race([ended, Promise.all(waiting.map((socket) => socket.firstClient))]);
    return { close };
  } catch (error) {
    await close();
    throw error;
  }
}

async function run(
  machine: VirtualMachine,
  options: RunOptions,
  session: Session,
  backends: NodeBackends,
): Promise<number> {
  let fault: Error | undefined;
  machine.on("end", (_reason, error) => {
    fault = error;
  });
  await machine.start();
  const { terminal } = backends;
  if (terminal !== undefined && machine.devices !== undefined) connectTerminal(terminal, machine.devices);
  if (options.exec !== undefined) {
    try {
      const status = await execute(machine, options.exec, session.signal);
      return session.status ?? status;
    } finally {
      await machine.stop();
    }
  }
  await machine.ended;
  if (fault !== undefined) throw fault;
  return session.status ?? 0;
}

/** Runs one command with our own standard input, output and error. */
async function execute(machine: VirtualMachine, exec: ExecOptions, signal: AbortSignal): Promise<number> {
  const { stdin } = process;
  const stdout = new ProcessOutput(process.stdout, "standard output");
  const stderr = new ProcessOutput(process.stderr, "standard error");
  try {
    const { status } = await machine.exec(exec.command, {
      ...(stdin.isTTY === true ? {} : { stdin: stdin as AsyncIterable<Uint8Array> & Readable }),
      ...(exec.timeout === undefined ? {} : { timeout: exec.timeout }),
      onStdout: (bytes) => stdout.write(bytes),
      onStderr: (bytes) => stderr.write(bytes),
      signal,
    });
    await stdout.end();
    await stderr.end();
    return status;
  } catch (error) {
    if (error instanceof OutputError && error.isBrokenPipe) return EXIT_BROKEN_PIPE;
    if (!(error instanceof VirtkitError) || error.code !== "ERR_VIRTKIT_EXEC_TIMEOUT") throw error;
    process.stderr.write(`virtkit: ${error.message}\n`);
    return EXIT_TIMEOUT;
  } finally {
    // Node keeps the program alive while a pipe is read.
    if (stdin.isTTY !== true) stdin.destroy();
  }
}
