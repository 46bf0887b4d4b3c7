import assert from "node:assert/strict";
import { test } from "node:test";
import { fuzzRing, RING_SIDES } from "../testing/ring-fuzz.ts";

// The long run is a command: node --import tsx src/testing/ring-fuzz-main.ts --operations 10000000

const OPERATIONS = 300_000;

for (const side of RING_SIDES)
  test(`${side}: ${OPERATIONS} random operations`, { timeout: 120_000 }, (t) => {
    const seed = Number(process.env["VIRTKIT_FUZZ_SEED"] ?? Date.now() % 1_000_000);
    t.diagnostic(`VIRTKIT_FUZZ_SEED=${seed}`);
    const { operations, chains, faults } = fuzzRing({ side, operations: OPERATIONS, seed });
    assert.ok(operations >= OPERATIONS);
    assert.ok(chains > OPERATIONS / 20, "most chains are well-formed");
    assert.ok(Object.keys(faults).length >= 3, "and many kinds are not");
  });
