import { nearest } from "../../machine/nearest.ts";
import { UsageError } from "../../machine/usage-error.ts";
import { Keyval } from "./keyval.ts";

/** Bytes of guest memory unless -m says otherwise. */
export const DEFAULT_MEMORY = 512 * 2 ** 20;

/** -m [size=]SIZE[,maxmem=SIZE][,slots=N], a bare number in MiB. @throws UsageError */
export function parseMemory(text: string): number {
  const keys = new Keyval("-m", text, "size");
  const size = keys.size("size", "M");
  const largest = keys.size("maxmem", "M");
  keys.integer("slots", 0, 256);
  keys.finish();
  if (size === undefined || size === 0)
    return keys.fail("Parameter 'size' is missing", "Give the guest's memory in MiB, or with a suffix: -m 512M");
  if (largest !== undefined && largest !== size)
    keys.fail(`maxmem=${keys.text("maxmem")} is not supported: memory does not grow while the machine runs`);
  return size;
}

/** What `-machine help` and its like print. */
export const MACHINE_HELP = "Supported machines are:\npc                   a PC with PCI and ISA (default)\n";
export const ACCEL_HELP = "Accelerators supported:\ntcg                  v86, which translates as tcg does\n";
export const CPU_HELP = "Available CPUs:\nx86 v86              the only model; what -cpu names is ignored\n";

/** -smp [cpus=]1[,sockets=,cores=,threads=...]. @throws UsageError */
export function checkSmp(text: string): void {
  const keys = new Keyval("-smp", text, "cpus");
  const topology = ["cpus", "maxcpus", "sockets", "dies", "clusters", "cores", "threads"];
  const counts = topology.map((key) => keys.integer(key, 1, 255) ?? 1);
  keys.finish();
  if (counts.some((count) => count !== 1)) keys.fail("a machine has one CPU", "Leave it out, or write -smp 1");
}

/** -machine [type=]pc[,accel=tcg]. @throws UsageError */
export function checkMachine(text: string): void {
  const keys = new Keyval("-machine", text, "type");
  const type = keys.text("type") ?? "pc";
  if (type !== "pc" && type !== "i440fx" && !type.startsWith("pc-i440fx-"))
    keys.fail(`unsupported machine type '${type}'`, "The only machine is pc, a PC with PCI and ISA: -machine pc");
  const accelerators = keys.text("accel");
  if (accelerators !== undefined) checkAccelerator(keys.option, accelerators);
  for (const key of ["usb", "graphics", "hpet", "vmport", "dump-guest-core", "mem-merge", "smm"])
    if (keys.text(key) === "on" && (key === "usb" || key === "hpet" || key === "smm"))
      keys.fail(`${key}=on is not supported`, `Leave it out, or write ${key}=off`);
  keys.finish();
}

/** -accel tcg. @throws UsageError */
export function checkAccel(text: string): void {
  const keys = new Keyval("-accel", text, "accel");
  checkAccelerator(keys.option, keys.text("accel") ?? "");
  keys.word("thread", ["single", "multi"]);
  keys.finish();
}

const ACCELERATORS = ["tcg", "v86"];

/** QEMU takes the first of `kvm:tcg` that works. */
function checkAccelerator(option: string, names: string): void {
  const all = names.split(":");
  if (all.some((name) => ACCELERATORS.includes(name))) return;
  const known = ["kvm", "xen", "hax", "hvf", "nvmm", "whpx"].includes(names);
  const reason = known ? `accelerator ${names} is not supported` : `invalid accelerator ${names}`;
  const hint = `Guests run in v86, an emulator. Did you mean '${nearest(names, ACCELERATORS)?.name ?? "tcg"}'?`;
  throw new UsageError(reason, { option, hint });
}

/** -rtc base=utc,clock=host. @throws UsageError */
export function checkRtc(text: string): void {
  const keys = new Keyval("-rtc", text);
  const values = { base: "utc", clock: "host", driftfix: "none" };
  for (const [key, only] of Object.entries(values)) {
    const value = keys.text(key);
    if (value !== undefined && value !== only)
      keys.fail(`${key}=${value} is not supported`, `The guest's clock is the host's, in UTC: -rtc ${key}=${only}`);
  }
  keys.finish();
}

/** -boot c, -boot order=c: from disk. True when the firmware is to boot. @throws UsageError */
export function parseBoot(text: string): boolean {
  const keys = new Keyval("-boot", text, "order");
  const order = keys.text("order");
  const strict = keys.flag("strict");
  keys.refuse({
    once: "use order=c",
    menu: "nobody sees it",
    splash: "nobody sees it",
    "splash-time": "nobody sees it",
  });
  keys.finish();
  if (order === undefined && strict !== undefined) return false;
  if (order === undefined || !/^[a-p]+$/.test(order) || !order.startsWith("c"))
    keys.fail(
      `order=${order ?? ""} is not supported`,
      "The firmware boots from disk: -boot c. bootindex= says from which.",
    );
  return true;
}

/** -name [guest=]NAME. @throws UsageError */
export function parseName(text: string): string {
  const keys = new Keyval("-name", text, "guest");
  const name = keys.text("guest");
  keys.flag("debug-threads");
  keys.text("process");
  keys.finish();
  return name ?? keys.fail("Parameter 'guest' is missing", "Write -name NAME");
}
