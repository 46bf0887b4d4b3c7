import assert from "node:assert/strict";
import { test } from "node:test";
import { UsageError } from "../../machine/usage-error.ts";
import { parseDrive } from "./drive.ts";
import { readRunArguments } from "./raw-options.ts";
import { buildRunOptions, type RunOptions, type RunRequest } from "./run-options.ts";

const OPTIONS = { timeout: 5000 };

function request(argv: readonly string[]): RunRequest {
  const given = readRunArguments(argv);
  if (given.kind === "help") throw new Error("help");
  return buildRunOptions(given.options);
}

function run(...argv: string[]): RunOptions {
  const made = request(argv);
  if (made.kind === "help") throw new Error("help");
  return made.options;
}

const drive = (text: string) => run("-drive", text).machine.drives[0];
const chardev = (text: string) => run("-nodefaults", "-chardev", text).machine.chardevs[0]?.backend;
const serial = (text: string) => run("-serial", text).machine.chardevs[0]?.backend;

test("nothing given: 512 MiB, the prepared guest, COM1 on the terminal", OPTIONS, () => {
  assert.deepEqual(run(), {
    machine: {
      memory: 512 * 2 ** 20,
      objects: [],
      chardevs: [{ option: "-serial mon:stdio", id: "serial0", backend: { type: "stdio", signal: false, mux: true } }],
      serials: [{ option: "-serial mon:stdio", chardev: "serial0" }],
      drives: [],
      devices: [],
    },
    boot: { from: "guest", append: undefined },
    bios: undefined,
    name: undefined,
    noReboot: false,
    exec: undefined,
    cache: undefined,
    useSavedState: true,
    traces: [],
    stats: false,
    controls: [],
    warnings: [],
  });
});

test("traces", OPTIONS, () => {
  const { traces, stats } = run(
    "--trace",
    "a.jsonl",
    "--trace",
    "file=b,,c,device=d0+virtio-rng-pci,kind=kick+pop",
    "--stats",
  );
  assert.equal(stats, true);
  assert.deepEqual(traces, [
    { option: "--trace a.jsonl", to: { file: "a.jsonl" } },
    {
      option: "--trace file=b,,c,device=d0+virtio-rng-pci,kind=kick+pop",
      to: { file: "b,c" },
      devices: ["d0", "virtio-rng-pci"],
      kinds: ["kick", "pop"],
    },
  ]);
});

test("the line of the articles", OPTIONS, () => {
  const { machine } = run(
    "-drive",
    "file=disk.img,format=raw,if=none,id=drive-virtio-disk0",
    "-device",
    "virtio-blk-pci,scsi=off,bus=pci.0,addr=0x4,drive=drive-virtio-disk0,id=virtio-disk0,bootindex=1",
  );
  assert.deepEqual(machine.drives, [
    {
      option: "-drive file=disk.img,format=raw,if=none,id=drive-virtio-disk0",
      id: "drive-virtio-disk0",
      source: { file: "disk.img" },
      format: "raw",
      interface: "none",
      readOnly: false,
      cache: { writeback: true, direct: false, noFlush: false },
      aio: "threads",
      locking: true,
      discard: "ignore",
    },
  ]);
  assert.deepEqual(machine.devices, [
    {
      option: "-device virtio-blk-pci,scsi=off,bus=pci.0,addr=0x4,drive=drive-virtio-disk0,id=virtio-disk0,bootindex=1",
      driver: "virtio-blk-pci",
      id: "virtio-disk0",
      bus: "pci.0",
      properties: [
        { name: "scsi", value: "off" },
        { name: "addr", value: "0x4" },
        { name: "drive", value: "drive-virtio-disk0" },
        { name: "bootindex", value: "1" },
      ],
    },
  ]);
});

test("one dash or two, values that begin with a dash, options after --exec", OPTIONS, () => {
  const options = run(
    "--m",
    "64",
    "-append",
    "-v x",
    "--exec",
    "-c 'a b'",
    "--exec-timeout=1.5",
    "-no-reboot",
    "-M",
    "pc",
  );
  assert.deepEqual(
    [options.machine.memory, options.boot, options.exec, options.noReboot],
    [64 * 2 ** 20, { from: "guest", append: "-v x" }, { command: "-c 'a b'", timeout: 1500 }, true],
  );
  assert.deepEqual([options.machine.chardevs, options.machine.serials], [[], []]);
});

