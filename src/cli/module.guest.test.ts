import assert from "node:assert/strict";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { scratchFolder } from "../testing/guest-files.ts";
import { execInGuest, startVirtkit, virtkit } from "../testing/guest-program.ts";

const limit = { timeout: 120_000 };

/** A disk in memory; `MORE` overrides parts of it. */
const ram = (more: string): string => `import { defineDisk } from "virtkit/backend/block";
const bytes = new Uint8Array(1 << 20);
export default defineDisk({
  capacity: bytes.length,
  async read(offset, buffer) {
    buffer.set(bytes.subarray(offset, offset + buffer.length));
  },
  async write(offset, data) {
    bytes.set(data, offset);
  },
  ${more}
});
`;

/** Modules by file name that are no use, and the reason that the one message has to give. */
const USELESS: readonly (readonly [name: string, code: string, message: RegExp])[] = [
  ["empty.mjs", "", /there is no default export \(it exports nothing\); write `export default/],
  ["named.mjs", "export const disk = {};", /there is no default export \(it exports disk\)/],
  ["syntax.mjs", "export default {\n  capacity: 512,,\n};", /SyntaxError: Unexpected token ',' \(syntax\.mjs:2\)/],
  [
    "throws.mjs",
    "\nthrow new TypeError('not today');",
    /throws while it loads: TypeError: not today \(throws\.mjs:2:7\)/,
  ],
  ["rejects.mjs", "await Promise.reject(new Error('later'));", /throws while it loads: Error: later/],
  ["text.mjs", "hello, this is no program", /SyntaxError.*give an ES module/],
  ["disk.img", "\0\0\0\0", /it is no JavaScript, by its name; give an ES module: a file that ends in \.mjs or \.js/],
  ["data.json", "{}", /it is no JavaScript, by its name|capacity is missing/],
  [
    "imports.mjs",
    "import 'not-installed-anywhere'; export default {};",
    /Cannot find package 'not-installed-anywhere'/,
  ],
  ["folder", "", /it is a directory/],
  ["missing.mjs", "", /no such file/],
  ["string.mjs", "export default 'disk.img';", /is no disk: it is a string/],
  ["nothing.mjs", "export default {};", /capacity is missing.*read is missing/],
  ["nan.mjs", ram("capacity: NaN,"), /capacity is NaN/],
  ["negative.mjs", ram("capacity: -512,"), /capacity is -512/],
  ["odd.mjs", ram("capacity: 1000,"), /capacity is 1000, which is no multiple of the block size 512/],
  ["read.mjs", ram("read: 5,"), /read is a number/],
  [
    "factory.mjs",
    "export default async function open() {\n  throw new Error('no server');\n}",
    /opening it failed: Error: no server \(factory\.mjs:2:9\)/,
  ],
];

test("a module that is no disk is refused by one message with the option and the reason", {
  timeout: 240_000,
}, async (t) => {
  const folder = scratchFolder(t);
  for (const [name, code, message] of USELESS) {
    if (name === "folder") mkdirSync(join(folder, name));
    else if (name !== "missing.mjs") writeFileSync(join(folder, name), code);
    await t.test(name, limit, async () => {
      const option = `driver=module,file=./${name}`;
      const { status, stderr, stdout } = await execInGuest("echo booted", ["-drive", option], { cwd: folder });
      assert(stderr.startsWith(`virtkit: -drive ${option}: `), stderr);
      assert.match(stderr, message);
      assert.equal(stderr.match(/^virtkit: /gm)?.length, 1, "one message");
      assert(stderr.split("\n").length <= 3, stderr);
      assert.equal(stdout.length, 0);
      assert.equal(status, 2);
    });
  }
  await t.test("a wrong key", limit, async () => {
    for (const [more, message] of [
      ["timeout=soon", /timeout='soon' is no number of seconds\nGive seconds/],
      ["timeout=-1", /timeout='-1' is no number/],
      ["size=4M", /Invalid parameter 'size'/],
    ] as const) {
      const { status, stderr } = await virtkit(["run", "-drive", `driver=module,file=read.mjs,${more}`], {
        cwd: folder,
      });
      assert.match(stderr, message);
      assert.equal(status, 2);
    }
  });
});

const NEVER = "new Promise(() => {})";
const HANGING: readonly (readonly [name: string, code: string, options: readonly string[], message: RegExp])[] = [
  ["load.mjs", `await ${NEVER};`, ["-drive", "driver=module,file=./load.mjs"], /it is still loading after 0\.5 s/],
  [
    "open.mjs",
    `export default async () => ${NEVER};`,
    ["-drive", "driver=module,file=./open.mjs"],
    /\.\/open\.mjs: opening it takes longer than 0\.5 s/,
  ],
];

test("a module that hangs while it loads or opens is an error after the timeout", limit, async (t) => {
  const folder = scratchFolder(t);
  for (const [name, code, [option = "", value = ""], message] of HANGING)
    await t.test(name, limit, async () => {
      writeFileSync(join(folder, name), `setInterval(() => {}, 1000);\n${code}`);
      const words = [option, `${value},timeout=0.5`];
      const { status, stderr } = await execInGuest("echo booted", words, { cwd: folder });
      assert(stderr.startsWith(`virtkit: ${words.join(" ")}: `), stderr);
      assert.match(stderr, message);
      assert.equal(status, 2);
    });
});

test("a signal ends what a hanging module holds up", limit, async (t) => {
  const folder = scratchFolder(t);
  writeFileSync(join(folder, "device.mjs"), `console.error("here"); await ${NEVER};`);
  writeFileSync(join(folder, "load.mjs"), `console.error("here"); await ${NEVER};`);
  writeFileSync(join(folder, "open.mjs"), `export default () => (console.error("here"), ${NEVER});`);
  for (const [signal, number, ...options] of [
    ["SIGINT", 2, "-device", "module=./device.mjs"],
    ["SIGTERM", 15, "-drive", "driver=module,file=./load.mjs,timeout=0"],
    ["SIGINT", 2, "-drive", "driver=module,file=./open.mjs,timeout=0"],
  ] as const)
    await t.test(options.join(" "), limit, async () => {
      const run = startVirtkit(["run", "--exec", "echo booted", ...options], { cwd: folder });
      await run.complains(/here/);
      run.kill(signal);
      const { status, stderr } = await run.ended;
      assert.deepEqual([status, stderr], [128 + number, "here\n"]);
    });
});

/** Reads and writes the disk in front and in the middle, and shows what became of it. */
const TRY = `for at in 0 128; do
    head -c 4096 /dev/urandom >/tmp/data
    dd if=/tmp/data of=/dev/vda bs=4k count=1 seek=$at conv=fsync 2>/dev/null && echo wrote $at
    echo 3 >/proc/sys/vm/drop_caches
    dd if=/dev/vda bs=4k count=1 skip=$at 2>/dev/null | cmp -s - /tmp/data && echo same $at
  done
  echo going on`;
const ALL = "wrote 0\nsame 0\nwrote 128\nsame 128\ngoing on\n";
const HALF = "wrote 0\nsame 0\ngoing on\n";

/** The second half of the disk does this instead. */
const secondHalf = (what: string): string =>
  ["read(offset, buffer)", "write(offset, data)"]
    .map((method) => {
      const rest = method.startsWith("read")
        ? "buffer.set(bytes.subarray(offset, offset + buffer.length))"
        : "bytes.set(data, offset)";
      return `${method} { if (offset >= bytes.length / 2) { ${what} } ${rest}; },`;
    })
    .join("\n");

/** A BlockBackend that answers every request twice at once, and once more later. */
const TWICE = `const bytes = new Uint8Array(1 << 20);
let requests, sink;
export default {
  capacity: bytes.length,
  attach(theRequests, theSink) {
    requests = theRequests;
    sink = theSink;
  },
  submit(slots, count) {
    for (let i = 0; i < count; i++) {
      const slot = slots[i];
      const at = requests.offset[slot];
      const generation = requests.generation[slot];
      const data = requests.vector[slot].buffer[0];
      if (requests.op[slot] === 0) data.set(bytes.subarray(at, at + data.length));
      if (requests.op[slot] === 1) bytes.set(data, at);
      const answer = () => sink.complete(slot, generation, 0);
      answer();
      answer();
      setTimeout(answer, 10);
    }
  },
};
`;

const UNRELIABLE: readonly (readonly [what: string, code: string, output: string, message: RegExp | undefined])[] = [
  ["one that works", ram(""), ALL, undefined],
  [
    "one that throws",
    ram(secondHalf("throw new RangeError('boom');")),
    HALF,
    /a (read|write) of \d+ bytes at \d+ failed: RangeError: boom \(own\.mjs:\d+:\d+\); the guest gets an I\/O error/,
  ],
  [
    "one that rejects",
    ram(secondHalf("return Promise.reject(new Error('no server'));")),
    HALF,
    /failed: Error: no server .*; the guest gets an I\/O error/,
  ],
  [
    "one that hangs",
    ram(secondHalf("return new Promise(() => {});")),
    HALF,
    /a (read|write) of \d+ bytes at \d+ was not answered within 1 s; the guest gets an I\/O error .*timeout=SECONDS/,
  ],
  ["one that answers twice", TWICE, ALL, /answered twice, or without being asked: a (read|write|flush).*; ignored/],
  [
    "one that is smaller than it says",
    ram(`capacity: 2 ** 40, ${secondHalf("return 0;")}`),
    HALF,
    /(read\(\) returned 0 bytes where \d+ were asked for|write\(\) took 0 of \d+ bytes)/,
  ],
  [
    "one whose size changes",
    ram("get capacity() { return 1048576 + 512 * (globalThis.asked = (globalThis.asked ?? -1) + 1); },"),
    ALL,
    /its capacity was 1048576 and is \d+ now; the guest keeps the first/,
  ],
];

for (const [what, code, output, message] of UNRELIABLE)
  test(`a disk of the user's own, ${what}: the guest goes on`, limit, async (t) => {
    const folder = scratchFolder(t);
    writeFileSync(join(folder, "own.mjs"), code);
    const drive = ["-drive", "driver=module,file=./own.mjs,if=virtio,timeout=1"];
    const { status, stdout, stderr } = await execInGuest(TRY, drive, { cwd: folder });
    assert.equal(status, 0, stderr);
    assert.equal(stdout.toString(), output);
    if (message === undefined) assert.equal(stderr, "");
    else assert.match(stderr, message);
    assert.doesNotMatch(stderr, /\n {4}at |internal error/);
  });

