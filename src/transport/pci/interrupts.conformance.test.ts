import assert from "node:assert/strict";
import { test } from "node:test";
import { LoopDevice } from "../../testing/loop-device.ts";
import { BAR4, bringUp, capabilities, ISR, NO_VECTOR, type PciRig, pciRig, send } from "../../testing/pci-guest.ts";
import { statements } from "../../testing/statements.ts";

// Numbers are written out as in the specification, so that a wrong constant of ours cannot hide behind itself.
const limit = { timeout: 20_000 };
const PCI = "Virtio Transport Options / Virtio Over PCI Bus";
const ISR_STATUS = `${PCI} / PCI Device Layout / ISR status capability`;
const OPERATION = `${PCI} / PCI-specific Initialization And Device Operation`;
const VECTORS = `${OPERATION} / Device Initialization / MSI-X Vector Configuration`;
const CONFIG_VECTOR = 0x10;
const QUEUE_SELECT = 0x16;
const QUEUE_VECTOR = 0x1a;

const msixAt = (rig: PciRig): number => capabilities(rig).find((c) => c.id === 0x11)?.at as number;
const enableMsix = (rig: PciRig, on = true): void => rig.pci.configWrite(msixAt(rig) + 2, 2, on ? 0x8000 : 0);
const isr = ({ pci }: PciRig): number => pci.barRead(BAR4, ISR, 1);
const pending = ({ pci }: PciRig): boolean => (pci.configRead(6, 2) & 8) !== 0;
const change = ({ device }: PciRig): void => device.config.update(() => undefined);

/** Gives each entry of the MSI-X table its own message, whose data is the vector, and unmasks it. */
function fillTable({ pci }: PciRig, vectors: number): void {
  for (let vector = 0; vector < vectors; vector++) {
    pci.barWrite(1, 16 * vector, 4, 0xfee00000);
    pci.barWrite(1, 16 * vector + 8, 4, vector);
    pci.barWrite(1, 16 * vector + 12, 4, 0);
  }
}

/** What the ISR status holds at the moment when a notification of any kind goes out. Reading it clears it. */
function isrAtNotification(rig: PciRig): number[] {
  const seen: number[] = [];
  rig.pci.connect({
    setIntx: (asserted) => {
      if (asserted) seen.push(isr(rig));
    },
    sendMsi: () => void seen.push(isr(rig)),
    barsChanged: () => undefined,
  });
  return seen;
}

test(
  statements(
    "the configuration's bit is in the ISR status before the notification goes out",
    `device: ${ISR_STATUS} #2`,
  ),
  limit,
  () => {
    for (const msix of [false, true]) {
      const rig = pciRig({ vectors: msix ? 2 : 0 });
      const seen = isrAtNotification(rig);
      bringUp(rig);
      if (msix) {
        fillTable(rig, 2);
        enableMsix(rig);
        rig.write(CONFIG_VECTOR, 2, 1);
      }
      for (let i = 0; i < 3; i++) change(rig);
      assert.deepEqual(seen, [2, 2, 2]);
    }
  },
);

test(
  statements("without MSI-X the queue's bit is in the ISR status before the notification", `device: ${ISR_STATUS} #3`),
  limit,
  () => {
    for (const vectors of [0, 3]) {
      // MSI-X that is there, but not enabled, is no MSI-X.
      const rig = pciRig({ vectors });
      const seen = isrAtNotification(rig);
      const ring = bringUp(rig, 0, vectors === 0 ? NO_VECTOR : 1);
      for (let i = 0; i < 3; i++) send(rig, ring);
      assert.deepEqual(seen, [1, 1, 1]);
    }
  },
);

test(
  statements(
    "without MSI-X the Interrupt Status bit is the OR of the ISR status, which a read clears",
    `device: ${ISR_STATUS} #4`,
    `device: ${ISR_STATUS} #5`,
  ),
  limit,
  () => {
    for (const vectors of [0, 3]) {
      const rig = pciRig({ vectors });
      const { pci } = rig;
      const ring = bringUp(rig);
      const causes: [number, () => void][] = [
        [1, () => send(rig, ring)],
        [2, () => change(rig)],
        [
          3,
          () => {
            send(rig, ring);
            change(rig);
          },
        ],
      ];
      for (const [bits, cause] of causes)
        for (const disabled of [0, 0x400]) {
          // INTx that is disabled changes the pin and not the bit.
          pci.configWrite(4, 2, 3 | disabled);
          assert.equal(pending(rig), false);
          cause();
          assert.equal(pending(rig), true);
          assert.equal(isr(rig), bits);
          assert.deepEqual([isr(rig), pending(rig)], [0, false]);
        }
      // A reset clears both.
      send(rig, ring);
      rig.write(0x14, 1, 0);
      assert.deepEqual([pending(rig), isr(rig)], [false, 0]);
    }
    // Switched off again, MSI-X leaves the bit to what the ISR status holds.
    const rig = pciRig();
    bringUp(rig);
    enableMsix(rig);
    change(rig);
    assert.equal(pending(rig), false);
    enableMsix(rig, false);
    assert.equal(pending(rig), true);
    assert.deepEqual([isr(rig), pending(rig)], [2, false]);
  },
);

