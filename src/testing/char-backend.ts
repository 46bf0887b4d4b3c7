import assert from "node:assert/strict";
import { test } from "node:test";
import type { CharBackend, CharSink } from "../backend/char/types.ts";

const limit = { timeout: 20_000 };

/** The guest's side of a character back end: takes bytes only while it is told to. */
export class CharClient implements CharSink {
  readonly backend: CharBackend;
  readonly received: number[] = [];
  /** Bytes that it takes before it is full. */
  room = Number.POSITIVE_INFINITY;
  readonly opens: boolean[] = [];
  writables = 0;

  constructor(backend: CharBackend) {
    this.backend = backend;
    backend.attach(this);
  }

  receive(bytes: Uint8Array): number {
    const n = Math.min(bytes.length, this.room);
    this.received.push(...bytes.subarray(0, n));
    this.room -= n;
    return n;
  }
  setOpen(open: boolean): void {
    this.opens.push(open);
  }
  writable(): void {
    this.writables++;
  }

  /** Makes room for so many bytes more, and says so. */
  take(n: number): void {
    this.room = n;
    this.backend.drained();
  }

  /** Writes all of it, waiting where the back end is full. The array is spoilt afterwards, as guest memory would be. */
  async write(bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.length; ) {
      const part = bytes.slice(done);
      const before = this.writables;
      const taken = this.backend.write(part);
      assert.ok(taken >= 0 && taken <= part.length);
      part.fill(0xee);
      done += taken;
      if (done < bytes.length) await turns(() => this.writables > before);
    }
  }
}

/** Lets the event loop turn until `condition` holds. */
export async function turns(condition: () => boolean): Promise<void> {
  for (let i = 0; !condition(); i++) {
    assert.ok(i < 200_000, "waited in vain");
    await new Promise((resolve) => setImmediate(resolve));
  }
}

/** A back end and its other end. */
export interface CharSetup {
  readonly backend: CharBackend;
  /** Sends bytes towards the guest, if the back end has that direction. */
  readonly send?: (bytes: Uint8Array) => Promise<void> | void;
  /** Everything that the guest wrote so far. */
  readonly written?: () => Uint8Array;
  readonly undo?: () => Promise<void> | void;
}

export const someBytes = (length: number): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * 7 + (i >> 8)) & 0xff);

/** What every character back end has to do; `make` is called once a test. */
export function charBackendContract(name: string, make: () => Promise<CharSetup>): void {
  const withSetup = async (use: (client: CharClient, setup: CharSetup) => Promise<void>) => {
    const setup = await make();
    const client = new CharClient(setup.backend);
    try {
      await use(client, setup);
    } finally {
      await setup.backend.close();
      await setup.undo?.();
    }
  };

  test(`${name}: what the guest writes arrives once and in order`, limit, async () => {
    await withSetup(async (client, { written }) => {
      const bytes = someBytes(300_000);
      client.backend.guestOpen(true);
      for (let at = 0; at < bytes.length; at += 7000) await client.write(bytes.subarray(at, at + 7000));
      if (written === undefined) return;
      await turns(() => written().length >= bytes.length);
      assert.deepEqual(Buffer.from(written()), Buffer.from(bytes));
    });
  });

  test(
    `${name}: what is sent to the guest arrives once and in order, however little it takes at a time`,
    limit,
    async () => {
      await withSetup(async (client, { send }) => {
        if (send === undefined) return;
        const bytes = someBytes(50_000);
        client.room = 0;
        const sending = send(bytes);
        for (let round = 0; client.received.length < bytes.length; round++) {
          client.take([1, 900, 0, 5000][round % 4] as number);
          await new Promise((resolve) => setImmediate(resolve));
        }
        await sending;
        client.take(1000);
        assert.deepEqual(Buffer.from(client.received), Buffer.from(bytes));
      });
    },
  );

  test(`${name}: one port a back end; closing is harmless twice, and so is use afterwards`, limit, async () => {
    await withSetup(async (client, { backend }) => {
      assert.throws(() => backend.attach(client), { code: "ERR_VIRTKIT_ATTACHED" });
      assert.equal(client.opens.at(-1), true);
      await backend.close();
      await backend.close();
      const taken = backend.write(someBytes(10));
      assert.ok(taken >= 0 && taken <= 10);
      backend.drained();
      backend.guestOpen(false);
    });
  });
}
