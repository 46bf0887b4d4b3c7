import assert from "node:assert/strict";
import { test } from "node:test";
import type { Environment } from "../../common/environment.ts";
import { SILENT } from "../../common/environment.ts";
import { EVENT_PERIOD, throttle } from "./throttle.ts";

test("a burst is its first value, the latest of each period, and its last", { timeout: 10_000 }, () => {
  const timers = new Map<() => void, number>();
  let time = 0;
  const environment: Environment = {
    log: SILENT,
    now: () => time,
    defer: (task) => task(),
    after: (milliseconds, task) => {
      timers.set(task, time + milliseconds);
      return () => timers.delete(task);
    },
  };
  const advance = (by: number): void => {
    time += by;
    for (const [task, due] of [...timers])
      if (due <= time) {
        timers.delete(task);
        task();
      }
  };
  const passed: number[] = [];
  const events = throttle<number>(environment, (value) => passed.push(value));
  for (let value = 1; value <= 5; value++) events.push(value);
  assert.deepEqual(passed, [1]);
  advance(EVENT_PERIOD - 1);
  assert.deepEqual(passed, [1]);
  advance(1);
  assert.deepEqual(passed, [1, 5]);
  advance(EVENT_PERIOD);
  assert.deepEqual(passed, [1, 5]);
  events.push(6);
  assert.deepEqual(passed, [1, 5, 6], "after a quiet period at once");
  events.push(7);
  events.stop();
  advance(EVENT_PERIOD);
  assert.deepEqual(passed, [1, 5, 6]);
  assert.equal(timers.size, 0);
});