test("a disk that answers nothing, and does not close: the guest boots, and the machine ends", limit, async (t) => {
  const folder = scratchFolder(t);
  const never = "() => new Promise(() => {})";
  writeFileSync(
    join(folder, "own.mjs"),
    `export default { capacity: 1 << 20, read: ${never}, write: ${never}, flush: ${never}, close: ${never} };`,
  );
  const drive = ["-drive", "driver=module,file=./own.mjs,timeout=0.5"];
  const run = await execInGuest("dd if=/dev/vda of=/dev/null bs=4k count=1 || echo going on", drive, { cwd: folder });
  assert.equal(run.status, 0, run.stderr);
  assert.equal(run.stdout.toString(), "going on\n");
  assert.match(run.stderr, /own\.mjs: a read of 4096 bytes at 0 was not answered within 0\.5 s/);
  assert.match(run.stderr, /own\.mjs: it did not close within 0\.5 s; the machine ends without it/);
});

test("with requests that may wait for ever, the power can still be cut", limit, async (t) => {
  const folder = scratchFolder(t);
  writeFileSync(
    join(folder, "own.mjs"),
    ram("read: (offset) => { if (offset >= 65536) return console.error('asked'), new Promise(() => {}); },"),
  );
  const drive = ["-drive", "driver=module,file=./own.mjs,timeout=0"];
  const command = "dd if=/dev/vda of=/dev/null bs=4k skip=100 count=1";
  const run = startVirtkit(["run", "--exec", command, ...drive], { cwd: folder });
  await run.complains(/asked/);
  run.kill("SIGTERM");
  run.kill("SIGTERM");
  const { status, stderr } = await run.ended;
  assert.equal(status, 128 + 15, stderr);
  assert.match(stderr, /own\.mjs: it did not answer what it was asked within 10 s; the machine ends without it/);
});

