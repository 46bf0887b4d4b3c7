import assert from "node:assert/strict";
import { test } from "node:test";
import { FeatureSet } from "../common/feature-set.ts";
import {
  VIRTIO_BALLOON_CFG_ACTUAL,
  VIRTIO_BALLOON_CFG_FREE_PAGE_HINT_CMD_ID,
  VIRTIO_BALLOON_CFG_NUM_PAGES,
  VIRTIO_BALLOON_CFG_POISON_VAL,
  VIRTIO_BALLOON_CFG_SIZE,
  VIRTIO_BALLOON_CMD_ID_DONE,
  VIRTIO_BALLOON_CMD_ID_STOP,
  VIRTIO_BALLOON_DEFLATEQ,
  VIRTIO_BALLOON_F_DEFLATE_ON_OOM,
  VIRTIO_BALLOON_F_FREE_PAGE_HINT,
  VIRTIO_BALLOON_F_MUST_TELL_HOST,
  VIRTIO_BALLOON_F_PAGE_POISON,
  VIRTIO_BALLOON_F_PAGE_REPORTING,
  VIRTIO_BALLOON_F_STATS_VQ,
  VIRTIO_BALLOON_FREE_PAGE_VQ,
  VIRTIO_BALLOON_INFLATEQ,
  VIRTIO_BALLOON_REPORTING_VQ,
  VIRTIO_BALLOON_STATSQ,
} from "../spec/balloon.ts";
import { VIRTIO_ID_BALLOON } from "../spec/ids.ts";
import { VIRTIO_CONFIG_S_DRIVER_OK } from "../spec/status.ts";
import { bytesAt, type PeerChain, PeerDevice, settle, until, withPeer } from "../testing/peer.ts";
import { statements } from "../testing/statements.ts";
import { uniform } from "../testing/zoned-blk.ts";
import { BalloonDriver } from "./balloon.ts";

const BALLOON = "driver: Device Types / Memory Balloon Device";
const OPERATION = `${BALLOON} / Device Operation`;
const limit = { timeout: 20_000 };
const PAGE = 4096;
const POISON = 0xaaaaaaaa;

/** A balloon that answers nothing by itself. */
class BalloonPeer extends PeerDevice {
  constructor(...bits: number[]) {
    super({
      deviceId: VIRTIO_ID_BALLOON,
      queues: 5,
      features: FeatureSet.of(...bits),
      config: new Uint8Array(VIRTIO_BALLOON_CFG_SIZE),
      writable: [
        [VIRTIO_BALLOON_CFG_ACTUAL, 4],
        [VIRTIO_BALLOON_CFG_POISON_VAL, 4],
      ],
    });
  }

  set(offset: number, value: number): void {
    this.config.update((view) => view.setUint32(offset, value, true));
  }

  get actual(): number {
    return this.config.read(VIRTIO_BALLOON_CFG_ACTUAL, 4);
  }

  waitingOn(queue: number): PeerChain[] {
    return this.waiting.filter((chain) => chain.queue === queue);
  }

  /** Waits for `count` chains that queue `queue` holds and returns the last. */
  async held(queue: number, count = 1): Promise<PeerChain> {
    await until(() => this.waitingOn(queue).length >= count);
    return this.waitingOn(queue)[count - 1] as PeerChain;
  }
}

/** The page numbers of an inflate or deflate request, as addresses. */
const pagesOf = ({ out }: PeerChain): number[] => [...new Uint32Array(out.slice().buffer)].map((page) => page * PAGE);

/** Takes all memory there is, page by page, and gives it back; returns where it was. */
function freePages(dma: {
  alloc(bytes: number, align: number): { address: number; length: number };
  release(buffer: never): void;
}): Set<number> {
  const pages: { address: number; length: number }[] = [];
  try {
    for (;;) pages.push(dma.alloc(PAGE, PAGE));
  } catch {
    for (const page of pages) dma.release(page as never);
  }
  return new Set(pages.map(({ address }) => address));
}

const overlap = (pages: readonly number[], free: ReadonlySet<number>): number =>
  pages.filter((page) => free.has(page)).length;

