import { readFile } from "node:fs/promises";
import * as v86 from "v86";
import { readV86Wasm } from "../../src/engine/v86/wasm-file.ts";
import { NodeBackends } from "../../src/host/node/backend-factory.ts";
import { createEnvironment, createLogger } from "../../src/host/node/environment.ts";
import { cacheOf } from "../../src/machine/description.ts";
import { createTypeRegistry } from "../../src/machine/types.ts";
import { VirtualMachine } from "../../src/machine/virtual-machine.ts";
import { prepareBoot } from "../../src/node/boot.ts";
import { type BlkCase, IMAGE_BYTES } from "./case.ts";

const MEMORY = 256 << 20;

export const OWN_DISK = "/dev/vda";
export const PEER_DISK = "/dev/sda";

/**
 * Boots the prepared guest with two disks of the same contents: ours as `-drive file=IMAGE,format=raw,if=virtio` makes it, and v86's
 * IDE disk. That one gets the image in memory, the fastest of the forms v86 has: every request is done inside the register write.
 */
export async function bootWithBothDisks(image: string, archive: Uint8Array): Promise<VirtualMachine> {
  const environment = createEnvironment(createLogger("warn"));
  const files = await prepareBoot({
    source: { from: "guest", append: undefined },
    memory: MEMORY,
    serialPorts: 1,
    bios: undefined,
    cacheDir: undefined,
    useSavedState: false,
    data: undefined,
    term: undefined,
    onProgress: undefined,
    signal: undefined,
  });
  const { boot } = files;
  if (boot.from !== "guest") throw new Error("the prepared guest is what the bench boots");
  const machine = new VirtualMachine({
    ...files,
    boot: { ...boot, linux: async () => withArchive(await boot.linux(), archive), saveState: async () => {} },
    description: {
      memory: MEMORY,
      objects: [],
      chardevs: [],
      serials: [],
      drives: [
        {
          option: "drive",
          id: "own",
          source: { file: image },
          format: "raw",
          interface: "virtio",
          readOnly: false,
          cache: cacheOf("writeback"),
          aio: "threads",
          locking: true,
          discard: "ignore",
        },
      ],
      devices: [],
    },
    registry: createTypeRegistry(),
    backends: new NodeBackends({ environment, onQuit: () => {} }),
    environment,
    wasm: await readV86Wasm(),
    library: withPeerDisk(new Uint8Array(await readFile(image)).buffer),
    agent: true,
    noReboot: true,
  });
  await machine.start();
  await inGuest(machine, "sh /bench/modules; echo always >/sys/kernel/mm/transparent_hugepage/enabled");
  await inGuest(machine, `for i in 1 2 3 4 5 6 7 8 9 10; do [ -e ${PEER_DISK} ] && exit; sleep 0.5; done; exit 1`);
  return machine;
}

/** Runs one round. Returns MB/s (of a million bytes) or requests a second. */
export async function runLoad(machine: VirtualMachine, one: BlkCase, disk: string, seed: number): Promise<number> {
  const blocks = IMAGE_BYTES / one.bytes;
  const said = await inGuest(
    machine,
    `/bench/load ${one.operation} ${disk} ${one.bytes} ${one.count} ${blocks} ${seed}`,
  );
  const seconds = Number(said) / 1e9;
  return one.unit === "IOPS" ? one.count / seconds : (one.count * one.bytes) / 1e6 / seconds;
}

async function inGuest(machine: VirtualMachine, command: string): Promise<string> {
  const { status, stdout, stderr } = await machine.exec(command);
  const decoder = new TextDecoder();
  if (status !== 0) throw new Error(`in the guest, ${command} ended with ${status}: ${decoder.decode(stderr)}`);
  return decoder.decode(stdout);
}

/** v86 with the image as its first IDE disk; nothing else of it is changed. */
function withPeerDisk(buffer: ArrayBuffer): unknown {
  const { V86 } = v86 as unknown as { V86: new (options: object) => object };
  return {
    V86: class extends V86 {
      constructor(options: object) {
        super({ ...options, hda: { buffer } });
      }
    },
  };
}

/** The kernel unpacks one archive after the other, each at a multiple of four bytes. */
function withArchive<Boot extends { readonly initrd?: Uint8Array }>(boot: Boot, archive: Uint8Array): Boot {
  const first = boot.initrd ?? new Uint8Array(0);
  const at = Math.ceil(first.length / 4) * 4;
  const initrd = new Uint8Array(at + archive.length);
  initrd.set(first);
  initrd.set(archive, at);
  return { ...boot, initrd };
}