test("opt.NAME, readonly=on and snapshot=on", limit, async (t) => {
  const folder = scratchFolder(t);
  writeFileSync(
    join(folder, "own.mjs"),
    `export default ({ options, readOnly, log }) => {
       const text = Buffer.alloc(Number(options.size), options.text + "\\n");
       log(\`readOnly \${readOnly}\`);
       return {
         capacity: text.length,
         read: (offset, buffer) => text.subarray(offset, offset + buffer.length),
         write: () => { throw new Error("written"); },
       };
     };`,
  );
  const drive = "driver=module,file=./own.mjs,opt.size=65536,opt.text=a,,b=c";
  const command =
    "head -n 1 /dev/vda; cat /sys/block/vda/ro; echo new | dd of=/dev/vda conv=fsync 2>/dev/null && head -n 1 /dev/vda";
  const snapshot = await execInGuest(command, ["-drive", `${drive},snapshot=on`], { cwd: folder });
  assert.deepEqual([snapshot.stdout.toString(), snapshot.status], ["a,b=c\n0\nnew\n", 0], snapshot.stderr);
  assert.equal(snapshot.stderr, "virtkit: warn: ./own.mjs: readOnly true\n");
  const readOnly = await execInGuest(command, ["-drive", `${drive},readonly=on`], { cwd: folder });
  assert.deepEqual([readOnly.stdout.toString(), readOnly.status], ["a,b=c\n1\n", 1], readOnly.stderr);
});