test(
  statements(
    "balloon driver: pages in the balloon are used for nothing else until the device let go of them",
    `${OPERATION} #2`,
    `${OPERATION} #3`,
    `${OPERATION} #4`,
    `${OPERATION} #6`,
  ),
  limit,
  async () => {
    for (const bits of [[], [VIRTIO_BALLOON_F_MUST_TELL_HOST]]) {
      const device = new BalloonPeer(...bits);
      const { dma, close } = await withPeer(device, BalloonDriver.type);
      device.set(VIRTIO_BALLOON_CFG_NUM_PAGES, 10);
      const inflate = await device.held(VIRTIO_BALLOON_INFLATEQ);
      const pages = pagesOf(inflate);
      assert.equal(new Set(pages).size, 10);
      await settle();
      assert.deepEqual([overlap(pages, freePages(dma)), device.actual], [0, 0], "before the answer");
      device.use(inflate);
      await until(() => device.actual === 10);
      assert.equal(overlap(pages, freePages(dma)), 0);
      device.set(VIRTIO_BALLOON_CFG_NUM_PAGES, 3);
      const deflate = await device.held(VIRTIO_BALLOON_DEFLATEQ);
      const taken = pagesOf(deflate);
      assert.equal(taken.length, 7);
      assert.equal(
        taken.every((page) => pages.includes(page)),
        true,
      );
      await settle();
      assert.deepEqual([overlap(pages, freePages(dma)), device.actual], [0, 10], "before the answer");
      device.use(deflate);
      await until(() => device.actual === 3);
      const free = freePages(dma);
      assert.deepEqual([overlap(taken, free), overlap(pages, free)], [7, 7]);
      await close();
    }
  },
);

test(
  statements("balloon driver: nothing is deflated while an inflation is not answered", `${OPERATION} #5`),
  limit,
  async () => {
    const device = new BalloonPeer();
    const { close } = await withPeer(device, BalloonDriver.type);
    device.set(VIRTIO_BALLOON_CFG_NUM_PAGES, 4);
    const inflate = await device.held(VIRTIO_BALLOON_INFLATEQ);
    device.set(VIRTIO_BALLOON_CFG_NUM_PAGES, 0);
    await settle();
    assert.equal(device.of(VIRTIO_BALLOON_DEFLATEQ).length, 0);
    device.use(inflate);
    const deflate = await device.held(VIRTIO_BALLOON_DEFLATEQ);
    assert.deepEqual(pagesOf(deflate).sort(), pagesOf(inflate).sort());
    await close();
  },
);

test(
  statements("balloon driver: pages are taken out without being asked only with DEFLATE_ON_OOM", `${OPERATION} #1`),
  limit,
  async () => {
    for (const allowed of [false, true]) {
      const device = new BalloonPeer(...(allowed ? [VIRTIO_BALLOON_F_DEFLATE_ON_OOM] : []));
      device.answer = () => new Uint8Array(0);
      const { driver, dma, close } = await withPeer(device, BalloonDriver.type);
      device.set(VIRTIO_BALLOON_CFG_NUM_PAGES, 8);
      await until(() => device.actual === 8);
      const free = dma.free;
      if (allowed) assert.equal(await driver.deflateOnOom(2 * PAGE), 2 * PAGE);
      else await assert.rejects(driver.deflateOnOom(2 * PAGE), { code: "ERR_VIRTKIT_FEATURES" });
      await settle();
      assert.deepEqual([device.of(VIRTIO_BALLOON_DEFLATEQ).length, dma.free - free], allowed ? [1, 2 * PAGE] : [0, 0]);
      await close();
    }
  },
);

