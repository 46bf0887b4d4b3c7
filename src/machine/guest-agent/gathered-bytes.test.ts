import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { GatheredBytes } from "./gathered-bytes.ts";

test("bytes come out as they went in, whatever the pieces", { timeout: 20_000 }, () => {
  const piece = fc.oneof(
    fc.uint8Array({ maxLength: 5 }),
    fc.integer({ min: 0, max: 200_000 }).map((n) => Uint8Array.from({ length: n }, (_, i) => i % 251)),
  );
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 20 }), (pieces) => {
      const gathered = new GatheredBytes();
      for (const bytes of pieces) {
        const given = bytes.slice();
        gathered.add(given);
        given.fill(0xee);
      }
      assert.equal(Buffer.compare(gathered.join(), Buffer.concat(pieces)), 0);
      assert.equal(gathered.length, gathered.join().length);
    }),
    { numRuns: 50 },
  );
});