/** An entropy device; `MORE` overrides parts of it, `BODY` is what a request does. */
const rng = (body: string, more = ""): string => `import { defineDevice } from "virtkit/device";
export default defineDevice({
  name: "own-rng",
  deviceId: 4,
  queueSizes: [8],
  properties: { letter: { type: "string", default: "x", description: "What the guest reads" } },
  create: ({ properties }) => ({
    onRequest({ room }) { ${body}
      return new Uint8Array(room).fill(properties.letter.charCodeAt(0));
    },
  }),
  ${more}
});
`;

const USELESS_DEVICES: readonly (readonly [name: string, code: string, message: RegExp])[] = [
  [
    "missing.mjs",
    "",
    /^virtkit: -device module=\.\/missing\.mjs: the module \.\/missing\.mjs cannot be used: no such file/,
  ],
  ["throws.mjs", "throw new Error('not today');", /throws while it loads: Error: not today \(throws\.mjs:1:7\)/],
  ["disk.mjs", ram(""), /\.\/disk\.mjs is no device: name is missing.*; deviceId is missing.*; create is missing/],
  ["id.mjs", rng("", "deviceId: NaN,"), /deviceId is NaN: give the device type, 1\.\.63/],
  [
    "taken.mjs",
    rng("", "properties: { addr: { type: 'string' } },"),
    /properties\.addr is a property that every device has/,
  ],
  [
    "create.mjs",
    rng("", "create() {\n throw new Error('no luck');\n},"),
    /create\(\) failed: Error: no luck \(create\.mjs:\d+:\d+\)/,
  ],
];