test(
  statements(
    "balloon driver: free pages that hold a value are not reported to a device that does not know it",
    `${BALLOON} / Feature bits #1`,
  ),
  limit,
  async () => {
    for (const [type, bits, reports] of [
      [BalloonDriver.withPoison(POISON), [VIRTIO_BALLOON_F_PAGE_REPORTING], false],
      [BalloonDriver.withPoison(POISON), [VIRTIO_BALLOON_F_PAGE_REPORTING, VIRTIO_BALLOON_F_PAGE_POISON], true],
      [BalloonDriver.type, [VIRTIO_BALLOON_F_PAGE_REPORTING], true],
    ] as const) {
      const device = new BalloonPeer(...bits);
      const { close } = await withPeer(device, type);
      assert.equal(device.features.has(VIRTIO_BALLOON_F_PAGE_REPORTING), reports);
      await close();
    }
  },
);

const STATS = `${OPERATION} / Memory Statistics`;

test(
  statements(
    "balloon driver: one buffer of statistics at a time, filled anew, with the same tags",
    `${STATS} #1`,
    `${STATS} #2`,
    `${STATS} #3`,
    `${STATS} #4`,
    `${STATS} #6`,
  ),
  limit,
  async () => {
    const device = new BalloonPeer(VIRTIO_BALLOON_F_STATS_VQ);
    let calls = 0;
    const type: typeof BalloonDriver.type = {
      ...BalloonDriver.type,
      create(context) {
        const driver = new BalloonDriver(context);
        // The second time round it knows less, the third time more and in another order.
        driver.statistics = () =>
          (
            [
              [
                [4, 100],
                [5, 200],
                [6, 300],
              ],
              [[5, 201]],
              [
                [9, 1],
                [6, 302],
                [5, 202],
                [4, 102],
              ],
            ] as const
          )[calls++ % 3] ?? [];
        return driver;
      },
    };
    const { close } = await withPeer(device, type);
    const told: Map<number, number>[] = [];
    for (let round = 0; round < 3; round++) {
      const chain = await device.held(VIRTIO_BALLOON_STATSQ);
      await settle();
      assert.equal(device.waitingOn(VIRTIO_BALLOON_STATSQ).length, 1);
      const { out, pieces } = chain;
      assert.deepEqual([out.length, pieces.some(({ writable }) => writable)], [30, false]);
      const view = new DataView(out.buffer, out.byteOffset, out.length);
      told.push(new Map([0, 10, 20].map((at) => [view.getUint16(at, true), Number(view.getBigUint64(at + 2, true))])));
      device.use(chain);
    }
    assert.deepEqual(
      told.map((stats) => [...stats.keys()]),
      [
        [4, 5, 6],
        [4, 5, 6],
        [4, 5, 6],
      ],
    );
    assert.deepEqual(
      told.map((stats) => stats.get(5)),
      [200, 201, 202],
    );
    await close();
  },
);

const POISONING = `${OPERATION} / Page Poison`;

test(
  statements(
    "balloon driver: the poison is told before DRIVER_OK and never again; deflated pages hold it",
    `${POISONING} #1`,
    `${POISONING} #2`,
    `${POISONING} #3`,
  ),
  limit,
  async () => {
    const device = new BalloonPeer(VIRTIO_BALLOON_F_PAGE_POISON);
    const { driver, memory, calls, close } = await withPeer(device, BalloonDriver.withPoison(POISON));
    device.answer = (chain) => {
      // What the device makes of pages in the balloon is its own affair.
      if (chain.queue === VIRTIO_BALLOON_INFLATEQ)
        for (const page of pagesOf(chain)) memory.write(page, new Uint8Array(PAGE).fill(0x33));
      return new Uint8Array(0);
    };
    device.set(VIRTIO_BALLOON_CFG_NUM_PAGES, 5);
    await until(() => device.actual === 5);
    device.set(VIRTIO_BALLOON_CFG_NUM_PAGES, 0);
    await until(() => device.actual === 0);
    await driver.adjusted();
    const pages = pagesOf(device.of(VIRTIO_BALLOON_DEFLATEQ)[0] as PeerChain);
    for (const page of pages) assert.equal(uniform(bytesAt(memory, page, PAGE)), 0xaa);
    const told = `writeConfig ${VIRTIO_BALLOON_CFG_POISON_VAL} 4 ${POISON}`;
    const ready = calls.findIndex(
      (call) => /^setStatus/.test(call) && (Number(call.split(" ")[1]) & VIRTIO_CONFIG_S_DRIVER_OK) !== 0,
    );
    assert.notEqual(ready, -1);
    assert.equal(calls.slice(0, ready).includes(told), true);
    const later = calls.slice(ready).filter((call) => call.startsWith("writeConfig"));
    assert.deepEqual([...new Set(later.map((call) => Number(call.split(" ")[1])))], [VIRTIO_BALLOON_CFG_ACTUAL]);
    await close();
  },
);

