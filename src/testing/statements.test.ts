import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { PARTS, parseTestName, readUntested, STATEMENTS, statements } from "./statements.ts";

const CASE = { timeout: 10_000 };
const ID = "device: Basic Facilities of a Virtio Device / Device Status Field #1";
const OTHER = "driver: Basic Facilities of a Virtio Device / Device Status Field #2";

test("the list has the nine parts, each with statements", CASE, () => {
  for (const part of PARTS.keys()) {
    assert.ok(
      [...STATEMENTS.values()].some((statement) => statement.part === part),
      part,
    );
  }
  assert.equal(STATEMENTS.get(ID)?.side, "device");
  assert.equal(STATEMENTS.get(ID)?.keyword, "MUST NOT");
  for (const { id, side } of STATEMENTS.values()) assert.match(id, new RegExp(`^${side}: .+ #\\d+$`));
});

test("a name and its ids come back from what statements() made", CASE, () => {
  const name = statements("no buffer before DRIVER_OK", ID, OTHER);
  assert.deepEqual(parseTestName(name), { shows: "no buffer before DRIVER_OK", ids: [ID, OTHER] });
  assert.deepEqual(parseTestName(`${statements("x", ID)} (pci; split)`), { shows: "x (pci; split)", ids: [ID] });
  assert.deepEqual(parseTestName("an index [0]"), { shows: "an index [0]", ids: [] });
});

test("an id that is not in the list is refused", CASE, () => {
  assert.throws(() => statements("x", ID, `${ID}00`), /is no id of/);
  assert.throws(() => statements("x"), /names no statement/);
});

test("what cannot be tested is of the part whose file lists it, and says why", CASE, () => {
  for (const [id, reason] of readUntested()) assert.ok(reason.length > 20, `${id}: ${reason}`);
});

test("docs/conformance.md lists every statement, tested by files that exist or with the reason why not", CASE, () => {
  const root = new URL("../../", import.meta.url);
  const rows = new Map(
    readFileSync(new URL("docs/conformance.md", root), "utf8")
      .split("\n")
      .flatMap((line) => {
        const [, id, keyword, evidence] = /^\| ((?:device|driver): .* #\d+) \| ([A-Z ]+) \| (.*) \|$/.exec(line) ?? [];
        return id === undefined ? [] : [[id, { keyword, evidence: evidence ?? "" }] as const];
      }),
  );
  const untested = readUntested();
  const listed = [...STATEMENTS.values()].filter(({ part }) => PARTS.has(part));
  assert.deepEqual([...rows.keys()].sort(), listed.map(({ id }) => id).sort());
  for (const { id, keyword } of listed) {
    const row = rows.get(id) ?? assert.fail(id);
    const reason = untested.get(id);
    assert.equal(row.keyword, keyword, id);
    if (reason !== undefined) assert.equal(row.evidence, `not tested: ${reason.replaceAll("|", "\\|")}`, id);
    else
      for (const [, file] of row.evidence.matchAll(/(?:^|<br>)(src\/[^:]+):/g))
        assert.ok(existsSync(new URL(file ?? "", root)), `${id}: there is no ${file}`);
    if (reason === undefined) assert.match(row.evidence, /^src\//, id);
  }
});

const source = new URL("../../../shared/spec/statements.csv", import.meta.url);
const absent = existsSync(source) ? {} : { skip: "the list that conformance/statements.csv is a copy of is not here" };

test("conformance/statements.csv is the list it was copied from", { ...CASE, ...absent }, () => {
  assert.equal(
    readFileSync(new URL("../../conformance/statements.csv", import.meta.url), "utf8"),
    readFileSync(source, "utf8"),
  );
});
