import assert from "node:assert/strict";
import { test } from "node:test";
import { UsageError } from "../usage-error.ts";
import {
  BLOCK_SIZE,
  BOOL,
  INT32,
  ON_OFF_AUTO,
  PCI_DEVFN,
  type PropertyType,
  SIZE,
  STR,
  UINT16,
  UINT32,
  UINT64,
} from "./property.ts";
import { type PropertyInput, parseId, parseSize } from "./values.ts";

const OPTIONS = { timeout: 5000 };
const OWNER = { name: "prop", type: "virtio-test" };

const VALID: readonly [PropertyType<unknown>, PropertyInput, unknown][] = [
  [BOOL, "on", true],
  [BOOL, "yes", true],
  [BOOL, "true", true],
  [BOOL, "off", false],
  [BOOL, "no", false],
  [BOOL, "false", false],
  [BOOL, true, true],
  [UINT16, "65535", 65535],
  [UINT16, "0x10", 16],
  [UINT16, "010", 8],
  [UINT16, 7, 7],
  [UINT32, "4294967295", 4294967295],
  [INT32, "-5", -5],
  [INT32, "+5", 5],
  [UINT64, "0xffffffffffffffff", 2n ** 64n - 1n],
  [SIZE, "4096", 4096],
  [SIZE, "4k", 4096],
  [SIZE, "1.5G", 1.5 * 2 ** 30],
  [SIZE, "0x1000", 4096],
  [SIZE, "2T", 2 ** 41],
  [SIZE, "512B", 512],
  [SIZE, 512, 512],
  [STR, "any, text", "any, text"],
  [ON_OFF_AUTO, "auto", "auto"],
  [ON_OFF_AUTO, false, "off"],
  [PCI_DEVFN, "0x4", 32],
  [PCI_DEVFN, "4", 32],
  [PCI_DEVFN, "04.0", 32],
  [PCI_DEVFN, "4.1", 33],
  [PCI_DEVFN, "1f.7", 255],
  [PCI_DEVFN, "10", 128],
  [PCI_DEVFN, 32, 32],
  [BLOCK_SIZE, "4k", 4096],
  [BLOCK_SIZE, "0", 0],
];

const INVALID: readonly [PropertyType<unknown>, PropertyInput, RegExp][] = [
  [BOOL, "maybe", /^Parameter 'prop' expects 'on' or 'off', not 'maybe'/],
  [BOOL, "", /expects 'on' or 'off'/],
  [BOOL, 1, /expects 'on' or 'off'/],
  [UINT16, "65536", /^Parameter 'prop' expects an integer from 0 to 65535, not '65536'/],
  [UINT16, "-1", /from 0 to 65535/],
  [UINT16, "1k", /expects an integer/],
  [UINT16, "", /expects an integer/],
  [UINT16, "0x", /expects an integer/],
  [UINT16, "08", /expects an integer/],
  [UINT16, 1.5, /expects an integer/],
  [UINT16, true, /expects an integer/],
  [UINT64, "18446744073709551616", /expects an integer/],
  [SIZE, "4x", /^Parameter 'prop' expects a size, not '4x'\nA size is/],
  [SIZE, "-1", /expects a size/],
  [SIZE, "1.5", /expects a size/],
  [SIZE, "0x10k", /expects a size/],
  [SIZE, "1e3", /expects a size/],
  [SIZE, "9000P", /expects a size/],
  [ON_OFF_AUTO, "maybe", /^Parameter 'prop' does not accept value 'maybe'\nValid values: on, off or auto\./],
  [PCI_DEVFN, "zz", /^Property 'virtio-test\.prop' doesn't take value 'zz'\nA PCI address/],
  [PCI_DEVFN, "20", /doesn't take value '20'/],
  [PCI_DEVFN, "4.8", /doesn't take value/],
  [PCI_DEVFN, "-1", /doesn't take value/],
  [PCI_DEVFN, "4.", /doesn't take value/],
  [PCI_DEVFN, "", /doesn't take value/],
  [PCI_DEVFN, 256, /doesn't take value/],
  [BLOCK_SIZE, "1000", /doesn't take value '1000', it's not a power of 2/],
  [BLOCK_SIZE, "4M", /minimum: 512, maximum: 2097152/],
  [BLOCK_SIZE, "256", /minimum: 512/],
];

for (const [type, input, expected] of VALID)
  test(`${type.name} reads ${JSON.stringify(input)}`, OPTIONS, () => {
    assert.deepEqual(type.parse(input, OWNER), expected);
  });

for (const [type, input, expected] of INVALID)
  test(`${type.name} refuses ${JSON.stringify(input)}`, OPTIONS, () => {
    assert.throws(
      () => type.parse(input, OWNER),
      (error) => error instanceof UsageError && expected.test(error.message),
    );
  });

test("a bare size has the unit that its option has", OPTIONS, () => {
  assert.equal(parseSize("512", OWNER, "M"), 512 * 2 ** 20);
  assert.equal(parseSize("512K", OWNER, "M"), 512 * 2 ** 10);
  assert.equal(parseSize("1.5", OWNER, "M"), 1.5 * 2 ** 20);
});

test("ids begin with a letter", OPTIONS, () => {
  for (const id of ["a", "drive-virtio-disk0", "a.b_c-1"]) assert.equal(parseId(id), id);
  for (const id of ["", "1a", "a b", "a,b", "#block1", "é"])
    assert.throws(() => parseId(id), /^UsageError: Parameter 'id' expects an identifier.*\nIdentifiers consist of/);
});
