import assert from "node:assert/strict";
import { test } from "node:test";
import { FakeFunction } from "./fake-function.test.support.ts";
import { Monitor } from "./monitor.test.support.ts";
import { defaultScheduler } from "./scheduler.ts";

const LIMIT = { timeout: 20_000 };
const SLOT = 4 << 3;
const IO = 0xc000;
const MEM32 = 0xe1000000;
const MEM64 = 0xe2000000;
const MSI = 0xfee00000;

/** A running monitor with functions in these slots, their BARs placed 1 MiB (64 ports) apart. */
async function plugged(...slots: number[]): Promise<{ monitor: Monitor; functions: FakeFunction[] }> {
  const monitor = await Monitor.create();
  const places = (slots.length === 0 ? [4] : slots).map((slot) => slot << 3);
  const functions = places.map((_, i) => new FakeFunction(`f${i}`));
  for (const [i, device] of functions.entries()) monitor.engine.attach(device, places[i] as number);
  await monitor.start();
  await monitor.config("out32", 8, 0x60, 0x0b0b0a0a);
  for (const [i, device] of functions.entries()) {
    const devfn = places[i] as number;
    await monitor.config("out32", devfn, 0x10, IO + 64 * i);
    await monitor.config("out32", devfn, 0x14, MEM32 + (i << 20));
    await monitor.config("out32", devfn, 0x18, MEM64 + (i << 20));
    await monitor.config("out16", devfn, 4, 7);
    device.taken();
  }
  return { monitor, functions };
}

test("configuration space answers with the width of the access, at the moment of the access", LIMIT, async () => {
  const { monitor, functions } = await plugged();
  const [device] = functions as [FakeFunction];
  assert.equal(await monitor.config("in32", SLOT, 0), 0x10f01af4);
  assert.equal(await monitor.config("in16", SLOT, 2), 0x10f0);
  assert.equal(await monitor.config("in8", SLOT, 0x0b), 0xff);
  await monitor.config("out8", SLOT, 0x3c, 0x0a);
  assert.deepEqual(device.taken(), ["config 3c/1"]);
  assert.equal(await monitor.run("in8", 0xcfc), 0x0a, "the address register still points there");
  await monitor.engine.destroy();
});

test("functions that are not there read ones, and writes to them do nothing", LIMIT, async () => {
  const { monitor } = await plugged();
  for (const devfn of [5 << 3, SLOT + 1, 31 << 3]) {
    assert.equal(await monitor.config("in32", devfn, 0), 0xffffffff);
    for (const width of ["out8", "out16", "out32"] as const) await monitor.config(width, devfn, 4, 0xffff);
  }
  await monitor.run("out32", 0xcf8, 0x80010000 + (SLOT << 8));
  assert.equal(await monitor.run("in32", 0xcfc), 0xffffffff, "bus 1");
  await monitor.run("out32", 0xcfc, 0);
  assert.equal(await monitor.config("in32", 0, 0), 0x12378086, "the board's own bridge goes on");
  await monitor.engine.destroy();
});

test("each kind of BAR takes each width", LIMIT, async () => {
  const { monitor, functions } = await plugged();
  const [device] = functions as [FakeFunction];
  for (const [bar, base] of [[1, MEM32] as const, [2, MEM64] as const]) {
    await monitor.run("write32", base, 0x11223344);
    await monitor.run("write16", base + 4, 0xbeef);
    await monitor.run("write8", base + 7, 0x77);
    await monitor.run("write64", base + 8, 0x01020304, 0xf5060708);
    assert.deepEqual(device.taken(), [
      `write ${bar}+0/4=11223344`,
      `write ${bar}+4/2=beef`,
      `write ${bar}+7/1=77`,
      `write ${bar}+8/4=1020304`,
      `write ${bar}+c/4=f5060708`,
    ]);
    assert.equal(await monitor.run("read32", base + 12), 0xf5060708);
    assert.equal(await monitor.run("read16", base + 4), 0xbeef);
    assert.equal(await monitor.run("read8", base + 7), 0x77);
    device.taken();
  }
  await monitor.run("out32", IO, 0xfedcba98);
  await monitor.run("out16", IO + 4, 0x1234);
  await monitor.run("out8", IO + 63, 0x56);
  assert.deepEqual(device.taken(), ["write 0+0/4=fedcba98", "write 0+4/2=1234", "write 0+3f/1=56"]);
  assert.equal(await monitor.run("in32", IO), 0xfedcba98);
  assert.equal(await monitor.run("in16", IO + 4), 0x1234);
  assert.equal(await monitor.run("in8", IO + 63), 0x56);
  assert.deepEqual(device.taken(), ["read 0+0/4", "read 0+4/2", "read 0+3f/1"]);
  await monitor.engine.destroy();
});

