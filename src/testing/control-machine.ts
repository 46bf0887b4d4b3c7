import { Events } from "../common/events.ts";
import { findBalloon } from "../machine/balloon.ts";
import type { ControlledMachine, RunState } from "../machine/control/controlled-machine.ts";
import { ControlServer } from "../machine/control/server.ts";
import type { ControlSession } from "../machine/control/session.ts";
import { cacheOf, type DeviceOptions, type DriveOptions, type MachineDescription } from "../machine/description.ts";
import { watchDevices } from "../machine/device-watch.ts";
import { HotPlug } from "../machine/hot-plug.ts";
import { buildMachine, type DeviceTree } from "../machine/machine-builder.ts";
import type { MachineEvents } from "../machine/machine-events.ts";
import type { DeviceObject } from "../machine/object-model/device.ts";
import { createTypeRegistry } from "../machine/types.ts";
import { notedParts } from "./machine-parts.ts";

export const MEMORY = 256 * 2 ** 20;

function drive(id: string): DriveOptions {
  return {
    option: `-drive id=${id}`,
    id,
    source: { file: `${id}.img` },
    format: "raw",
    interface: "none",
    readOnly: false,
    cache: cacheOf("writeback"),
    aio: "threads",
    locking: true,
    discard: "ignore",
  };
}

const device = (driver: string, id: string | undefined, properties: Record<string, string> = {}): DeviceOptions => ({
  option: `-device ${driver}`,
  driver,
  ...(id === undefined ? {} : { id }),
  properties: Object.entries(properties).map(([name, value]) => ({ name, value })),
});

/** A machine with real devices and no guest: its calls are noted. */
export class FakeMachine implements ControlledMachine {
  readonly name = "fake";
  readonly registry = createTypeRegistry();
  readonly calls: string[] = [];
  readonly events = new Events<MachineEvents>();
  readonly description: MachineDescription;
  runState: RunState = "running";
  devices: DeviceTree | undefined;
  whenUp: Promise<void> = Promise.resolve();
  /** Makes the next `pause` fail. */
  failure: Error | undefined;
  hotPlug: HotPlug | undefined;

  constructor(balloon = true) {
    this.description = {
      memory: MEMORY,
      objects: [],
      chardevs: [],
      serials: [],
      drives: [drive("d0"), drive("d1")],
      devices: [
        device("virtio-blk-pci", "disk0", { drive: "d0" }),
        ...(balloon ? [device("virtio-balloon-pci", undefined)] : []),
      ],
    };
  }

  /** Gives a drive that nobody uses another id. */
  rename(from: string, id: string): void {
    const drives = this.devices?.backends.drives;
    const drive = drives?.get(from);
    if (drive === undefined) throw new Error(`no drive ${from}`);
    drives?.delete(from);
    drives?.set(id, { ...drive, id });
  }

  async build(): Promise<this> {
    const tree = await buildMachine(this.description, { ...notedParts(), registry: this.registry });
    this.devices = tree;
    watchDevices(tree.devices, {
      balloon: (bytes) => this.events.emit("balloon", MEMORY - bytes),
      blockError: (id, operation) => this.events.emit("blockError", id, operation),
    });
    this.hotPlug = new HotPlug({
      tree,
      control: undefined,
      environment: notedParts().environment,
      isRunning: () => true,
      deleted: (id, path) => this.events.emit("deviceDeleted", id, path),
      kept: (id, path) => this.events.emit("deviceKept", id, path),
    });
    return this;
  }

  on<Name extends keyof MachineEvents>(name: Name, listener: (...values: MachineEvents[Name]) => void): () => void {
    return this.events.on(name, listener);
  }

  async pause(): Promise<void> {
    this.calls.push("pause");
    if (this.failure !== undefined) throw this.failure;
    this.runState = "paused";
    this.events.emit("pause");
  }

  resume(): void {
    this.calls.push("resume");
    this.runState = "running";
    this.events.emit("resume");
  }

  async reset(): Promise<void> {
    this.events.emit("reset", false);
  }

  powerdown(): void {
    this.events.emit("powerdown");
  }

  async kill(): Promise<void> {
    this.calls.push("quit");
    this.events.emit("end", "stopped", undefined);
  }

  async resizeDrive(id: string, bytes: number): Promise<void> {
    await this.devices?.backends.resizeDrive(id, bytes);
  }

  setMemory(bytes: number): void {
    if (this.devices !== undefined) findBalloon(this.devices).setTarget(MEMORY - bytes);
  }

  async plugIn(options: DeviceOptions): Promise<DeviceObject> {
    if (this.hotPlug === undefined) throw new Error("not built");
    return this.hotPlug.add(options);
  }

  requestRemoval(target: DeviceObject): void {
    this.hotPlug?.requestRemoval(target);
  }
}

/** A client of a server over a fake machine. */
export class FakeClient {
  readonly machine: FakeMachine;
  readonly messages: string[] = [];
  readonly log: string[] = [];
  readonly session: ControlSession;
  readonly server: ControlServer;
  /** Set to hold replies back. */
  slow: Promise<void> | undefined;
  resumed = 0;

  constructor(machine: FakeMachine) {
    this.machine = machine;
    const { environment, messages } = notedParts();
    this.log = messages;
    this.server = new ControlServer({ machine, environment, version: "1.2.3", now: () => 1_267_020_223_435.656 });
    this.session = this.server.connect({
      send: (text) => {
        this.messages.push(text);
        return this.slow;
      },
      resume: () => this.resumed++,
    });
  }

  /** Sends text and takes what came back, parsed. */
  async say(text: string): Promise<unknown[]> {
    const from = this.messages.length;
    this.session.receive(new TextEncoder().encode(text));
    await this.session.idle();
    return this.messages.slice(from).map((line) => JSON.parse(line));
  }

  /** Sends a command; the last message is its reply. */
  async execute(name: string, given?: object): Promise<{ return?: unknown; error?: { class: string; desc: string } }> {
    const request = { execute: name, ...(given === undefined ? {} : { arguments: given }) };
    const replies = (await this.say(JSON.stringify(request))) as { return?: unknown; error?: never; event?: string }[];
    const reply = replies.find((message) => !("event" in message));
    if (reply === undefined) throw new Error(`no reply to ${name}`);
    return reply;
  }

  /** Names of the events so far. */
  get events(): { event: string; data?: object }[] {
    return this.messages.map((line) => JSON.parse(line)).filter((message) => "event" in message);
  }
}

/** A client that has negotiated, unless that is left to the test. */
export async function connected(machine?: FakeMachine, negotiated = true): Promise<FakeClient> {
  const client = new FakeClient(machine ?? (await new FakeMachine().build()));
  if (negotiated) await client.say('{"execute":"qmp_capabilities"}');
  return client;
}
