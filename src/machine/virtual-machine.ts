import { VirtkitError } from "../common/error.ts";
import { Events } from "../common/events.ts";
import type { BalloonDevice } from "../device/balloon.ts";
import { V86Engine } from "../engine/v86/index.ts";
import type { TraceStats } from "../trace/stats.ts";
import { findBalloon } from "./balloon.ts";
import type { RunState } from "./control/controlled-machine.ts";
import { addCustomTypes } from "./custom-devices.ts";
import { DeferredSlots } from "./deferred-slots.ts";
import type { DeviceOptions, MachineDescription } from "./description.ts";
import { type DeviceSettings, deviceOptions } from "./device-settings.ts";
import { virtioCores, watchDevices } from "./device-watch.ts";
import { bootOrderFile, onNothingToBoot } from "./firmware-boot.ts";
import {
  type ExecOptions,
  type ExecResult,
  GuestAgentClient,
  GuestControl,
  withAgentPorts,
} from "./guest-agent/index.ts";
import { GuestDialogue } from "./guest-dialogue.ts";
import { HotPlug } from "./hot-plug.ts";
import { buildMachine, type DeviceTree } from "./machine-builder.ts";
import type { MachineEnd, MachineEvents } from "./machine-events.ts";
import type { DeviceObject } from "./object-model/device.ts";
import type { TypeRegistry } from "./object-model/registry.ts";
import { orders } from "./orders.ts";
import { SerialPort } from "./serial-port.ts";
import type { VirtualMachineParts } from "./virtual-machine-parts.ts";

/** Why a command has no result. */
const ENDINGS: Readonly<Record<MachineEnd, string>> = {
  poweroff: "the guest switched itself off",
  reset: "the guest rebooted",
  stopped: "the machine was stopped",
  fault: "the machine failed",
};

/** Milliseconds that a prepared guest may take from power-on until its init answers. An emulator on a busy host is slow. */
const BOOT_LIMIT = 240_000;
/** From there until shell and agent are up; init itself waits 20 s for a device that does not come. */
const UP_LIMIT = 60_000;
/** Milliseconds that a guest may take to switch itself off. */
const POWEROFF_LIMIT = 15_000;
const FIRST_PORT = 0;

/**
 * A PC with VirtIO devices, from `start` to its end. `createMachine` makes one.
 *
 * It ends when the guest switches itself off, with {@link stop} or {@link kill}, or through a fault; then its images are flushed
 * and closed. A machine that ended is not started again.
 */