const REPORTING = `${OPERATION} / Free Page Reporting`;

test(
  statements(
    "balloon driver: reported pages hold the poison, or anything, and are not used before the answer",
    `${REPORTING} #1`,
    `${REPORTING} #2`,
    `${REPORTING} #3`,
  ),
  limit,
  async () => {
    for (const poison of [false, true]) {
      const device = new BalloonPeer(
        VIRTIO_BALLOON_F_PAGE_REPORTING,
        ...(poison ? [VIRTIO_BALLOON_F_PAGE_POISON] : []),
      );
      const type = poison ? BalloonDriver.withPoison(POISON) : BalloonDriver.type;
      const { driver, memory, dma, close } = await withPeer(device, type);
      let done = false;
      const free = dma.free;
      const reporting = driver.reportFreePages(6).then(() => {
        done = true;
      });
      const chain = await device.held(VIRTIO_BALLOON_REPORTING_VQ);
      const pages = chain.pieces.flatMap(({ address, length }) =>
        Array.from({ length: length / PAGE }, (_, i) => address + i * PAGE),
      );
      assert.equal(pages.length, 6);
      if (poison) for (const page of pages) assert.equal(uniform(bytesAt(memory, page, PAGE)), 0xaa);
      await settle();
      assert.deepEqual([done, overlap(pages, freePages(dma))], [false, 0]);
      for (const page of pages) memory.write(page, new Uint8Array(PAGE).fill(poison ? 0xaa : 0x33));
      device.use(chain);
      await reporting;
      assert.deepEqual([dma.free, overlap(pages, freePages(dma))], [free, 6]);
      // Whoever gets them finds zeros, not what the device left.
      const buffers = Array.from({ length: Math.floor(free / PAGE) - 8 }, () => dma.alloc(PAGE, PAGE));
      for (const buffer of buffers) assert.equal(uniform(buffer.bytes), 0);
      assert.equal(overlap(pages, new Set(buffers.map(({ address }) => address))), 6);
      for (const buffer of buffers) dma.release(buffer);
      await close();
    }
  },
);

const HINTING = `${OPERATION} / Free Page Hinting`;
const idOf = ({ out }: PeerChain): number => new DataView(out.buffer, out.byteOffset, out.length).getUint32(0, true);
const hints = (device: BalloonPeer) => device.of(VIRTIO_BALLOON_FREE_PAGE_VQ);

test(
  statements(
    "balloon driver: hints begin with the command id, once, and end with STOP",
    `${HINTING} #1`,
    `${HINTING} #2`,
    `${HINTING} #3`,
    `${HINTING} #4`,
  ),
  limit,
  async () => {
    const device = new BalloonPeer(VIRTIO_BALLOON_F_FREE_PAGE_HINT);
    device.answer = () => new Uint8Array(0);
    const { driver, dma, close } = await withPeer(device, BalloonDriver.type);
    const free = dma.free;
    await settle();
    assert.equal(hints(device).length, 0, "not asked for");
    for (const id of [7, 0x80000001]) {
      const before = hints(device).length;
      device.set(VIRTIO_BALLOON_CFG_FREE_PAGE_HINT_CMD_ID, id);
      await until(() =>
        hints(device)
          .slice(before)
          .some((chain) => chain.out.length > 0 && idOf(chain) === VIRTIO_BALLOON_CMD_ID_STOP),
      );
      // The same id again is no new round, nor is anything else that changes.
      device.set(VIRTIO_BALLOON_CFG_FREE_PAGE_HINT_CMD_ID, id);
      device.set(VIRTIO_BALLOON_CFG_NUM_PAGES, 0);
      await settle();
      const round = hints(device).slice(before);
      const commands = round.filter(({ out }) => out.length > 0);
      assert.deepEqual(
        commands.map(({ out }) => out.length),
        [4, 4],
      );
      assert.deepEqual(commands.map(idOf), [id, VIRTIO_BALLOON_CMD_ID_STOP]);
      assert.deepEqual(
        [round.indexOf(commands[0] as PeerChain), round.indexOf(commands[1] as PeerChain)],
        [0, round.length - 1],
      );
      const bytes = round.reduce((sum, { room }) => sum + room, 0);
      assert.equal(bytes, driver.hinted);
      assert.equal(dma.free < 16 * PAGE, true, "all that can be spared");
      device.set(VIRTIO_BALLOON_CFG_FREE_PAGE_HINT_CMD_ID, VIRTIO_BALLOON_CMD_ID_DONE);
      await until(() => driver.hinted === 0);
      assert.equal(dma.free, free);
    }
    await close();
  },
);