test("accesses that are not aligned arrive as bytes, and none leaves its BAR", LIMIT, async () => {
  const { monitor, functions } = await plugged();
  const [device] = functions as [FakeFunction];
  await monitor.run("write32", MEM32 + 4094, 0x44332211);
  assert.deepEqual(device.taken(), ["write 1+ffe/1=11", "write 1+fff/1=22"]);
  await monitor.run("out32", IO + 61, 0x44332211);
  assert.deepEqual(device.taken(), ["write 0+3d/1=11", "write 0+3e/1=22", "write 0+3f/1=33"]);
  assert.equal(await monitor.run("in32", IO + 62), 0xffff3322);
  device.taken();
  await monitor.run("read32", MEM32 + 1);
  assert.deepEqual(device.taken(), ["read 1+1/1", "read 1+2/1", "read 1+3/1", "read 1+4/1"]);
  await monitor.engine.destroy();
});

test("a BAR moves, stops decoding, and leaves nothing behind", LIMIT, async () => {
  const { monitor, functions } = await plugged();
  const [device] = functions as [FakeFunction];
  device.registers.fill(0x5a);
  await monitor.config("out32", SLOT, 0x14, 0xd0000000);
  await monitor.config("out32", SLOT, 0x10, 0xd000);
  assert.equal(await monitor.run("read32", MEM32), 0xffffffff);
  assert.equal(await monitor.run("in32", IO), 0xffffffff);
  assert.equal(await monitor.run("read32", 0xd0000000), 0x5a5a5a5a);
  assert.equal(await monitor.run("in32", 0xd000), 0x5a5a5a5a);
  await monitor.config("out16", SLOT, 4, 1);
  assert.equal(await monitor.run("read32", 0xd0000000), 0xffffffff);
  assert.equal(await monitor.run("in32", 0xd000), 0x5a5a5a5a);
  await monitor.config("out16", SLOT, 4, 2);
  assert.equal(await monitor.run("read32", 0xd0000000), 0x5a5a5a5a);
  assert.equal(await monitor.run("in32", 0xd000), 0xffffffff);
  monitor.engine.detach(device);
  assert.equal(await monitor.run("read32", 0xd0000000), 0xffffffff);
  assert.equal(await monitor.config("in32", SLOT, 0), 0xffffffff);
  await monitor.engine.destroy();
});

test("a BAR put over RAM, the VGA window or the board's ports leaves those as they are", LIMIT, async () => {
  const { monitor, functions } = await plugged();
  await monitor.config("out32", SLOT, 0x14, 0x00200000);
  await monitor.config("out32", SLOT, 0x10, 0x0cc0);
  await monitor.run("write32", 0x00200000, 0x12345678);
  assert.equal(monitor.peek(0x00200000), 0x12345678);
  assert.equal(await monitor.config("in32", 0, 0), 0x12378086);
  await monitor.config("out32", SLOT, 0x14, 0x000a0000);
  functions[0]?.taken();
  await monitor.run("write8", 0x000a0010, 1);
  assert.deepEqual(functions[0]?.taken(), []);
  await monitor.engine.destroy();
});

