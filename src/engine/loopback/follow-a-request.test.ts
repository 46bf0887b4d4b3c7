import assert from "node:assert/strict";
import { test } from "node:test";
import { MemoryBlockBackend } from "../../backend/block/memory.ts";
import { BlkDevice } from "../../device/blk.ts";
import { BlkDriver } from "../../driver/blk.ts";
import { followARequest, missing } from "../../testing/follow-a-request.ts";
import { nodeEnvironment } from "../../testing/loop-device.ts";
import { LoopbackMachine } from "./index.ts";

const limit = { timeout: 10_000 };

test("docs/follow-a-request.md names functions that there are", limit, () => {
  const { functions } = followARequest();
  assert.ok(functions.length >= 30, `only ${functions.length} functions were found`);
  assert.deepEqual(
    functions.flatMap((one) => missing(one) ?? []),
    [],
  );
  assert.notEqual(missing({ owner: "BlkDriver", method: "wirte", file: "driver/blk.ts" }), undefined);
  assert.notEqual(missing({ owner: "BlkDevice", method: "write", file: "driver/blk.ts" }), undefined);
});

test("docs/follow-a-request.md has the events of one write in order", limit, async () => {
  const environment = nodeEnvironment();
  const events: string[] = [];
  const machine = new LoopbackMachine({
    environment,
    tracerOf: (name) => ({
      emit: ({ kind }) => void events.push(`${name === BlkDriver.type.name ? "driver" : "device"} ${kind}`),
    }),
  });
  const backend = new MemoryBlockBackend({ capacity: 1 << 20 });
  const driver = await machine.attach(new BlkDevice({ backend, environment }), BlkDriver.type, { transport: "pci" });
  events.length = 0;
  await driver.write(0, new Uint8Array(512));
  assert.deepEqual(events, followARequest().order);
  await machine.close();
});