test("balloon driver: a round that is called off ends with STOP, and the pages stay hinted", limit, async () => {
  const device = new BalloonPeer(VIRTIO_BALLOON_F_FREE_PAGE_HINT);
  const { driver, close } = await withPeer(device, BalloonDriver.type);
  device.set(VIRTIO_BALLOON_CFG_FREE_PAGE_HINT_CMD_ID, 2);
  device.use(await device.held(VIRTIO_BALLOON_FREE_PAGE_VQ));
  const page = await device.held(VIRTIO_BALLOON_FREE_PAGE_VQ);
  device.set(VIRTIO_BALLOON_CFG_FREE_PAGE_HINT_CMD_ID, VIRTIO_BALLOON_CMD_ID_STOP);
  device.use(page);
  const stop = await device.held(VIRTIO_BALLOON_FREE_PAGE_VQ);
  assert.deepEqual([stop.out.length, idOf(stop), hints(device).length], [4, VIRTIO_BALLOON_CMD_ID_STOP, 3]);
  assert.equal(driver.hinted, page.room);
  await close();
});

test(
  statements(
    "balloon driver: hinted pages hold anything; those taken back early are written first",
    `${HINTING} #5`,
    `${HINTING} #6`,
  ),
  limit,
  async () => {
    for (const early of [false, true]) {
      const device = new BalloonPeer(VIRTIO_BALLOON_F_FREE_PAGE_HINT);
      const { driver, memory, dma, close } = await withPeer(device, BalloonDriver.type);
      device.answer = (chain) => {
        for (const { address, length, writable } of chain.pieces)
          if (writable) memory.write(address, new Uint8Array(length).fill(0x33));
        return new Uint8Array(0);
      };
      device.set(VIRTIO_BALLOON_CFG_FREE_PAGE_HINT_CMD_ID, 2);
      await until(() => hints(device).filter(({ out }) => out.length > 0).length === 2);
      const pages = hints(device).flatMap(({ pieces }) => pieces.filter(({ writable }) => writable));
      const hinted = driver.hinted;
      const written: number[] = [];
      memory.observeWrites((address, length) => {
        for (const page of pages)
          if (page.address >= address && page.address + page.length <= address + length) written.push(page.address);
      });
      if (early) {
        assert.equal(driver.releaseHinted(), hinted);
        // The write is what tells the device that the page is in use again.
        assert.deepEqual(new Set(written), new Set(pages.map(({ address }) => address)));
        for (const { address, length } of pages) assert.equal(uniform(bytesAt(memory, address, length)), 0);
      } else {
        device.set(VIRTIO_BALLOON_CFG_FREE_PAGE_HINT_CMD_ID, VIRTIO_BALLOON_CMD_ID_DONE);
        await until(() => driver.hinted === 0);
      }
      memory.observeWrites(undefined);
      const buffers = Array.from({ length: Math.floor(hinted / PAGE) }, () => dma.alloc(PAGE, PAGE));
      for (const buffer of buffers) assert.equal(uniform(buffer.bytes), 0);
      for (const buffer of buffers) dma.release(buffer);
      await close();
    }
  },
);
