import assert from "node:assert/strict";
import { test } from "node:test";
import { statements } from "../testing/statements.ts";
import { legacySplitLayout, packedLayout, splitLayout } from "./index.ts";

const LIMIT = { timeout: 5_000 };

test(
  statements(
    "a split queue's parts are aligned to 16, 2 and 4 and do not overlap",
    "driver: Basic Facilities of a Virtio Device / Virtqueues #1",
  ),
  LIMIT,
  () => {
    for (let size = 1; size <= 32768; size *= 2) {
      const { desc, driver, device, bytes } = splitLayout(0x1230, size);
      assert.deepEqual([desc, driver % 2, device % 4], [0x1230, 0, 0]);
      assert.equal(driver, desc + 16 * size);
      assert.ok(device >= driver + 6 + 2 * size);
      assert.equal(desc + bytes, device + 6 + 8 * size);
    }
  },
);

test(
  statements(
    "a packed queue's parts are aligned to 16, 4 and 4 and do not overlap, whatever its size",
    "driver: Basic Facilities of a Virtio Device / Packed Virtqueues #1",
  ),
  LIMIT,
  () => {
    for (let size = 1; size <= 32768; size += size < 300 ? 1 : 997) {
      const { desc, driver, device, bytes } = packedLayout(0x1230, size);
      assert.deepEqual([desc, driver % 4, device % 4], [0x1230, 0, 0]);
      assert.ok(driver >= desc + 16 * size && device >= driver + 4 && desc + bytes >= device + 4);
    }
    assert.deepEqual(packedLayout(0x1000, 3), { size: 3, desc: 0x1000, driver: 0x1030, device: 0x1034, bytes: 0x38 });
  },
);

test("the legacy layout puts the used ring on the next page (§2.7.2)", LIMIT, () => {
  // Size 256: 4096 bytes of descriptors, 518 of available ring, so the used ring starts at 8192.
  assert.deepEqual(legacySplitLayout(0x5000, 256), {
    size: 256,
    desc: 0x5000,
    driver: 0x6000,
    device: 0x7000,
    bytes: 0x3000,
  });
  assert.equal(legacySplitLayout(0, 8, 64).device, 192);
});

test("a size or an address that cannot be is refused", LIMIT, () => {
  for (const size of [0, 3, 65536, 1.5]) assert.throws(() => splitLayout(0, size), { code: "ERR_VIRTKIT_QUEUE_SIZE" });
  assert.throws(() => packedLayout(0, 32769), { code: "ERR_VIRTKIT_QUEUE_SIZE" });
  assert.throws(() => packedLayout(8, 4), { code: "ERR_VIRTKIT_QUEUE_ADDRESS" });
  assert.throws(() => legacySplitLayout(-16, 4), { code: "ERR_VIRTKIT_QUEUE_ADDRESS" });
});
