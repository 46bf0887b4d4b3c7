import assert from "node:assert/strict";
import { test } from "node:test";
import type { BlockRequests, BlockSink, IoVector } from "../backend/block/types.ts";
import { FeatureSet } from "../common/feature-set.ts";
import { VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT } from "../spec/blk.ts";
import { VIRTIO_F_INDIRECT_DESC, VIRTIO_F_VERSION_1 } from "../spec/features.ts";
import { ManualBlockBackend } from "../testing/manual-block.ts";
import { RAW_DATA, RawDevice } from "../testing/raw-device.ts";
import { testEnvironment } from "../testing/rig.ts";
import { BlkDevice } from "./blk.ts";

const limit = { timeout: 20_000 };
const FEATURES = FeatureSet.of(VIRTIO_F_VERSION_1, VIRTIO_F_INDIRECT_DESC, VIRTIO_BLK_F_FLUSH);
const DISK = 128 * 1024;
const SLOT = 0xa00;
const contents = Uint8Array.from({ length: DISK }, (_, i) => (i * 17 + (i >> 9)) & 0xff);

/** Answers inside submit when it said so, and looks whose memory it was lent. */
class PromptBackend extends ManualBlockBackend {
  prompt = true;
  asked = 0;
  /** What the buffers of the reads and writes were: 1 those of the guest, 0 the device's own. */
  readonly lent: number[] = [];
  guest: ArrayBufferLike | undefined;
  #mine: BlockRequests | undefined;

  override attach(requests: BlockRequests, sink: BlockSink): void {
    this.#mine = requests;
    super.attach(requests, sink);
  }

  finishesNow(): boolean {
    this.asked++;
    return this.prompt;
  }

  override submit(slots: ArrayLike<number>, count: number): void {
    const requests = this.#mine as BlockRequests;
    let now = 0;
    for (let i = 0; i < count; i++) {
      const slot = slots[i] as number;
      const vector = requests.vector[slot] as IoVector;
      if ((requests.op[slot] as number) > 1) continue;
      const own = vector.buffer.slice(0, vector.count).some(({ buffer }) => buffer !== this.guest);
      this.lent.push(own ? 0 : 1);
      assert.equal(requests.now[slot], own ? 0 : 1, "memory that moves is only lent until submit returns");
      now += requests.now[slot] as number;
    }
    super.submit(slots, count);
    if (now > 0) this.answerAll();
  }
}

function disk(fixed = false) {
  const backend = new PromptBackend({ capacity: DISK, contents });
  const device = new BlkDevice({ backend, environment: testEnvironment });
  const raw = new RawDevice(device, FEATURES, { size: 256, fixed });
  backend.guest = raw.memory.regions[1]?.u8.buffer;
  const offer = (i: number, type: number, block: number, blocks: number): void => {
    const at = RAW_DATA + i * SLOT;
    const header = new DataView(new ArrayBuffer(16));
    header.setUint32(0, type, true);
    header.setUint32(8, block, true);
    raw.memory.write(at, new Uint8Array(header.buffer));
    const data = blocks === 0 ? [] : [{ address: at + 512, length: blocks * 512 }];
    const write = type === VIRTIO_BLK_T_OUT;
    if (write) raw.memory.write(at + 512, new Uint8Array(blocks * 512).fill(0x40 + i));
    const status = { address: at + 32, length: 1 };
    raw.offer(0, [{ address: at, length: 16 }, ...(write ? data : [])], [...(write ? [] : data), status], true);
  };
  return { backend, device, raw, offer };
}

test("a back end that finishes at once is lent guest memory that moves, and the kick brings the answers", limit, () => {
  const { backend, raw, offer } = disk();
  offer(0, VIRTIO_BLK_T_OUT, 10, 4);
  offer(1, VIRTIO_BLK_T_OUT, 14, 2);
  offer(2, VIRTIO_BLK_T_IN, 40, 3);
  raw.kick(0);
  assert.deepEqual(backend.lent, [1, 1], "two neighbours in one I/O, and the read");
  assert.equal(backend.asked, 1, "asked once for each submit");
  assert.equal(raw.used(0).length, 3);
  assert.deepEqual(backend.disk.peek(10 * 512, 512), new Uint8Array(512).fill(0x40));
  assert.deepEqual(backend.disk.peek(14 * 512, 1024), new Uint8Array(1024).fill(0x41));
  const read = new Uint8Array(1536);
  raw.memory.read(RAW_DATA + 2 * SLOT + 512, read);
  assert.deepEqual(read, contents.slice(40 * 512, 43 * 512));
});

test("one that does not is lent the device's own buffers, from one submit to the next", limit, () => {
  const { backend, raw, offer } = disk();
  backend.prompt = false;
  offer(0, VIRTIO_BLK_T_IN, 1, 1);
  raw.kick(0);
  assert.equal(raw.used(0).length, 0);
  backend.prompt = true;
  offer(1, VIRTIO_BLK_T_IN, 2, 1);
  raw.kick(0);
  backend.answerAll();
  assert.deepEqual(backend.lent, [0, 1]);
  assert.equal(raw.used(0).length, 2);
});

test("nothing is asked for a flush, or where memory stays put", limit, () => {
  const moving = disk();
  moving.offer(0, VIRTIO_BLK_T_FLUSH, 0, 0);
  moving.raw.kick(0);
  assert.equal(moving.backend.asked, 0);
  const { backend, raw, offer } = disk(true);
  offer(0, VIRTIO_BLK_T_IN, 1, 1);
  raw.kick(0);
  assert.equal(backend.asked, 0);
});