test("a function plugged in while the guest runs is found there", LIMIT, async () => {
  const { monitor } = await plugged();
  const late = new FakeFunction("late");
  assert.equal(await monitor.config("in32", 9 << 3, 0), 0xffffffff);
  monitor.engine.attach(late, 9 << 3);
  assert.equal(await monitor.config("in32", 9 << 3, 0), 0x10f01af4);
  assert.ok(monitor.engine.occupied(9 << 3));
  await monitor.engine.destroy();
});

test("a place that is taken is refused with the place and who has it", LIMIT, async () => {
  const { monitor, functions } = await plugged();
  const other = new FakeFunction("other");
  const code = "ERR_VIRTKIT_PCI_ADDRESS";
  assert.throws(() => monitor.engine.attach(other, SLOT), { code, message: /04\.0 is taken by f0/ });
  assert.throws(() => monitor.engine.attach(other, 7 << 3), { code, message: /07\.0 belongs to the board/ });
  assert.throws(() => monitor.engine.attach(functions[0] as FakeFunction, 8 << 3), { code, message: /plugged in/ });
  assert.throws(() => monitor.engine.attach(other, 256), { code });
  await monitor.engine.destroy();
});

test("INTx wakes a halted guest, and its level holds until the device is asked", LIMIT, async () => {
  const { monitor, functions } = await plugged();
  const [device] = functions as [FakeFunction];
  monitor.acknowledgeAt(MEM32 + 0x20);
  for (let round = 1; round <= 100; round++) {
    monitor.post("halt");
    await monitor.until(() => monitor.engine.state === "running");
    device.host?.setIntx(true);
    await monitor.result();
    assert.equal(monitor.intxCount, round);
  }
  assert.deepEqual(new Set(device.taken()), new Set(["read 1+20/1"]));
  await monitor.engine.destroy();
});

test("INTx from inside a register write arrives once the handler has returned", LIMIT, async () => {
  const { monitor, functions } = await plugged();
  const [device] = functions as [FakeFunction];
  monitor.acknowledgeAt(MEM32 + 0x20);
  let inside = false;
  device.doorbell = () => {
    const before = monitor.intxCount;
    device.host?.setIntx(true);
    inside ||= monitor.intxCount !== before;
  };
  for (let round = 1; round <= 100; round++) {
    await monitor.run("write32Enabled", MEM32 + 0x30, round);
    await monitor.run("spin", 0, round);
    assert.equal(monitor.intxCount, round);
  }
  assert.equal(inside, false);
  await monitor.engine.destroy();
});

test("functions that share a line keep it up until the last lets go", LIMIT, async () => {
  // Slots 4 and 8 have the same PIRQ, and that of slot 3 is routed to the same interrupt.
  const { monitor, functions } = await plugged(4, 3, 8);
  const [first, second, last] = functions as [FakeFunction, FakeFunction, FakeFunction];
  first.host?.setIntx(true);
  last.host?.setIntx(true);
  first.host?.setIntx(false);
  monitor.acknowledgeAt(MEM32 + (2 << 20) + 0x20);
  await monitor.run("spin", 0, 1);
  assert.equal(monitor.intxCount, 1, "the last still held it");
  second.host?.setIntx(true);
  monitor.engine.detach(second);
  await monitor.run("write32Enabled", 0x9000, 1);
  assert.equal(monitor.intxCount, 1, "a function pulled out drops its line");
  await monitor.engine.destroy();
});

test("lines that are routed apart are raised apart", LIMIT, async () => {
  const { monitor, functions } = await plugged(4, 5);
  const [first, second] = functions as [FakeFunction, FakeFunction];
  monitor.acknowledgeAt(MEM32 + 0x20);
  first.host?.setIntx(true);
  second.host?.setIntx(true);
  await monitor.run("out8", 0xa0, 0x0a);
  assert.equal((await monitor.run("in8", 0xa0)) & 0x0c, 0x0c, "interrupts 10 and 11 are both requested");
  // Only the first is asked, so the second's line stays up and comes again and again.
  monitor.post("spin", 0, 3);
  await monitor.until(() => monitor.intxCount >= 3);
  second.host?.setIntx(false);
  await monitor.result();
  assert.ok(first.taken().length >= 3);
  await monitor.engine.destroy();
});

