import assert from "node:assert/strict";
import { test } from "node:test";
import { readRunArguments } from "../cli/options/raw-options.ts";
import { buildRunOptions } from "../cli/options/run-options.ts";
import { BlkDevice } from "../device/blk.ts";
import { PCI_DEVICE_ID } from "../spec/pci.ts";
import { type NotedParts, notedParts } from "../testing/machine-parts.ts";
import type { MachineDescription } from "./description.ts";
import { buildMachine, checkDescription, type DeviceTree } from "./machine-builder.ts";
import { createTypeRegistry } from "./types.ts";
import { UsageError } from "./usage-error.ts";

const OPTIONS = { timeout: 10_000 };

/** A description, from a command line; a word ends at a space. */
function describe(line: string): MachineDescription {
  const given = readRunArguments(["-nodefaults", ...line.split(" ")]);
  assert.equal(given.kind, "options");
  const request = buildRunOptions(given.kind === "options" ? given.options : new Map());
  assert.equal(request.kind, "run");
  if (request.kind !== "run") throw new Error("help");
  return request.options.machine;
}

async function build(line: string, parts: NotedParts = notedParts()): Promise<DeviceTree> {
  return buildMachine(describe(line), { ...parts, registry: createTypeRegistry() });
}

const D0 = "-drive file=d.img,format=raw,if=none,id=d0";

test("the command line of the articles works as it stands", OPTIONS, async () => {
  const parts = notedParts();
  const machine = await build(
    "-drive file=disk.img,format=raw,if=none,id=drive-virtio-disk0 " +
      "-device virtio-blk-pci,scsi=off,bus=pci.0,addr=0x4,drive=drive-virtio-disk0,id=virtio-disk0,bootindex=1",
    parts,
  );
  const plugged = parts.pci.functions.get(4 << 3);
  assert.equal(plugged?.name, "virtio-disk0");
  assert.equal(plugged?.configRead(PCI_DEVICE_ID, 2), 0x1001);
  assert.deepEqual(
    machine.backends.bootOrder.map((device) => device.id),
    ["virtio-disk0"],
  );
  await machine.close();
  assert.deepEqual(parts.events, [
    "open drive drive-virtio-disk0 disk.img",
    "attach virtio-disk0 32",
    "detach virtio-disk0",
    "close drive drive-virtio-disk0",
  ]);
});

test(
  "disable-legacy and disable-modern choose the interfaces, and with them id, revision and BARs",
  OPTIONS,
  async () => {
    const rows: [options: string, id: number, revision: number, subsystem: number, bars: number[]][] = [
      ["virtio-blk-pci,vectors=2", 0x1001, 0, 2, [0, 4, 1]],
      ["virtio-blk-pci,disable-legacy=auto", 0x1001, 0, 2, [0, 4, 1]],
      ["virtio-blk-pci,disable-legacy=off", 0x1001, 0, 2, [0, 4, 1]],
      ["virtio-blk-pci,disable-legacy=off,vectors=0", 0x1001, 0, 2, [0, 4]],
      ["virtio-blk-pci-transitional", 0x1001, 0, 2, [0, 4, 1]],
      ["virtio-blk-pci,disable-legacy=on", 0x1042, 1, 0x1100, [4, 1]],
      ["virtio-blk-pci-non-transitional,packed=on", 0x1042, 1, 0x1100, [4, 1]],
      ["virtio-blk-pci,packed=on", 0x1001, 0, 2, [0, 4, 1]],
      ["virtio-blk-pci,disable-modern=on", 0x1001, 0, 2, [0, 1]],
      ["virtio-blk-pci,disable-modern=on,vectors=0", 0x1001, 0, 2, [0]],
    ];
    for (const [options, id, revision, subsystem, bars] of rows) {
      const parts = notedParts();
      const machine = await build(`${D0} -device ${options},drive=d0,addr=4`, parts);
      const pci = parts.pci.functions.get(4 << 3);
      const seen = [
        pci?.configRead(2, 2),
        pci?.configRead(8, 1),
        pci?.configRead(0x2e, 2),
        pci?.bars.map((b) => b.index),
      ];
      assert.deepEqual(seen, [id, revision, subsystem, bars], options);
      await machine.close();
    }
  },
);

test("objects, chardevs, drives, devices, in this order; closing goes backwards", OPTIONS, async () => {
  const parts = notedParts();
  const machine = await build(
    "-device virtio-blk-pci,drive=d0,id=disk -device virtio-serial-pci,id=ser -device virtconsole,chardev=c0 " +
      "-device virtio-rng-pci,rng=r0,id=rng -drive file=e.img,if=virtio " +
      `${D0} -chardev null,id=c0 -object rng-random,filename=/dev/random,id=r0`,
    parts,
  );
  assert.deepEqual(parts.events, [
    "open entropy /dev/random",
    "open chardev c0 null",
    "open drive d0 d.img",
    "open drive virtio0 e.img",
    "attach disk 16",
    "attach ser 24",
    "attach rng 32",
    "attach virtio-blk-pci 40",
  ]);
  parts.events.length = 0;
  await machine.close();
  assert.deepEqual(parts.events, [
    "detach virtio-blk-pci",
    "detach rng",
    "detach ser",
    "detach disk",
    "close drive virtio0",
    "close drive d0",
    "close chardev c0",
  ]);
});

