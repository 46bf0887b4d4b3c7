import { spawn } from "node:child_process";
import { FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, OP_FALLOCATE, RequestTable, Uring } from "./native/index.ts";
import { describeErrno, nativeProblem } from "./native/load.ts";

/** Punches one hole and calls back in a later turn, with what went wrong or undefined. A test may put its own in place. */
export type PunchCall = (fd: number, offset: number, length: number, done: (error: string | undefined) => void) => void;

/** Milliseconds that a run of fallocate(1) may take. */
const LIMIT = 60_000;
/** Holes that can be on their way at once in a thread. */
const ENTRIES = 64;

let chosen: PunchCall | undefined;

/** The system call through io_uring where the add-on is built and the host allows it, else fallocate(1). Neither blocks the thread. */
export const punchHoleLater: PunchCall = (fd, offset, length, done) => {
  chosen ??= openUring() ?? runFallocate;
  chosen(fd, offset, length, done);
};

function openUring(): PunchCall | undefined {
  if (nativeProblem() !== undefined) return undefined;
  const waiting = new Map<number, (error: string | undefined) => void>();
  const report = (count: number): void => {
    for (let i = 0; i < count; i++) {
      const result = ring.results[i] as number;
      const tag = ring.tags[i] as number;
      const done = waiting.get(tag);
      waiting.delete(tag);
      done?.(result < 0 ? describeErrno(result) : undefined);
    }
  };
  const opened = Uring.open(ENTRIES, report);
  if ("refused" in opened) return undefined;
  const { ring } = opened;
  const table = new RequestTable(1, 1);
  let next = 0;
  return (fd, offset, length, done) => {
    table.op[0] = OP_FALLOCATE;
    table.flags[0] = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE;
    table.fd[0] = fd;
    table.position[0] = offset;
    table.length[0] = length;
    table.tag[0] = next = (next + 1) >>> 0;
    waiting.set(next, done);
    if (ring.submit(table, 0, 1) === 1) return;
    waiting.delete(next);
    runFallocate(fd, offset, length, done);
  };
}

/** The descriptor itself goes to the program, so that a file that was renamed or removed meanwhile is the right one still. */
export const runFallocate: PunchCall = (fd, offset, length, done) => {
  const program = ["--punch-hole", "--offset", String(offset), "--length", String(length), "/proc/self/fd/3"];
  const child = spawn("fallocate", program, { stdio: ["ignore", "ignore", "ignore", fd], timeout: LIMIT });
  let told = false;
  const tell = (error: string | undefined): void => {
    if (told) return;
    told = true;
    done(error);
  };
  child.on("error", (error) => tell(error.message));
  child.on("exit", (code, signal) => tell(code === 0 ? undefined : `fallocate ended with ${code ?? signal}`));
};
