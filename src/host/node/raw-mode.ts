/** The part of a tty that is needed. */
export interface RawTty {
  readonly isTTY?: boolean;
  setRawMode?(raw: boolean): unknown;
}

/** The part of Node's `process` that is needed; a test gives its own. */
export interface ProcessLike {
  readonly pid: number;
  on(event: string, listener: (...args: unknown[]) => void): unknown;
  off(event: string, listener: (...args: unknown[]) => void): unknown;
  listenerCount(event: string): number;
  kill(pid: number, signal: string): unknown;
}

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"];

/**
 * Puts a terminal into raw mode. It is put back by the function that is returned, and whatever else happens: at exit,
 * before an uncaught exception is printed, at the signals that end a program, and it is raw again after a stop (SIGCONT).
 * On something that is no terminal nothing is done. SIGKILL cannot be helped.
 */
export function enterRawMode(tty: RawTty, host: ProcessLike = process as unknown as ProcessLike): () => void {
  if (tty.isTTY !== true || tty.setRawMode === undefined) return () => undefined;
  let raw = false;
  const set = (on: boolean): void => {
    if (raw === on) return;
    raw = on;
    tty.setRawMode?.(on);
  };
  const cook = (): void => set(false);
  const resume = (): void => {
    raw = false;
    set(true);
  };
  const listeners = SIGNALS.map((signal): [string, () => void] => {
    const onSignal = (): void => {
      cook();
      // Somebody else handles the signal: what becomes of the program is theirs. Else it ends, as without us.
      if (host.listenerCount(signal) > 1) return;
      leave();
      host.kill(host.pid, signal);
    };
    return [signal, onSignal];
  });
  listeners.push(["exit", cook], ["uncaughtExceptionMonitor", cook], ["SIGCONT", resume]);
  const leave = (): void => {
    for (const [event, listener] of listeners) host.off(event, listener);
    cook();
  };
  for (const [event, listener] of listeners) host.on(event, listener);
  set(true);
  return leave;
}