/** What goes wrong with a machine, and the message for it. */
const WRONG: readonly [line: string, message: RegExp][] = [
  ["-device foo", /^-device foo: 'foo' is not a valid device model name\n.*`-device help`/],
  ["-device virtio-blk-pci", /^-device virtio-blk-pci: drive property not set\n/],
  ["-device virtio-blk-pci,drive=x", /: Property 'virtio-blk-pci.drive' can't find value 'x'\n-drive file=/],
  [`${D0} -device virtio-blk-pci,drive=do`, /can't find value 'do'\nDid you mean 'd0'\?/],
  [`${D0} -device virtio-blk-pci,drive=d0,foo=1`, /^-device .*: Property 'virtio-blk-pci\.foo' not found/],
  [`${D0} -device virtio-blk-pci,drive=d0,addr=zz`, /Property 'virtio-blk-pci\.addr' doesn't take value 'zz'/],
  [`${D0} -device virtio-blk-pci,drive=d0,bus=pci.1`, /: Bus 'pci\.1' not found\nDid you mean 'pci\.0'\?/],
  [
    `${D0} -device virtio-blk-pci,drive=d0,addr=4,id=V -device virtio-rng-pci,addr=4.0,id=W`,
    /^-device virtio-rng-pci,addr=4\.0,id=W: PCI: slot 4 function 0 not available for virtio-rng-pci,id=W, in use by virtio-blk-pci,id=V\n/,
  ],
  ["-device virtio-rng-pci,addr=1", /PCI: slot 1 function 0 not available for virtio-rng-pci, in use by the board/],
  [
    "-device virtio-rng-pci,addr=4 -device virtio-rng-pci,addr=4.1",
    /PCI: single function device can't be populated in function 4\.1/,
  ],
  [
    "-device virtio-rng-pci,addr=4.1 -device virtio-rng-pci,addr=4",
    /PCI: 4\.0 indicates single function, but 4\.1 is already populated/,
  ],
  [`${D0} -device virtio-blk-pci,drive=d0,id=a -device virtio-rng-pci,id=a`, /: Duplicate ID 'a' for device/],
  [`${D0} -drive file=e.img,if=none,id=d0`, /^-drive file=e\.img,if=none,id=d0: Duplicate ID 'd0' for drive/],
  ["-object rng-builtin,id=r -object rng-builtin,id=r", /Duplicate ID 'r' for object/],
  ["-chardev null,id=c -chardev null,id=c", /Duplicate ID 'c' for chardev/],
  [
    `${D0} -device virtio-blk-pci,drive=d0 -device virtio-blk-pci,drive=d0,id=two`,
    /^-device virtio-blk-pci,drive=d0,id=two: Drive 'd0' is already in use by another device/,
  ],
  [
    "-drive file=d.img,if=virtio,id=d0 -device virtio-blk-pci,drive=d0",
    /Drive 'd0' is already in use because it has been automatically connected to another device \(did you need 'if=none'/,
  ],
  [
    `${D0} -drive file=e.img,if=none,id=d1 -device virtio-blk-pci,drive=d0,bootindex=1 -device virtio-blk-pci,drive=d1,bootindex=1`,
    /The bootindex 1 has already been used/,
  ],
  [`${D0} -device virtio-blk-pci,drive=d0,scsi=on`, /scsi' can't be 'on': SCSI passthrough is not part of virtio 1\.0/],
  [
    `${D0} -device virtio-blk-pci,drive=d0,disable-modern=on,packed=on`,
    /Property 'virtio-blk-pci\.packed' can't be 'on' with disable-modern=on/,
  ],
  [
    `${D0} -device virtio-blk-pci,drive=d0,disable-modern=on,disable-legacy=on`,
    /neither modern nor legacy mode is enabled/,
  ],
  [`${D0} -device virtio-blk-pci,drive=d0,num-queues=0`, /num-queues property must be larger than 0/],
  [`${D0} -device virtio-blk-pci,drive=d0,queue-size=100`, /invalid queue-size property \(100\), must be a power of 2/],
  [
    `${D0} -device virtio-blk-pci,drive=d0,logical_block_size=1024,physical_block_size=512`,
    /logical_block_size > physical_block_size not supported/,
  ],
  [`${D0} -device virtio-blk-pci,drive=d0,min_io_size=1000`, /-device .*min_io_size=1000 is out of range/],
  [`${D0} -device virtio-blk-pci,drive=d0,cyls=5`, /cyls, heads and secs must be given together/],
  [`${D0} -device virtio-blk-pci,drive=d0,iothread=io0`, /there are no iothread objects/],
  ["-device virtconsole", /No 'virtio-serial-bus' bus found for device 'virtconsole'\n.*-device virtio-serial-pci/],
  ["-device virtio-serial-pci -device virtconsole,chardev=no", /Property 'virtconsole\.chardev' can't find value 'no'/],
  [
    "-device virtio-serial-pci -chardev null,id=c -device virtconsole,chardev=c -device virtserialport,chardev=c",
    /Property 'virtserialport\.chardev' can't take value 'c': Device 'c' is in use by virtconsole/,
  ],
  ["-device virtio-serial-pci -device virtserialport,nr=0", /Port number 0 .* reserved for virtconsole/],
  [
    "-device virtio-serial-pci -device virtserialport,nr=1 -device virtserialport,nr=1",
    /A port already exists at id 1/,
  ],
  [
    "-device virtio-serial-pci,max_ports=4 -device virtserialport,nr=4",
    /Out-of-range port id specified, max\. allowed: 3/,
  ],
  ["-device virtio-serial-pci -device virtserialport,name=a -device virtserialport,name=a", /already exists by name a/],
  ["-device virtio-serial-pci -device virtserialport,bus=pci.0", /Device 'virtserialport' can't go on PCI bus/],
  ["-device virtio-serial-pci,id=s -device virtserialport,bus=s.1", /Bus 's\.1' not found\nDid you mean 's\.0'\?/],
  ["-device virtio-blk-device", /No 'virtio-bus' bus found for device 'virtio-blk-device'/],
  ["-device virtio-rng-pci -device virtio-rng-device", /No 'virtio-bus' bus found for device 'virtio-rng-device'/],
  ["-device virtio-pci", /Parameter 'driver' expects a non-abstract device type/],
  ["-device virtio-rng-pci,rng=no", /Property 'virtio-rng-pci\.rng' can't find value 'no'/],
  ["-device virtio-rng-pci,period=0", /period' can't be '0': it is a positive number/],
  ["-device virtio-rng-pci,vectors=2049", /vectors' can't be '2049': MSI-X has at most 2048 vectors/],
  [
    "-device virtio-blk-pci-non-transitional,disable-legacy=off",
    /Property 'virtio-blk-pci-non-transitional\.disable-legacy' not found/,
  ],
  ["-object foo,id=r", /Parameter 'qom-type' does not accept value 'foo'/],
  ["-object rng-random,id=r,flename=x", /Property 'rng-random\.flename' not found\nDid you mean 'filename'\?/],
  ["-drive file=missing.img,if=none,id=m", /^-drive file=missing\.img,if=none,id=m: Could not open 'missing\.img'/],
];

for (const [line, message] of WRONG)
  test(`refused: ${line}`, OPTIONS, async () => {
    const parts = notedParts();
    await assert.rejects(
      build(line, parts),
      (error) => error instanceof UsageError && error.code === "ERR_VIRTKIT_USAGE" && message.test(error.message),
    );
    const opened = parts.events.filter((event) => event.startsWith("open drive") || event.startsWith("open chardev"));
    const closed = parts.events.filter((event) => event.startsWith("close"));
    const names = (events: string[]) => events.map((event) => event.split(" ")[2]);
    assert.deepEqual(names(closed), names(opened).reverse(), "what was opened is closed, in reverse");
    assert.equal(parts.pci.functions.size, 0, "nothing stays plugged in");
  });

test("an engine that refuses a function leaves nothing behind", OPTIONS, async () => {
  const parts = notedParts();
  parts.pci.refuse = new Error("no such slot");
  await assert.rejects(build(`${D0} -device virtio-blk-pci,drive=d0`, parts), /no such slot/);
  assert.deepEqual(parts.events, ["open drive d0 d.img", "close drive d0"]);
});

test("a description is checked without opening anything", OPTIONS, () => {
  const description = describe(`${D0} -device virtio-blk-pci,drive=d0,packed=maybe`);
  assert.throws(
    () => checkDescription(description, createTypeRegistry()),
    /^UsageError: -device virtio-blk-pci,drive=d0,packed=maybe: Parameter 'packed' expects 'on' or 'off'/,
  );
});

test("free slots are given in order, around what is taken", OPTIONS, async () => {
  const parts = notedParts();
  parts.pci.board.add(3 << 3);
  const machine = await build("-device virtio-rng-pci,addr=2 -device virtio-rng-pci -device virtio-rng-pci", parts);
  assert.deepEqual([...parts.pci.functions.keys()], [2 << 3, 4 << 3, 5 << 3]);
  await machine.close();
});

test("functions of one slot, with multifunction=on", OPTIONS, async () => {
  const parts = notedParts();
  const machine = await build(
    "-device virtio-rng-pci,addr=4,multifunction=on -device virtio-rng-pci,addr=4.1,id=second",
    parts,
  );
  const [first, second] = [parts.pci.functions.get(32), parts.pci.functions.get(33)];
  assert.deepEqual([first?.configRead(0x0e, 1), second?.configRead(0x0e, 1)], [0x80, 0]);
  assert.equal(first?.configRead(0x0c, 2), 0);
  assert.deepEqual([first?.configRead(0x0c, 4), first?.configRead(0, 2)], [0x800000, 0x1af4]);
  await machine.close();
});

test("a function that the guest cannot find is warned of", OPTIONS, async () => {
  const parts = notedParts();
  const machine = await build("-device virtio-rng-pci,addr=4.1,id=lost", parts);
  assert.match(parts.messages.join("\n"), /warn: virtio-rng-pci,id=lost: the guest will not find it/);
  await machine.close();
});

test("devices can come and go while the machine is up", OPTIONS, async () => {
  const parts = notedParts();
  const machine = await build("-device virtio-serial-pci,id=ser", parts);
  const properties = [{ name: "addr", value: "0x9" }];
  const rng = machine.addDevice({ option: "device_add", driver: "virtio-rng", id: "rng1", properties });
  assert.equal(parts.pci.functions.get(72)?.name, "rng1");
  assert.throws(
    () => machine.addDevice({ option: "device_add", driver: "virtio-rng", id: "rng1", properties: [] }),
    /^UsageError: device_add: Duplicate ID 'rng1' for device/,
  );
  machine.removeDevice(rng);
  assert.equal(machine.device("rng1"), undefined);
  machine.addDevice({ option: "device_add", driver: "virtserialport", id: "port", bus: "ser.0", properties: [] });
  machine.removeDevice(machine.device("ser") as never);
  assert.deepEqual([machine.devices.length, parts.pci.functions.size], [0, 0]);
  await machine.close();
});

test("a device that went leaves its place and its back ends to others", OPTIONS, async () => {
  const parts = notedParts();
  const machine = await build(
    `${D0} -drive file=e.img,if=none,id=d1 -chardev null,id=c -device virtio-serial-pci,id=s`,
    parts,
  );
  const add = (driver: string, properties: Record<string, string>) =>
    machine.addDevice({
      option: "device_add",
      driver,
      properties: Object.entries(properties).map(([name, value]) => ({ name, value })),
    });
  const disk = add("virtio-blk", { drive: "d0", addr: "9", bootindex: "5" });
  const port = add("virtserialport", { chardev: "c", nr: "3" });
  machine.removeDevice(disk);
  machine.removeDevice(port);
  const first = add("virtio-blk", { drive: "d1", addr: "9", bootindex: "5" });
  add("virtserialport", { chardev: "c", nr: "3" });
  assert.deepEqual(machine.backends.bootOrder, [first]);
  assert.equal(machine.backends.drives.get("d0")?.user, undefined);
  await machine.close();
});

test("the boot order is that of the indices", OPTIONS, async () => {
  const machine = await build(
    `${D0} -drive file=e.img,if=none,id=d1 -device virtio-blk-pci,drive=d0,bootindex=9,id=b ` +
      "-device virtio-blk-pci,drive=d1,bootindex=2,id=a -drive file=f.img",
  );
  assert.deepEqual(
    machine.backends.bootOrder.map((device) => device.id),
    ["a", "b"],
  );
  await machine.close();
});

test("cache= and write-cache= decide what the guest is told", OPTIONS, async () => {
  for (const [drive, device, on] of [
    ["", "", true],
    [",cache=writethrough", "", false],
    [",cache=none", "", true],
    [",cache=directsync", ",write-cache=on", true],
    ["", ",write-cache=off", false],
  ] as const) {
    const machine = await build(`${D0}${drive} -device virtio-blk-pci,drive=d0,id=x${device}`);
    const backend = machine.device("x")?.child("virtio-backend");
    const core = backend !== undefined && "core" in backend ? backend.core : undefined;
    assert.ok(core instanceof BlkDevice);
    assert.equal(core.writeback, on, `${drive} ${device}`);
    await machine.close();
  }
});

test("the serial ports' chardevs are theirs alone", OPTIONS, async () => {
  const machine = await build("-chardev null,id=c -serial chardev:c -serial none -serial null");
  assert.deepEqual(
    machine.serials.map((chardev) => chardev?.id),
    ["c", undefined, "serial2"],
  );
  await machine.close();
  await assert.rejects(
    build("-chardev null,id=c -serial chardev:c -device virtio-serial-pci -device virtconsole,chardev=c"),
    /Device 'c' is in use by serial port 0/,
  );
});