test("an interrupt cuts short the time-out of an idle guest", LIMIT, async () => {
  const platform = defaultScheduler();
  let asleep = false;
  const monitor = await Monitor.create({
    // Time-outs that never end: only being woken brings the guest back.
    scheduler: {
      ...platform,
      after: () => {
        asleep = true;
        return platform.immediate(() => {});
      },
    },
  });
  const device = new FakeFunction("f");
  monitor.engine.attach(device, SLOT);
  await monitor.start();
  monitor.post("halt");
  await monitor.until(() => asleep);
  device.host?.sendMsi(MSI, 0x41);
  await monitor.result();
  assert.equal(monitor.msiCount, 1);
  await monitor.engine.destroy();
});

test("a message interrupt wakes a halted guest and interrupts a busy one", LIMIT, async () => {
  const { monitor, functions } = await plugged();
  const [device] = functions as [FakeFunction];
  let expected = 0;
  for (let round = 0; round < 50; round++) {
    monitor.post("halt");
    device.host?.sendMsi(MSI, 0x41);
    await monitor.result();
    assert.equal(monitor.msiCount, ++expected);
    monitor.post("spin", 0, expected + 1);
    device.host?.sendMsi(MSI, 0x4041);
    await monitor.result();
    assert.equal(monitor.msiCount, ++expected);
  }
  device.doorbell = () => device.host?.sendMsi(MSI, 0x42);
  await monitor.run("write32Enabled", MEM32 + 0x30, 1);
  await monitor.run("spin", 0, ++expected);
  assert.equal(monitor.msiCount, expected);
  await monitor.engine.destroy();
});

test("reserved vectors and delivery modes are dropped; a message elsewhere is a store", LIMIT, async () => {
  const { monitor, functions } = await plugged();
  const [device] = functions as [FakeFunction];
  for (const data of [0x00, 0x0f, 0xff, 0x445]) device.host?.sendMsi(MSI, data);
  device.host?.sendMsi(0x9000, 0xcafef00d);
  device.host?.sendMsi(2 ** 40, 1);
  device.host?.sendMsi(MSI, 0x41);
  await monitor.run("spin", 0, 1);
  assert.equal(monitor.msiCount, 1);
  assert.equal(monitor.peek(0x9000), 0xcafef00d);
  await monitor.engine.destroy();
});

test("a device reads and writes guest memory from inside a register write", LIMIT, async () => {
  const { monitor, functions } = await plugged();
  const [device] = functions as [FakeFunction];
  device.doorbell = (address) => {
    const bytes = new Uint8Array(4096);
    monitor.engine.memory.read(address, bytes);
    monitor.engine.memory.write(address + 4096, bytes.reverse());
  };
  monitor.poke(0x200000, 0x01020304);
  await monitor.run("write32", MEM32 + 0x30, 0x200000);
  assert.equal(await monitor.run("read32", 0x201ffc), 0x04030201);
  await monitor.engine.destroy();
});

test("code that a device overwrites is not run from v86's translation of the old one", LIMIT, async () => {
  const { monitor } = await plugged();
  const target = 0x300000;
  // mov ecx, 20000; dec ecx; jnz -3; mov eax, value; ret: hot enough to be compiled.
  const code = (value: number) => Uint8Array.of(0xb9, 0x20, 0x4e, 0, 0, 0x49, 0x75, 0xfd, 0xb8, value, 0, 0, 0, 0xc3);
  for (let round = 0; round < 60; round++) {
    monitor.engine.memory.write(target, code(round));
    assert.equal(await monitor.run("call", target), round);
    assert.equal(await monitor.run("call", target), round);
  }
  await monitor.engine.destroy();
});