test("memory", OPTIONS, () => {
  for (const [text, mebibytes] of [
    ["64", 64],
    ["64M", 64],
    ["1G", 1024],
    ["size=1.5G", 1536],
    ["65536K", 64],
    ["512,maxmem=512M", 512],
  ] as const)
    assert.equal(run("-m", text).machine.memory, mebibytes * 2 ** 20, text);
  assert.equal(run("-m", "64", "-m", "128").machine.memory, 128 * 2 ** 20);
});

test("kernel, disk or prepared guest", OPTIONS, () => {
  assert.deepEqual(run("-kernel", "k", "-initrd", "i", "-append", "a=b c").boot, {
    from: "kernel",
    kernel: "k",
    initrd: "i",
    append: "a=b c",
  });
  assert.deepEqual(run("-boot", "c").boot, { from: "disk" });
  assert.deepEqual(run("-boot", "order=c,strict=on").boot, { from: "disk" });
});

test("drives", OPTIONS, () => {
  const cache = (mode: string) => drive(`file=x,cache=${mode}`)?.cache;
  assert.deepEqual(cache("none"), { writeback: true, direct: true, noFlush: false });
  assert.deepEqual(cache("writethrough"), { writeback: false, direct: false, noFlush: false });
  assert.deepEqual(cache("directsync"), { writeback: false, direct: true, noFlush: false });
  assert.deepEqual(cache("unsafe"), { writeback: true, direct: false, noFlush: true });
  assert.deepEqual(cache("none,cache.direct=off"), { writeback: true, direct: false, noFlush: false });
  assert.deepEqual([drive("file=x")?.interface, drive("file=x")?.format], ["virtio", undefined]);
  assert.deepEqual([drive("file=x,readonly=on")?.readOnly, drive("file=x,read-only")?.readOnly], [true, true]);
  assert.deepEqual(drive("file=a,,b=c.img,if=none,id=d")?.source, { file: "a,b=c.img" });
  assert.deepEqual(drive("file=file:x,media=disk,aio=io_uring,werror=report,discard=unmap")?.discard, "unmap");
  assert.deepEqual(
    [drive("file=x,file.locking=off")?.locking, drive("file=x,file.locking=on")?.locking],
    [false, true],
  );
  assert.deepEqual(drive("driver=raw,file.filename=x,file.locking=off,detect-zeroes=off,snapshot=off")?.format, "raw");
});

test("-snapshot and snapshot=on", OPTIONS, () => {
  const snapshots = (...args: string[]) => run(...args).machine.drives.map((drive) => drive.snapshot ?? false);
  assert.deepEqual(snapshots("-drive", "file=a,snapshot=on", "-drive", "file=b"), [true, false]);
  assert.deepEqual(snapshots("-snapshot", "-drive", "file=a", "-drive", "file=b,snapshot=off"), [true, false]);
});

test("drives without an id are called after their place, and come in the order of their index", OPTIONS, () => {
  const { drives } = run(
    ...["-drive", "file=a,index=2", "-drive", "file=b", "-drive", "file=c,if=none", "-drive", "file=d,id=x"],
  ).machine;
  assert.deepEqual(
    drives.map(({ id }) => id),
    ["none0", "virtio0", "x", "virtio2"],
  );
});

test("chardevs", OPTIONS, () => {
  assert.deepEqual(chardev("null,id=c"), { type: "null" });
  assert.deepEqual(chardev("stdio,id=c"), { type: "stdio", signal: true, mux: false });
  assert.deepEqual(chardev("stdio,id=c,mux=on"), { type: "stdio", signal: false, mux: true });
  assert.deepEqual(chardev("file,id=c,path=p,append=on"), {
    type: "file",
    path: "p",
    append: true,
    inputPath: undefined,
  });
  assert.deepEqual(chardev("ringbuf,id=c,size=4k"), { type: "ringbuf", size: 4096 });
  const socket = { type: "socket", server: true, wait: false, noDelay: false, reconnect: 0 };
  assert.deepEqual(chardev("socket,id=c,path=p,server=on,wait=off"), { ...socket, address: { path: "p" } });
  assert.deepEqual(chardev("socket,id=c,port=80,server,nowait,nodelay"), {
    ...socket,
    noDelay: true,
    address: { host: "localhost", port: 80 },
  });
});

