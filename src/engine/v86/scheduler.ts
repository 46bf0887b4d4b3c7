/** How the engine gets its turns from the event loop: Node's, a browser's, or a test's own. */
export interface Scheduler {
  /** Runs `turn` as soon as other pending events had theirs. Returns what {@link cancel} takes. */
  immediate(turn: () => void): unknown;
  /** Runs `turn` in about `milliseconds`. */
  after(turn: () => void, milliseconds: number): unknown;
  /** Forgets a turn; harmless after it ran. */
  cancel(handle: unknown): void;
}

interface Turn {
  run: (() => void) | undefined;
  timer: ReturnType<typeof setTimeout> | undefined;
}

/** setImmediate where there is one (Node), else a MessageChannel (browsers clamp nested time-outs to 4 ms). */
export function defaultScheduler(): Scheduler {
  const soon = typeof setImmediate === "function" ? setImmediate : channelImmediate();
  return {
    immediate(run) {
      const turn: Turn = { run, timer: undefined };
      soon(() => turn.run?.());
      return turn;
    },
    after(run, milliseconds) {
      const turn: Turn = { run, timer: undefined };
      turn.timer = setTimeout(() => turn.run?.(), milliseconds);
      return turn;
    },
    cancel(handle) {
      const turn = handle as Turn;
      turn.run = undefined;
      if (turn.timer !== undefined) clearTimeout(turn.timer);
    },
  };
}

function channelImmediate(): (turn: () => void) => void {
  const { port1, port2 } = new MessageChannel();
  const turns: (() => void)[] = [];
  (port1 as { onmessage?: () => void }).onmessage = () => turns.shift()?.();
  return (turn) => {
    turns.push(turn);
    port2.postMessage(0);
  };
}