export class VirtualMachine {
  readonly #parts: VirtualMachineParts;
  readonly #events = new Events<MachineEvents>();
  readonly #agent: GuestAgentClient | undefined;
  readonly #control: GuestControl | undefined;
  readonly #dialogue: GuestDialogue | undefined;
  #serials: (SerialPort | undefined)[] = [];
  #engine: V86Engine | undefined;
  #tree: DeviceTree | undefined;
  #hotPlug: HotPlug | undefined;
  #started = false;
  #isUp = false;
  #isPaused = false;
  /** The guest was asked to switch itself off, and does. */
  #isGoingDown = false;
  #end: MachineEnd | undefined;
  #closing: Promise<void> | undefined;
  /** Settles {@link start} early when the machine ends meanwhile. */
  #interrupt: (error: Error) => void = () => {};
  readonly #ended: Promise<MachineEnd>;
  #resolveEnded: (end: MachineEnd) => void = () => {};
  readonly #watcher = {
    balloon: (bytes: number) => this.#events.emit("balloon", this.#parts.description.memory - bytes),
    blockError: (drive: string, operation: "read" | "write") => this.#events.emit("blockError", drive, operation),
  };
  readonly #whenUp: Promise<void>;
  #settleUp: (error?: unknown) => void = () => {};

  constructor(parts: VirtualMachineParts) {
    this.#parts = parts;
    this.#agent = parts.agent ? new GuestAgentClient() : undefined;
    const hasHelper = parts.boot.from === "guest" && (parts.control ?? parts.agent);
    this.#control = hasHelper ? new GuestControl() : undefined;
    this.#dialogue =
      parts.boot.from === "guest"
        ? new GuestDialogue({
            // After a reboot.
            ready: () => this.#sendOrders(),
            up: () => this.#events.emit("up"),
            said: (line) => this.#log(line),
          })
        : undefined;
    this.#ended = new Promise((resolve) => {
      this.#resolveEnded = resolve;
    });
    this.#whenUp = new Promise((resolve, reject) => {
      this.#settleUp = (error) => (error === undefined ? resolve() : reject(error));
    });
    this.#whenUp.catch(() => {});
  }

  /** Adds a listener; returns what removes it. */
  on<Name extends keyof MachineEvents>(name: Name, listener: (...values: MachineEvents[Name]) => void): () => void {
    return this.#events.on(name, listener);
  }

  /** Resolves when the machine has ended and its images are closed. */
  get ended(): Promise<MachineEnd> {
    return this.#ended;
  }

  get isRunning(): boolean {
    return this.#started && this.#end === undefined;
  }

  get name(): string | undefined {
    return this.#parts.name;
  }

  get description(): MachineDescription {
    return this.#parts.description;
  }

  get registry(): TypeRegistry {
    return this.#parts.registry;
  }

  /** What the machine is doing, by QEMU's names. */
  get runState(): RunState {
    if (this.#end !== undefined) return this.#end === "fault" ? "internal-error" : "shutdown";
    if (!this.#isUp) return "prelaunch";
    return this.#isPaused ? "paused" : "running";
  }

  /** Resolves when {@link start} has; rejects when it fails or the machine ends before. */
  get whenUp(): Promise<void> {
    return this.#whenUp;
  }

  /** The devices, their buses and back ends; undefined before {@link start}. */
  get devices(): DeviceTree | undefined {
    return this.#tree;
  }

  /**
   * Opens the images, builds the devices and boots. Resolves when a prepared guest's shell or agent is up, or another kernel
   * was started. On failure everything is closed again.
   * @throws UsageError for a wrong option; ERR_VIRTKIT_GUEST_BOOT when a guest does not come up
   */
  async start(): Promise<void> {
    if (this.#started) throw new VirtkitError("ERR_VIRTKIT_MACHINE_STATE", "the machine was started already");
    this.#started = true;
    const interrupted = new Promise<never>((_, reject) => {
      this.#interrupt = reject;
    });
    interrupted.catch(() => {});
    try {
      await Promise.race([this.#bringUp(), interrupted]);
      this.#isUp = true;
      this.#settleUp();
    } catch (error) {
      this.#settleUp(error);
      await this.#finish("fault", error instanceof Error ? error : new Error(String(error)));
      throw error;
    } finally {
      this.#interrupt = () => {};
    }
  }

  /**
   * Runs a command in the guest: a line for its shell, or a program with arguments. Commands run one at a time.
   * @throws ERR_VIRTKIT_MACHINE_STATE when the machine does not run, and what {@link GuestAgentClient.exec} throws
   */
  async exec(command: string | readonly string[], options: ExecOptions = {}): Promise<ExecResult> {
    if (this.#agent === undefined)
      throw new VirtkitError("ERR_VIRTKIT_AGENT", "the machine was made without an agent; leave out agent: false");
    if (!this.isRunning)
      throw new VirtkitError("ERR_VIRTKIT_MACHINE_STATE", "the machine does not run; call start() first");
    await this.#agent.ready(UP_LIMIT);
    return this.#agent.exec(command, options);
  }

  /** A file of the guest's. @throws ERR_VIRTKIT_GUEST_FILE when it cannot be read, with what the guest said */
  async readFile(path: string): Promise<Uint8Array> {
    const { status, stdout, stderr } = await this.exec(["cat", "--", path]);
    if (status !== 0) throw guestFileError(path, "read", stderr);
    return stdout;
  }

  /** Writes a file in the guest, in place of what was there. @throws ERR_VIRTKIT_GUEST_FILE */
  async writeFile(path: string, data: string | Uint8Array): Promise<void> {
    const { status, stderr } = await this.exec(["sh", "-c", 'cat >"$1"', "sh", path], { stdin: data });
    if (status !== 0) throw guestFileError(path, "written", stderr);
  }

  /**
   * Gives a drive another size in bytes while the guest uses it; the guest is told at once. Making it smaller takes `force`: what lies
   * past the new end is lost.
   * @throws ERR_VIRTKIT_MACHINE_STATE, ERR_VIRTKIT_DRIVE_RESIZE with the reason
   */
  async resizeDrive(id: string, bytes: number, options: { readonly force?: boolean } = {}): Promise<void> {
    await this.#running().backends.resizeDrive(id, bytes, options);
  }

  /** The machine's balloon: its target, its size, the guest's statistics. @throws ERR_VIRTKIT_MACHINE_STATE, ERR_VIRTKIT_BALLOON */
  get balloon(): BalloonDevice {
    return findBalloon(this.#running());
  }

  /**
   * Asks the guest to get by with `bytes` of memory, as QEMU's `balloon` does; it gives up the rest when it can.
   * @throws ERR_VIRTKIT_BALLOON when the machine has none, ERR_VIRTKIT_BALLOON_TARGET for 0 or less
   */
  setMemory(bytes: number): void {
    const { memory } = this.#parts.description;
    if (!(bytes > 0))
      throw new VirtkitError(
        "ERR_VIRTKIT_BALLOON_TARGET",
        `a guest cannot get by with ${bytes} bytes; give 1..${memory}`,
      );
    this.balloon.setTarget(Math.max(0, memory - bytes));
  }

  /** What the queues have done so far; undefined unless the machine was made with `stats`. */
  get stats(): TraceStats | undefined {
    return this.#parts.trace?.stats;
  }

  /**
   * Halts the guest's CPU. Resolves when no I/O of its disks is on its way any more. Harmless when it is halted.
   * @throws ERR_VIRTKIT_MACHINE_STATE
   */
  async pause(): Promise<void> {
    const tree = this.#running();
    if (!this.#isPaused) {
      this.#isPaused = true;
      this.#engine?.stop();
      this.#events.emit("pause");
    }
    await Promise.all(virtioCores(tree.devices).map((core) => core.drain()));
  }

  /** Lets a halted guest go on. @throws ERR_VIRTKIT_MACHINE_STATE */
  resume(): void {
    this.#running();
    if (!this.#isPaused) return;
    this.#isPaused = false;
    this.#engine?.start();
    this.#events.emit("resume");
  }

  /** The reset button: the guest boots again. @throws ERR_VIRTKIT_MACHINE_STATE */
  async reset(): Promise<void> {
    this.#running();
    this.#restarted(false);
    await this.#engine?.reset();
  }

  /** Asks the guest to switch itself off; {@link ended} tells when it has. @throws ERR_VIRTKIT_MACHINE_STATE */
  powerdown(): void {
    this.#running();
    this.#events.emit("powerdown");
    if (this.#control?.isReady !== true) this.#engine?.pressPowerButton();
    else {
      this.#isGoingDown = true;
      this.#control.powerOff().catch(() => {});
    }
  }

  /**
   * Plugs in a device while the guest runs. A prepared guest has looked for it when this resolves; another finds it when it rescans its
   * PCI bus.
   * @throws UsageError, ERR_VIRTKIT_MACHINE_STATE
   */
  async addDevice(device: DeviceSettings): Promise<void> {
    await this.plugIn(deviceOptions(device, "addDevice"));
  }

  /** {@link addDevice}, in the words of the command line. */
  async plugIn(options: DeviceOptions): Promise<DeviceObject> {
    this.#running();
    const { registry, backends } = this.#parts;
    await addCustomTypes([options], registry, (file) => backends.loadModule(file));
    const device = await this.#plug().add(options);
    watchDevices([device], this.#watcher);
    return device;
  }

  /**
   * Unplugs a device, and with it those on its buses. The guest is asked to let go of it first, unless `force` says not to; the drive is
   * free again afterwards.
   * @throws ERR_VIRTKIT_UNPLUG when there is no such device, or the guest does not let go of it
   */
  async removeDevice(id: string, { force = false }: { readonly force?: boolean } = {}): Promise<void> {
    const device = this.#running().device(id);
    if (device === undefined) throw new VirtkitError("ERR_VIRTKIT_UNPLUG", `there is no device with the id '${id}'`);
    await this.#plug().waitForRemoval(device, force);
  }

  /** Asks the guest to let go of a device; the event `deviceDeleted` tells when it has. @throws ERR_VIRTKIT_UNPLUG */
  requestRemoval(device: DeviceObject): void {
    this.#running();
    this.#plug().requestRemoval(device);
  }

  /** Input for COM1 (0) .. COM4 (3), as if typed. */
  sendSerial(port: number, bytes: Uint8Array): void {
    this.#engine?.sendSerial(port, bytes);
  }

  /**
   * Ends the machine in order: a guest with an agent switches itself off, so that its file systems are unmounted; else, and
   * when that takes too long, the power goes. Resolves when all is closed.
   */
  async stop(): Promise<void> {
    const canAsk = this.#isGoingDown || this.#agent?.isReady === true;
    if (this.isRunning && canAsk && this.#engine?.state === "running") {
      const patience = new Promise<void>((resolve) => {
        const cancel = this.#parts.environment.after(POWEROFF_LIMIT, resolve);
        void this.#ended.then(cancel);
      });
      // The agent goes down with the guest, so the command never ends in order.
      if (!this.#isGoingDown) this.#agent?.exec("/sbin/virtkit-off").catch(() => {});
      await Promise.race([this.#ended, patience]);
    }
    await this.kill();
  }

  /** Cuts the power: the guest is not asked. Resolves when all is flushed and closed. */
  async kill(): Promise<void> {
    await this.#finish("stopped");
  }

  #plug(): HotPlug {
    if (this.#hotPlug === undefined || !this.#isUp)
      throw new VirtkitError("ERR_VIRTKIT_MACHINE_STATE", "the machine does not run; call start() first");
    return this.#hotPlug;
  }

  #running(): DeviceTree {
    if (this.#tree === undefined || !this.isRunning)
      throw new VirtkitError("ERR_VIRTKIT_MACHINE_STATE", "the machine does not run; call start() first");
    return this.#tree;
  }

  async #bringUp(): Promise<void> {
    const { boot, trace } = this.#parts;
    await trace?.open();
    const state = boot.from === "guest" ? await boot.loadState() : undefined;
    const engine = await this.#createEngine(state);
    const slots = new DeferredSlots(engine);
    await this.#build(engine, slots);
    if (boot.from !== "guest") {
      slots.plugIn();
      this.#tellBootOrder();
      engine.start();
      this.#events.emit("up");
      return;
    }
    if (state === undefined) await this.#bootToInit(engine, boot.saveState);
    slots.plugIn();
    const problem = "its init answers, but shell and agent did not come up";
    const up = this.#dialogue?.expect("up", UP_LIMIT, problem, this.#parts.environment);
    engine.start();
    this.#sendOrders();
    await up;
  }

  async #createEngine(state: Uint8Array | undefined): Promise<V86Engine> {
    const { description, boot, bios, vgaBios, wasm, library, noReboot } = this.#parts;
    const engine = await V86Engine.create({
      memorySize: description.memory,
      bios,
      vgaBios,
      wasm,
      library,
      serialPorts: Math.max(1, description.serials.length),
      ...(boot.from === "disk" ? {} : { boot: boot.linux }),
      ...(state === undefined ? {} : { state }),
    });
    if (this.#end !== undefined) {
      await engine.destroy();
      throw new VirtkitError("ERR_VIRTKIT_STOPPED", "the machine was stopped while it started");
    }
    this.#engine = engine;
    engine.on("serial", (port, bytes) => this.#received(port, bytes));
    engine.on("serialDrained", (port) => this.#serials[port]?.drained());
    engine.on("poweroff", () => void this.#finish("poweroff"));
    engine.on("fault", (error) => void this.#finish("fault", error));
    if (boot.from === "disk") onNothingToBoot(engine, (error) => void this.#finish("fault", error));
    engine.on("reset", () => {
      this.#restarted(true);
      if (noReboot) void this.#finish("reset");
    });
    return engine;
  }

  async #build(engine: V86Engine, slots: DeferredSlots): Promise<void> {
    const { description, registry, environment, backends, trace } = this.#parts;
    const ports = [...(this.#agent?.ports ?? []), ...(this.#control === undefined ? [] : [this.#control.port])];
    const whole = ports.length === 0 ? description : withAgentPorts(description, ports);
    const { memory } = engine;
    const tracing = trace === undefined ? {} : { tracing: trace };
    const machine = await buildMachine(whole, { registry, environment, memory, pci: slots, backends, ...tracing });
    if (this.#end !== undefined) {
      await machine.close();
      throw new VirtkitError("ERR_VIRTKIT_STOPPED", "the machine was stopped while it started");
    }
    this.#tree = machine;
    watchDevices(machine.devices, this.#watcher);
    this.#hotPlug = new HotPlug({
      tree: machine,
      control: this.#control,
      environment,
      isRunning: () => engine.state === "running",
      deleted: (id, path) => this.#events.emit("deviceDeleted", id, path),
      kept: (id, path) => this.#events.emit("deviceKept", id, path),
    });
    this.#serials = machine.serials.map((chardev, port) =>
      chardev === undefined
        ? undefined
        : new SerialPort(chardev.backend, {
            send: (bytes) => engine.sendSerial(port, bytes),
            waiting: () => engine.serialWaiting(port),
          }),
    );
  }

  /** Boots the kernel up to the point where init waits, and keeps that for the next time. */
  async #bootToInit(engine: V86Engine, save: (state: Uint8Array) => Promise<void>): Promise<void> {
    const { environment } = this.#parts;
    const ready = this.#dialogue?.expect("ready", BOOT_LIMIT, "its init did not answer", environment);
    engine.start();
    await ready;
    engine.stop();
    const state = engine.saveState();
    await save(state).catch((error: unknown) =>
      environment.log.log("warn", `the saved state could not be kept, so the next start boots again: ${String(error)}`),
    );
  }

  #restarted(byGuest: boolean): void {
    this.#isGoingDown = false;
    this.#tellBootOrder();
    this.#dialogue?.restart();
    this.#events.emit("reset", byGuest);
  }

  /** Anew at each reset: devices come and go. */
  #tellBootOrder(): void {
    if (this.#parts.boot.from === "disk" && this.#tree !== undefined)
      this.#engine?.setFirmwareFile("bootorder", bootOrderFile(this.#tree.backends));
  }

  #sendOrders(): void {
    const { description, boot } = this.#parts;
    const { data, term } = boot.from === "guest" ? boot : { data: undefined, term: undefined };
    const disks = this.#tree?.devices.filter(({ typeName }) => typeName.startsWith("virtio-blk")).length ?? 0;
    const agent = this.#agent !== undefined;
    const control = this.#control !== undefined;
    const words = orders({ description, disks, agent, control, data, term, now: Date.now() });
    this.#engine?.sendSerial(FIRST_PORT, new TextEncoder().encode(`${words}\n`));
  }

  #log(line: string): void {
    const level = line.startsWith("error: ") ? "error" : line.startsWith("warning: ") ? "warn" : "info";
    this.#parts.environment.log.log(level, `guest: ${line}`);
  }

  #received(port: number, bytes: Uint8Array): void {
    this.#events.emit("serial", port, bytes);
    const mine = port === FIRST_PORT && this.#dialogue !== undefined ? this.#dialogue.filter(bytes) : bytes;
    if (mine.length > 0) this.#serials[port]?.transmit(mine);
  }

  /** Ends the machine once; every way out comes here. */
  #finish(reason: MachineEnd, error?: Error): Promise<void> {
    this.#closing ??= this.#close(reason, error);
    return this.#closing;
  }

  async #close(reason: MachineEnd, error: Error | undefined): Promise<void> {
    this.#end = reason;
    this.#engine?.stop();
    this.#control?.close(ENDINGS[reason]);
    this.#hotPlug?.close(new VirtkitError("ERR_VIRTKIT_STOPPED", ENDINGS[reason]));
    this.#settleUp(error ?? new VirtkitError("ERR_VIRTKIT_STOPPED", ENDINGS[reason]));
    this.#agent?.close(ENDINGS[reason] + (error === undefined ? "" : `: ${error.message}`), error);
    this.#interrupt(error ?? new VirtkitError("ERR_VIRTKIT_STOPPED", "the machine ended while it started"));
    try {
      await this.#tree?.close();
    } catch (cause) {
      this.#parts.environment.log.log(
        "error",
        `while closing: ${cause instanceof Error ? cause.message : String(cause)}`,
      );
    }
    await this.#engine?.destroy();
    await this.#parts.trace?.close();
    this.#events.emit("end", reason, error);
    this.#resolveEnded(reason);
  }
}

function guestFileError(path: string, verb: string, stderr: Uint8Array): VirtkitError {
  const said = new TextDecoder().decode(stderr).trim();
  return new VirtkitError("ERR_VIRTKIT_GUEST_FILE", `${path} could not be ${verb} in the guest: ${said}`);
}