test("a module that is no device is refused by one message with the option and the reason", limit, async (t) => {
  const folder = scratchFolder(t);
  for (const [name, code, message] of USELESS_DEVICES) {
    if (name !== "missing.mjs") writeFileSync(join(folder, name), code);
    await t.test(name, limit, async () => {
      const { status, stderr } = await execInGuest("echo booted", ["-device", `module=./${name}`], { cwd: folder });
      assert(stderr.startsWith(`virtkit: -device module=./${name}: `), stderr);
      assert.match(stderr, message);
      assert(stderr.split("\n").length <= 3, stderr);
      assert.equal(status, 2);
    });
  }
  writeFileSync(join(folder, "good.mjs"), rng(""));
  for (const [option, message] of [
    ["module=./good.mjs,lettre=y", /Property 'module=\.\/good\.mjs\.lettre' not found\nDid you mean 'letter'\?/],
    ["module=./good.mjs,packed=perhaps", /expects 'on' or 'off'/],
    ["module=./missing.mjs,help", /-device module=\.\/missing\.mjs,help: .*no such file/],
    ["module=", /the module's file is missing/],
  ] as const)
    await t.test(option, limit, async () => {
      const { status, stderr } = await virtkit(["run", "-device", option], { cwd: folder });
      assert.match(stderr, message);
      assert.equal(status, 2);
    });
});

test("devices of the user's own, two of a module and one with packed queues", limit, async (t) => {
  const folder = scratchFolder(t);
  writeFileSync(join(folder, "own.mjs"), rng("", "description: 'letters',"));
  const command = `cd /sys/class/misc/hw_random
    for name in $(cat rng_available); do echo $name >rng_current; head -c 4 /dev/hwrng; echo; done | sort`;
  const devices = [
    ["-device", "module=./own.mjs,id=a,letter=a"],
    ["-device", '{"module":"./own.mjs","id":"b","letter":"b","packed":true}'],
    ["-device", "module=./own.mjs,disable-modern=on"],
  ];
  const { status, stdout, stderr } = await execInGuest(command, devices.flat(), { cwd: folder });
  assert.deepEqual([status, stdout.toString(), stderr], [0, "aaaa\nbbbb\nxxxx\n", ""]);
});

const BROKEN: readonly (readonly [what: string, body: string, message: RegExp | undefined])[] = [
  [
    "throws",
    "throw new RangeError('boom');",
    /warn: bad: queue 0: onRequest\(\) failed: RangeError: boom \(own\.mjs:\d+:\d+\); the device needs a reset/,
  ],
  ["rejects", "return Promise.reject(new Error('no luck'));", /bad: queue 0: onRequest\(\) failed: Error: no luck/],
  ["answers too much", "return new Uint8Array(room + 1);", /returned \d+ bytes where the driver has room for \d+/],
  ["answers nonsense", "return 'x'.repeat(room);", /returned a string; return a Uint8Array, or nothing/],
  ["hangs", "return new Promise(() => {});", undefined],
];

for (const [what, body, message] of BROKEN)
  test(`a device of the user's own that ${what}: the guest and its other devices go on`, limit, async (t) => {
    const folder = scratchFolder(t);
    writeFileSync(join(folder, "own.mjs"), rng(body));
    const devices = ["-device", "module=./own.mjs,id=bad", "-drive", "driver=module,file=./disk.mjs"];
    writeFileSync(join(folder, "disk.mjs"), ram(""));
    const command =
      "timeout -s KILL 1 head -c 4 /dev/hwrng; head -c 100 /dev/urandom >/dev/vda && sync && echo going on";
    const { status, stdout, stderr } = await execInGuest(command, devices, { cwd: folder });
    assert.equal(status, 0, stderr);
    assert.match(stdout.toString(), /going on\n$/);
    if (message === undefined) assert.equal(stderr.replace(/^Killed\n/, ""), "");
    else assert.match(stderr, message);
    assert.doesNotMatch(stderr, /\n {4}at |internal error/);
  });
