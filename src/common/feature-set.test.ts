import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { FEATURE_BITS, FeatureSet } from "./feature-set.ts";

const bits = fc.uniqueArray(fc.integer({ min: 0, max: FEATURE_BITS - 1 }));
const limit = { timeout: 10_000 };

test("a feature set behaves as a set of bit numbers", limit, () => {
  fc.assert(
    fc.property(bits, bits, (a, b) => {
      const [x, y] = [FeatureSet.of(...a), FeatureSet.of(...b)];
      const ascending = (list: number[]) => list.sort((m, n) => m - n);
      assert.deepEqual([...x], ascending([...a]));
      assert.deepEqual([...x.union(y)], ascending([...new Set([...a, ...b])]));
      assert.deepEqual([...x.intersect(y)], ascending(a.filter((bit) => b.includes(bit))));
      assert.deepEqual([...x.minus(y)], ascending(a.filter((bit) => !b.includes(bit))));
      assert.equal(
        x.isSubsetOf(y),
        a.every((bit) => b.includes(bit)),
      );
      assert.equal(x.isEmpty(), a.length === 0);
    }),
  );
});

test("words carry 32 bits each, unsigned, and come back as the same set", limit, () => {
  fc.assert(
    fc.property(bits, (list) => {
      const set = FeatureSet.of(...list);
      const words = [0, 1, 2, 3].map((i) => set.word(i));
      assert.ok(words.every((word) => word >= 0 && word <= 0xffffffff));
      assert.ok(FeatureSet.fromWords(words).equals(set));
      assert.equal(
        BigInt(set.toString()),
        words.reduce((sum, w, i) => sum + (BigInt(w) << BigInt(32 * i)), 0n),
      );
    }),
  );
});

test("a word past the set reads 0 and writes nothing", limit, () => {
  const set = FeatureSet.of(0, 127);
  assert.equal(set.word(4), 0);
  assert.ok(set.withWord(4, 0xffffffff).equals(set));
  assert.ok(set.withWord(3, 0).equals(FeatureSet.of(0)));
});

test("asking for a bit that no set can hold is an error of ours", limit, () => {
  assert.throws(() => FeatureSet.of(128), RangeError);
  assert.throws(() => FeatureSet.of(-1), RangeError);
  assert.equal(FeatureSet.of(1).has(200), false);
});