test("serial lines", OPTIONS, () => {
  assert.deepEqual(serial("file:a,b"), { type: "file", path: "a,b", append: false, inputPath: undefined });
  assert.deepEqual(serial("unix:/tmp/s,server,nowait"), {
    type: "socket",
    address: { path: "/tmp/s" },
    server: true,
    wait: false,
    noDelay: false,
    reconnect: 0,
  });
  assert.deepEqual(serial("tcp::4444,server=on,wait=off")?.type, "socket");
  const { serials } = run(
    "-chardev",
    "null,id=c",
    "-serial",
    "none",
    "-serial",
    "chardev:c",
    "-serial",
    "null",
  ).machine;
  assert.deepEqual(
    serials.map(({ chardev: id }) => id),
    [undefined, "c", "serial2"],
  );
});

test("devices as JSON", OPTIONS, () => {
  const { machine } = run("-device", '{"driver":"virtio-rng-pci","id":"r","packed":true,"vectors":0,"addr":"0x7"}');
  assert.deepEqual(machine.devices[0]?.properties, [
    { name: "packed", value: true },
    { name: "vectors", value: 0 },
    { name: "addr", value: "0x7" },
  ]);
  assert.deepEqual([machine.devices[0]?.driver, machine.devices[0]?.id], ["virtio-rng-pci", "r"]);
});

test("what asks for nothing special is accepted", OPTIONS, () => {
  const { warnings } = run(
    ...["-nographic", "-display", "none", "-vga", "std", "-monitor", "none", "-net", "none", "-nic", "none"],
    ...["-smp", "1", "-smp", "cpus=1,sockets=1", "-machine", "pc,accel=kvm:tcg,usb=off", "-accel", "tcg,thread=single"],
    ...["-cpu", "host", "-rtc", "base=utc", "-nodefaults", "-no-user-config", "-no-hpet", "-parallel", "none"],
  );
  assert.deepEqual(warnings, ["-cpu host: ignored, there is one model of CPU"]);
});

test("cache=none says what it does here", OPTIONS, () => {
  assert.match(
    run("-drive", "file=x,cache=none").warnings.join("\n"),
    /^-drive file=x,cache=none: the host's page cache is used/,
  );
});

test("questions are no machine", OPTIONS, () => {
  const topics = (...argv: string[]) => {
    const made = request(argv);
    return made.kind === "help" ? made.topics : [];
  };
  assert.deepEqual(topics("-device", "help"), [{ of: "device", name: undefined }]);
  assert.deepEqual(topics("-device", "?"), [{ of: "device", name: undefined }]);
  assert.deepEqual(topics("-device", "virtio-blk-pci,help"), [{ of: "device", name: "virtio-blk-pci" }]);
  assert.deepEqual(topics("-object", "rng-random,help"), [{ of: "object", name: "rng-random" }]);
  assert.deepEqual(topics("-chardev", "help"), [{ of: "chardev", name: undefined }]);
});

