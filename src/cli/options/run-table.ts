/** An option of `virtkit run`. */
export interface RunOptionSpec {
  /** Without dashes. */
  readonly name: string;
  /** What its argument is called in the help; undefined for a flag. */
  readonly argument?: string;
  /** Other names, without dashes. */
  readonly aliases?: readonly string[];
  readonly group: string;
  readonly help: string;
}

const MACHINE = "Machine:";
const GUEST = "Guest:";
const DEVICES = "Devices:";
const CONSOLE = "Serial lines:";
const VIRTKIT = "virtkit's own:";
const ACCEPTED = "For QEMU's command lines:";

/** In the order of the help. */
export const RUN_OPTIONS: readonly RunOptionSpec[] = [
  { name: "m", argument: "SIZE", group: MACHINE, help: "guest memory, in MiB or with a suffix (default: 512M)" },
  { name: "name", argument: "NAME", group: MACHINE, help: "name of the machine, for messages" },
  { name: "snapshot", group: DEVICES, help: "writes go to temporary files: no image changes" },
  { name: "no-reboot", group: MACHINE, help: "exit when the guest reboots" },
  {
    name: "boot",
    argument: "c",
    group: MACHINE,
    help: "let the firmware boot from the first disk, or the one with the lowest bootindex",
  },
  { name: "bios", argument: "FILE", group: MACHINE, help: "firmware image (default: SeaBIOS)" },
  {
    name: "kernel",
    argument: "FILE",
    group: GUEST,
    help: "Linux kernel to boot (default: the prepared guest, see virtkit guest)",
  },
  { name: "initrd", argument: "FILE", group: GUEST, help: "initial RAM disk, with -kernel" },
  { name: "append", argument: "TEXT", group: GUEST, help: "kernel command line" },
  {
    name: "drive",
    argument: "file=IMAGE,KEY=VALUE,...",
    group: DEVICES,
    help: "a disk: format=raw, if=virtio (default) or none, id, readonly=on, cache, discard, snapshot=on, index, aio; driver=module,file=./MINE.mjs: a disk of your own, with opt.NAME=VALUE and timeout=SECONDS for it",
  },
  {
    name: "device",
    argument: "NAME,KEY=VALUE,...",
    group: DEVICES,
    help: "a device; -device help and -device NAME,help list what there is; module=./MINE.mjs is a device of your own",
  },
  {
    name: "object",
    argument: "TYPE,id=ID,...",
    group: DEVICES,
    help: "an object that devices use; -object help lists the types",
  },
  {
    name: "chardev",
    argument: "TYPE,id=ID,...",
    group: DEVICES,
    help: "the far end of a console or port: null, stdio, file, pipe, socket, ringbuf",
  },
  {
    name: "serial",
    argument: "WHAT",
    group: CONSOLE,
    help: "COM1, then COM2...: stdio, mon:stdio, null, none, file:PATH, pipe:PATH, chardev:ID, unix:PATH, tcp:HOST:PORT",
  },
  { name: "nographic", group: CONSOLE, help: "COM1 on the terminal, Ctrl-A X quits (the default)" },
  {
    name: "qmp",
    argument: "unix:PATH,server=on",
    group: MACHINE,
    help: "a control socket (QMP); also tcp:HOST:PORT,server=on; wait=on starts when a client is there",
  },
  { name: "exec", argument: "COMMAND", group: VIRTKIT, help: "run a command in the guest and exit with its status" },
  { name: "exec-timeout", argument: "SECONDS", group: VIRTKIT, help: "give up when the command takes longer" },
  {
    name: "trace",
    argument: "FILE,KEY=VALUE,...",
    group: VIRTKIT,
    help: "write what the devices do into a file: device=ID+ID and kind=KIND+KIND leave out the rest",
  },
  { name: "stats", group: VIRTKIT, help: "print counters and latencies of the queues at the end" },
  { name: "cache", argument: "DIR", group: VIRTKIT, help: "where prepared guests are kept" },
  { name: "no-saved-state", group: VIRTKIT, help: "boot the kernel instead of restoring the saved state" },
  { name: "machine", aliases: ["M"], argument: "pc", group: ACCEPTED, help: "there is one kind of machine" },
  { name: "accel", argument: "tcg", group: ACCEPTED, help: "guests run in v86, which translates as QEMU's tcg does" },
  { name: "smp", argument: "1", group: ACCEPTED, help: "a machine has one CPU" },
  { name: "cpu", argument: "MODEL", group: ACCEPTED, help: "ignored: there is one model" },
  { name: "display", argument: "none", group: ACCEPTED, help: "no screen is shown" },
  { name: "vga", argument: "none|std", group: ACCEPTED, help: "the card is there, but no screen is shown" },
  { name: "monitor", argument: "none", group: ACCEPTED, help: "there is no monitor" },
  { name: "parallel", argument: "none", group: ACCEPTED, help: "there is no parallel port" },
  { name: "net", argument: "none", group: ACCEPTED, help: "there is no network card", aliases: ["nic"] },
  { name: "rtc", argument: "base=utc", group: ACCEPTED, help: "the guest's clock is the host's, in UTC" },
  { name: "nodefaults", group: ACCEPTED, help: "no serial line unless -serial asks for one" },
  { name: "no-user-config", group: ACCEPTED, help: "no effect: no configuration file is read" },
  { name: "no-hpet", group: ACCEPTED, help: "no effect: there is no HPET" },
];

const DISK = "A disk is -drive file=IMAGE,format=raw,if=virtio";
const CONTROL = "A control socket is -qmp unix:PATH,server=on,wait=off; there is no other monitor.";
const NO_NETWORK = "There is no network device yet.";
const ENGINE = "Guests run in v86, an emulator: no accelerator is needed.";

/** Options of QEMU's that are refused, with what to do instead where there is something. */
export const REFUSED_OPTIONS: ReadonlyMap<string, string | undefined> = new Map<string, string | undefined>([
  ...(["hda", "hdb", "hdc", "hdd", "sd", "mtdblock", "pflash", "blockdev", "fda", "fdb"] as const).map(
    (name) => [name, DISK] as const,
  ),
  ["cdrom", `${DISK},readonly=on`],
  ...(["mon", "qmp-pretty"] as const).map((name) => [name, CONTROL] as const),
  ["netdev", NO_NETWORK],
  ...(["enable-kvm", "no-kvm", "icount", "mem-path", "mem-prealloc", "numa"] as const).map(
    (name) => [name, ENGINE] as const,
  ),
  ["global", "Give the property to each -device."],
  ["set", "Give the property to the -device or -drive itself."],
  ["debugcon", "Use -serial."],
  ["version", "It is --version."],
  ...(
    "acpitable action add-fd async-teardown audio audio-help audiodev chroot compat D d daemonize dfilter dtb " +
    "dump-vmstate echr enable-sync-profile fsdev full-screen fw_cfg g gdb incoming iscsi k L loadvm msg no-acpi " +
    "no-fd-bootchk no-shutdown only-migratable option-rom overcommit pidfile plugin portrait preconfig prom-env " +
    "readconfig rotate runas S s sandbox seed semihosting semihosting-config singlestep smbios spice tb-size tpmdev " +
    "usb usbdevice uuid virtfs vnc watchdog watchdog-action win2k-hack writeconfig xen-attach xen-domid " +
    "xen-domid-restrict"
  )
    .split(" ")
    .map((name) => [name, undefined] as const),
]);
