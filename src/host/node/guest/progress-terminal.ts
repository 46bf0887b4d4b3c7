import { SingleBar } from "cli-progress";
import { type GuestProgress, type GuestStage, type OnGuestProgress, STAGE_TITLES } from "./progress.ts";

export interface ProgressRenderer {
  readonly onProgress: OnGuestProgress;
  /** Clears the bar away; call it once, whether the work succeeded or not. */
  finish(): void;
}

const MB = 1_000_000;

const count = (value: number, unit: GuestProgress["unit"]): string =>
  unit === "bytes" ? `${(value / MB).toFixed(1)} MB` : String(value);

/**
 * Shows progress on a stream: a bar on a terminal, elsewhere one line when a stage begins. Nothing is written before
 * the first report, so a guest that is cached costs no output.
 */
export const progressRenderer = (
  stream: NodeJS.WritableStream & { readonly isTTY?: boolean } = process.stderr,
): ProgressRenderer => (stream.isTTY ? barRenderer(stream) : lineRenderer(stream));

const lineRenderer = (stream: NodeJS.WritableStream): ProgressRenderer => {
  let current: GuestStage | undefined;
  return {
    onProgress: ({ stage }) => {
      if (stage === current) return;
      current = stage;
      stream.write(`virtkit: ${STAGE_TITLES[stage]}\n`);
    },
    finish: () => {},
  };
};

const barRenderer = (stream: NodeJS.WritableStream): ProgressRenderer => {
  let bar: SingleBar | undefined;
  let current: GuestStage | undefined;
  const stop = (): void => {
    bar?.stop();
    bar = undefined;
  };
  return {
    onProgress: ({ stage, done, total, unit }) => {
      const payload = { title: STAGE_TITLES[stage], shown: `${count(done, unit)} of ${count(total, unit)}` };
      if (stage !== current) {
        stop();
        current = stage;
        bar = new SingleBar({
          stream,
          format: total > 1 ? "{title} {bar} {shown}" : "{title}",
          barsize: 24,
          barCompleteChar: "=",
          barIncompleteChar: "-",
          hideCursor: true,
          clearOnComplete: true,
          stopOnComplete: false,
          gracefulExit: false,
          linewrap: null,
        });
        bar.start(total, done, payload);
      } else bar?.update(done, payload);
    },
    finish: stop,
  };
};