const WRONG: readonly [argv: readonly string[], message: RegExp][] = [
  [["-drvie", "x"], /^-drvie: invalid option\nDid you mean '-drive'\?/],
  [["--exce", "x"], /^--exce: invalid option\nDid you mean '--exec'\?/],
  [["-drive=file"], /^-drive: invalid option/],
  [["-hda", "x"], /^-hda: this option of QEMU's is not supported\nA disk is -drive file=/],
  [["-enable-kvm"], /^-enable-kvm: this option of QEMU's is not supported\n/],
  [["-usb"], /^-usb: this option of QEMU's is not supported$/],
  [["-drive"], /^-drive: requires an argument\nWrite -drive file=/],
  [["--nographic=1"], /^--nographic: takes no argument/],
  [["disk.img"], /^disk\.img: unexpected argument\n.*-drive file=disk\.img/],
  [[""], /^'': unexpected argument/],
  [["-"], /^-: unexpected argument/],
  [["-m", "foo"], /^-m foo: Parameter 'size' expects a size, not 'foo'/],
  [["-m", "0"], /^-m 0: Parameter 'size' is missing/],
  [["-m", "512,foo=1"], /^-m 512,foo=1: Invalid parameter 'foo'\n.*Valid here: maxmem, size, slots/],
  [["-m", "512,maxmem=1G"], /maxmem=1G is not supported/],
  [["-smp", "2"], /^-smp 2: a machine has one CPU/],
  [["-smp", "foo"], /Parameter 'cpus' expects an integer/],
  [["-machine", "q35"], /unsupported machine type 'q35'\n/],
  [["-accel", "kvm"], /^-accel kvm: accelerator kvm is not supported\n/],
  [["-accel", "tgc"], /invalid accelerator tgc\n.*Did you mean 'tcg'\?/],
  [["-display", "gtk"], /^-display gtk: 'gtk' is not supported\n/],
  [["-monitor", "stdio"], /^-monitor stdio: 'stdio' is not supported\nThere is no monitor/],
  [["-rtc", "base=localtime"], /base=localtime is not supported/],
  [["-boot", "d"], /^-boot d: order=d is not supported/],
  [["-initrd", "x"], /^-initrd x: only allowed with -kernel/],
  [["-kernel", ""], /^-kernel '': a path is missing/],
  [["-boot", "c", "-append", "x"], /^-append: only allowed with a kernel/],
  [["--exec", ""], /^--exec '': the command is missing/],
  [["--exec-timeout", "5"], /^--exec-timeout: only works with --exec/],
  [["--exec", "x", "--exec-timeout", "soon"], /^--exec-timeout soon: 'soon' is no number of seconds/],
  [["--exec", "x", "-serial", "stdio"], /^-serial stdio: the terminal is taken/],
  [["-drive", "if=none"], /^-drive if=none: an image must be specified/],
  [
    ["-drive", "file=x,format=qcow2"],
    /format 'qcow2' is not supported, only raw is\n.*qemu-img convert -O raw x x\.raw/,
  ],
  [["-drive", "file=x.qcow2,format=qcow2"], /qemu-img convert -O raw x\.qcow2 x\.raw/],
  [["-drive", "file=x,format=rwa"], /Unknown driver 'rwa'\n.*format=raw/],
  [["-drive", "file=x,if=ide"], /if=ide is not supported\nValid values: none or virtio/],
  [["-drive", "file=x,if=vritio"], /unsupported bus type 'vritio'\nValid values: none or virtio/],
  [["-drive", "file=x,cache=foo"], /invalid cache option 'foo'\nValid values: none, writeback,/],
  [["-drive", "file=x,aio=foo"], /'aio' does not accept value 'foo'\nValid values: threads, native or io_uring/],
  [["-drive", "file=x,werror=stop"], /werror=stop is not supported/],
  [["-drive", "file=x,media=cdrom"], /media=cdrom is not supported/],
  [["-drive", "file=x,detect-zeroes=unmap"], /detect-zeroes is not supported/],
  [["-drive", "file=x,serial=1"], /'serial' is not supported: it is a property of the device/],
  [["-drive", "file=x,throttling.iops-total=1"], /'throttling\.iops-total' is not supported/],
  [["-drive", "file=x,readnoly=on"], /Invalid parameter 'readnoly'\nDid you mean 'readonly'\?/],
  [["-drive", "file=x,id=1x"], /Parameter 'id' expects an identifier/],
  [["-drive", "file=x,index=y"], /Parameter 'index' expects an integer/],
  [["-drive", "file=nbd://host/x"], /Protocol 'nbd' is not supported/],
  [["-drive", "x.img,format=raw"], /an image must be specified/],
  [
    ["-drive", "file=a,index=0", "-drive", "file=b,index=0"],
    /^-drive file=b,index=0: drive with bus=0, unit=0 \(index=0\) exists/,
  ],
  [["-chardev", "foo,id=c"], /'foo' is not a valid char driver name/],
  [["-chardev", "pty,id=c"], /the char driver 'pty' is not supported/],
  [["-chardev", "null"], /chardev: no id specified/],
  [["-chardev", "null,id=c,foo=1"], /Invalid parameter 'foo'/],
  [["-chardev", "file,id=c"], /chardev: file: no filename given/],
  [["-chardev", "socket,id=c"], /chardev: socket: no address given/],
  [["-chardev", "socket,id=c,path=p,wait=off"], /'wait' option is incompatible with socket in client connect mode/],
  [["-chardev", "ringbuf,id=c,size=1000"], /size of ringbuf chardev must be power of two/],
  [
    ["-chardev", "stdio,id=c", "-serial", "stdio"],
    /^-serial stdio: cannot use stdio by multiple character devices\n-chardev/,
  ],
  [["-serial", "foo"], /^-serial foo: 'foo' is not a valid char driver\n/],
  [["-serial", "chradev:c"], /Did you mean 'chardev'\?/],
  [["-serial", "chardev:c"], /^-serial chardev:c: chardev 'c' not found\n-chardev TYPE,id=ID declares one/],
  [["-serial", "tcp:nowhere"], /^-serial tcp:nowhere: 'nowhere' is no address/],
  [["-serial", "pty"], /'pty' is not supported/],
  [
    ["-serial", "null", "-serial", "null", "-serial", "null", "-serial", "null", "-serial", "none"],
    /too many serial ports/,
  ],
  [["-device", ""], /^-device: Parameter 'driver' is missing/],
  [["-device", "virtio-rng-pci,id=1a"], /Parameter 'id' expects an identifier/],
  [["-device", '{"driver":"virtio-rng-pci"'], /^-device \{.*: JSON parse error/],
  [["-device", '{"driver":"virtio-rng-pci","addr":[1]}'], /Invalid parameter type for 'addr'/],
  [["-device", '{"id":"x"}'], /Parameter 'driver' is missing/],
  [["-object", "rng-random"], /Parameter 'id' is missing/],
  [
    ["--trace", "a,kind=kick+pup"],
    /^--trace a,kind=kick\+pup: there are no events of kind 'pup'\nDid you mean 'pop'\? Valid: status, /,
  ],
  [["--trace", "a,device=x+"], /^--trace a,device=x\+: 'device' has an empty name in it\n/],
  [["--trace", "device=x"], /^--trace device=x: a file is missing\n/],
  [["--trace", ""], /^--trace: a file is missing\n/],
  [["--trace", "a,kinds=kick"], /^--trace a,kinds=kick: Invalid parameter 'kinds'\nDid you mean 'kind'\?/],
];

for (const [argv, message] of WRONG)
  test(`refused: ${argv.join(" ")}`, OPTIONS, () => {
    assert.throws(
      () => run(...argv),
      (error) => error instanceof UsageError && message.test(error.message),
    );
  });

for (const [value, message] of [
  ["driver=module,file=x.mjs,format=qcow2", /format=qcow2 is not for a module/],
  ["driver=raw,file=x.mjs,format=module", /driver=raw is not for a module/],
  ["driver=module,file=x.mjs,mib=3", /Invalid parameter 'mib'\n.*opt\.mib=3/],
  ["driver=module,file=x.mjs,opt=3", /Invalid parameter 'opt'\nWrite opt\.NAME=VALUE/],
  ["driver=module,file=x.mjs,timeuot=3", /Did you mean 'timeout'/],
  ["file=disk.img,format=raw,opt.a=3", /'opt\.a' has a meaning only with driver=module/],
  ["driver=modul,file=x.mjs", /Did you mean 'module'\?/],
  ["driver=module", /a module must be specified\n.*file=\.\/MINE\.mjs/],
] as const)
  test(`-drive ${value}: refused with the way out`, { timeout: 10_000 }, () => {
    assert.throws(() => parseDrive(value), message);
  });

test("-drive driver=module: format=raw changes nothing", { timeout: 10_000 }, () => {
  const { source, format } = parseDrive("driver=module,file=x.mjs,format=raw,opt.mib=3");
  assert.deepEqual(source, { module: "x.mjs", options: { mib: "3" }, timeout: 10_000 });
  assert.equal(format, "raw");
});