test(statements("Table Size holds the number of vectors", `device: ${VECTORS} #1`), limit, () => {
  for (const vectors of [1, 2, 3, 64, 65, 2047, 2048]) {
    const rig = pciRig({ vectors });
    assert.equal(rig.pci.configRead(msixAt(rig) + 2, 2) & 0x7ff, vectors - 1);
    // As many are there as it says: the last takes a message, and what would be the next can be mapped to nothing.
    fillTable(rig, vectors);
    enableMsix(rig);
    bringUp(rig);
    rig.write(CONFIG_VECTOR, 2, vectors - 1);
    change(rig);
    assert.deepEqual(rig.messages, [[0xfee00000, vectors - 1]]);
    rig.write(CONFIG_VECTOR, 2, vectors);
    assert.equal(rig.read(CONFIG_VECTOR, 2), NO_VECTOR);
  }
  assert.equal(msixAt(pciRig({ vectors: 0 })), undefined);
});

test(
  statements(
    "any event maps to any vector, reads it back, and comes by it",
    `device: ${VECTORS} #2`,
    `device: ${VECTORS} #4`,
  ),
  limit,
  () => {
    const vectors = 5;
    const rig = pciRig({ vectors }, new LoopDevice({ queueSizes: [8, 8] }));
    const { read, write, messages } = rig;
    fillTable(rig, vectors);
    enableMsix(rig);
    const ring = bringUp(rig);
    for (let config = 0; config < vectors; config++)
      for (let queue = 0; queue < vectors; queue++) {
        // The same vector for both is allowed too.
        write(CONFIG_VECTOR, 2, config);
        write(QUEUE_VECTOR, 2, queue);
        assert.deepEqual([read(CONFIG_VECTOR, 2), read(QUEUE_VECTOR, 2)], [config, queue]);
        change(rig);
        send(rig, ring);
        assert.deepEqual(messages.splice(0), [
          [0xfee00000, config],
          [0xfee00000, queue],
        ]);
      }
    // Each queue has its own.
    for (const queue of [0, 1]) {
      write(QUEUE_SELECT, 2, queue);
      write(QUEUE_VECTOR, 2, queue + 2);
    }
    for (const queue of [0, 1]) {
      write(QUEUE_SELECT, 2, queue);
      assert.equal(read(QUEUE_VECTOR, 2), queue + 2);
    }
  },
);

test(
  statements(
    "an event that was unmapped reads NO_VECTOR, and no interrupt of any kind comes for it",
    `device: ${VECTORS} #3`,
    `device: ${OPERATION} / Used Buffer Notifications #1`,
    `device: ${OPERATION} / Notification of Device Configuration Changes #1`,
  ),
  limit,
  () => {
    const rig = pciRig({ vectors: 3 });
    const { read, write, messages, intx, pci } = rig;
    fillTable(rig, 3);
    enableMsix(rig);
    const ring = bringUp(rig);
    const silent = (what: () => void) => {
      what();
      assert.deepEqual([messages, intx], [[], []]);
      // No message waits in the pending bits either.
      assert.deepEqual([pci.barRead(1, 2048, 4), pending(rig)], [0, false]);
    };
    // Never mapped.
    silent(() => send(rig, ring));
    silent(() => change(rig));
    write(CONFIG_VECTOR, 2, 1);
    write(QUEUE_VECTOR, 2, 2);
    change(rig);
    send(rig, ring);
    assert.equal(messages.splice(0).length, 2);
    write(CONFIG_VECTOR, 2, NO_VECTOR);
    assert.equal(read(CONFIG_VECTOR, 2), NO_VECTOR);
    silent(() => change(rig));
    send(rig, ring);
    assert.deepEqual(messages.splice(0), [[0xfee00000, 2]]);
    write(QUEUE_VECTOR, 2, NO_VECTOR);
    assert.equal(read(QUEUE_VECTOR, 2), NO_VECTOR);
    silent(() => send(rig, ring));
    assert.equal(ring.usedIdx, 4);
  },
);

test(statements("a reset unmaps every event", `device: ${VECTORS} #5`), limit, () => {
  const rig = pciRig({ vectors: 8 }, new LoopDevice({ queueSizes: [8, 8, 8] }));
  const { read, write, messages, device } = rig;
  fillTable(rig, 8);
  enableMsix(rig);
  const unmapped = () => {
    assert.equal(read(CONFIG_VECTOR, 2), NO_VECTOR);
    for (let queue = 0; queue < 3; queue++) {
      write(QUEUE_SELECT, 2, queue);
      assert.equal(read(QUEUE_VECTOR, 2), NO_VECTOR);
    }
  };
  unmapped();
  const map = () => {
    write(CONFIG_VECTOR, 2, 7);
    for (let queue = 0; queue < 3; queue++) {
      write(QUEUE_SELECT, 2, queue);
      write(QUEUE_VECTOR, 2, queue);
    }
  };
  map();
  write(0x14, 1, 0);
  unmapped();
  send(rig, bringUp(rig));
  device.config.update(() => undefined);
  assert.deepEqual(messages, []);
  map();
  rig.pci.reset();
  unmapped();
});

test(statements("a mapping that fails reads NO_VECTOR", `device: ${VECTORS} #6`), limit, () => {
  for (const vectors of [0, 1, 3, 2048]) {
    const rig = pciRig({ vectors });
    const { read, write } = rig;
    for (const register of [CONFIG_VECTOR, QUEUE_VECTOR])
      for (const vector of [vectors, vectors + 1, 0x7ff, 0x800, 0xfffe]) {
        if (vectors > 0) write(register, 2, vectors - 1);
        write(register, 2, vector);
        assert.equal(read(register, 2), vector < vectors ? vector : NO_VECTOR);
      }
    // Of a queue that does not exist.
    write(QUEUE_SELECT, 2, 2);
    write(QUEUE_VECTOR, 2, 0);
    assert.equal(read(QUEUE_VECTOR, 2), NO_VECTOR);
  }
});
