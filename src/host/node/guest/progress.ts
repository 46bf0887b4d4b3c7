/** The steps of preparing a guest, in their order. */
export type GuestStage = "wait" | "update" | "resolve" | "download" | "unpack" | "kernel" | "initramfs" | "store";

/** What a stage is called on a terminal. */
export const STAGE_TITLES: Readonly<Record<GuestStage, string>> = {
  wait: "waiting for another virtkit that prepares the guest",
  update: "reading the package lists",
  resolve: "choosing the packages",
  download: "downloading the packages",
  unpack: "unpacking",
  kernel: "unpacking the kernel",
  initramfs: "building the initramfs",
  store: "storing in the cache",
};

/** One report; a stage begins with `done` 0 and ends with `done` equal to `total`. */
export interface GuestProgress {
  readonly stage: GuestStage;
  readonly done: number;
  /** At least 1. */
  readonly total: number;
  /** Of `done` and `total`: bytes, or things counted. */
  readonly unit: "bytes" | "steps";
}

export type OnGuestProgress = (progress: GuestProgress) => void;
