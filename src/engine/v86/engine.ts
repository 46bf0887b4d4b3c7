import { VirtkitError } from "../../common/error.ts";
import { Events } from "../../common/events.ts";
import type { GuestMemory } from "../../memory/guest-memory.ts";
import { PCI_INTERRUPT_LINE } from "../../spec/pci.ts";
import type { PciFunction, PciHost } from "../../transport/pci/function.ts";
import { Board } from "./board.ts";
import type { ResetCause, V86EngineEvents } from "./events.ts";
import { Firmware } from "./firmware.ts";
import { createInstance } from "./instance.ts";
import type { V86Instance } from "./internals.ts";
import { Interrupts } from "./interrupts.ts";
import { IoMap } from "./io-map.ts";
import { checkLinuxBoot, type LinuxBoot, linuxBootRom, placeLinux } from "./linux-boot.ts";
import { MemoryWindow } from "./memory-window.ts";
import { checkOptions, type PcOptions, type V86EngineOptions } from "./options.ts";
import type { PciConfig } from "./pci-config.ts";
import { defaultScheduler, type Scheduler } from "./scheduler.ts";
import { Serial } from "./serial.ts";

/**
 * `stopped`: made, or stop() was called. `off`: the guest switched itself off. `failed`: see the event `fault`.
 */
export type V86EngineState = "stopped" | "running" | "off" | "failed" | "destroyed";

/** PM1 status and enable registers of ACPI: the power button was pressed. */
const PM1_POWER_BUTTON = 1 << 8;
const ACPI_IRQ = 9;

/** A place on the bus while a function is plugged in there. */
interface Plug {
  readonly devfn: number;
  isIn: boolean;
}

/** First and one past the last address of the local APIC's message window. */
const MSI_FIRST = 0xfee00000;
const MSI_END = 0xfef00000;
/**
 * Milliseconds until the guest's next timer that are not worth a time-out, whose grain is 1 ms. An idle guest with a tick of
 * 250 Hz would otherwise spin through the rest of each millisecond, at a quarter of a core.
 */
const SPIN = 0.1;

/**
 * A PC in v86: one 32-bit CPU, RAM, firmware, serial ports, and PCI functions of ours on bus 0. All on the thread of
 * its event loop: the guest runs in turns of about a millisecond. A guest that idles still has its timer tick (Debian's
 * i386 kernel 250 times a second, a tenth to a sixth of a core); stop() ends that.
 */
export class V86Engine {
  /** Guest RAM. Its buffer moves when v86's memory grows: read views afresh in each turn. */
  readonly memory: GuestMemory;
  readonly #options: PcOptions;
  readonly #scheduler: Scheduler;
  readonly #events = new Events<V86EngineEvents>();
  readonly #board: Board;
  readonly #io: IoMap;
  readonly #config: PciConfig;
  readonly #window: MemoryWindow;
  readonly #interrupts: Interrupts;
  readonly #serial: Serial;
  readonly #firmware = new Firmware();
  readonly #attached = new Map<PciFunction, Plug>();
  /** There is none while a reset replaces it. */
  #instance: V86Instance | undefined;
  #boot: LinuxBoot | undefined;
  #state: V86EngineState = "stopped";
  /** The CPU is executing, so we are inside a handler. */
  #inGuest = false;
  /** Serial ports whose input ran out in this turn. */
  readonly #emptied: number[] = [];
  #interruptPending = false;
  #turn: unknown;
  /** The next turn is a time-out, which an interrupt cuts short. */
  #asleep = false;
  /** A reset is due or under way: no turn before it is done. */
  #resetting: Promise<void> | undefined;
  #resetDue = false;

  /**
   * Builds the PC, ready to start. With `state` it goes on where {@link saveState} left off.
   * @throws ERR_VIRTKIT_OPTION, ERR_VIRTKIT_MEMORY_SIZE, ERR_VIRTKIT_APPEND, ERR_VIRTKIT_INITRD, ERR_VIRTKIT_STATE,
   * ERR_VIRTKIT_V86_INTERNALS, ERR_VIRTKIT_V86_WASM
   */
  static async create(options: V86EngineOptions): Promise<V86Engine> {
    const pc = checkOptions(options);
    const library = options.library ?? (await import("v86"));
    const board = new Board(pc.acpi);
    const io = new IoMap(pc.memorySize, board);
    for (const [first, last] of board.claims()) io.claimPorts(first, last);
    const boot = options.state === undefined ? await resolveBoot(options.boot, pc.memorySize) : undefined;
    const instance = await createInstance({ ...pc, library, intercept: (imports) => board.install(imports, io) });
    const engine = new V86Engine({ ...pc, library }, instance, board, io, options.scheduler ?? defaultScheduler());
    try {
      engine.#powerOn(boot);
      if (options.state !== undefined) engine.#restore(options.state);
      return engine;
    } catch (error) {
      await engine.destroy();
      throw error;
    }
  }

  private constructor(options: PcOptions, instance: V86Instance, board: Board, io: IoMap, scheduler: Scheduler) {
    this.#options = options;
    this.#instance = instance;
    this.#board = board;
    this.#io = io;
    this.#config = board.config;
    this.#scheduler = scheduler;
    this.#window = new MemoryWindow(instance.v86.cpu);
    this.memory = this.#window.memory;
    this.#interrupts = new Interrupts(this.#window, () => this.#interruptChanged());
    this.#serial = new Serial(options.serialPorts);
    io.follow(this.#window);
    board.readText = (offset, length) =>
      new TextDecoder().decode(new Uint8Array(this.#machine().cpu.wasm_memory.buffer, offset >>> 0, length >>> 0));
    if (options.boot === undefined) board.firmwareSaid = (byte) => this.#firmware.write(byte);
    board.haltCpu = () => this.#haltCpu();
    board.loadKernel = () => {
      if (this.#boot !== undefined) placeLinux(this.#boot, this.memory);
      // Who gives a function gets asked again at the next power-on; the bytes need not stay.
      if (typeof options.boot === "function") this.#boot = undefined;
    };
  }

  get state(): V86EngineState {
    return this.#state;
  }

  /** Adds a listener; returns what removes it. */
  on<Name extends keyof V86EngineEvents>(name: Name, listener: (...values: V86EngineEvents[Name]) => void): () => void {
    return this.#events.on(name, listener);
  }

  /**
   * Plugs a function in at device * 8 + function of bus 0. Before start() the firmware finds and places it; in a running guest it
   * waits for a rescan of the bus.
   * @throws ERR_VIRTKIT_PCI_ADDRESS when the place is taken or does not exist
   */
  attach(device: PciFunction, devfn: number): void {
    if (!Number.isInteger(devfn) || devfn < 0 || devfn > 255)
      throw addressError(device, `device and function number ${devfn} are not 0..255`);
    const shown = `${(devfn >>> 3).toString(16).padStart(2, "0")}.${devfn & 7}`;
    const there = this.#config.functions[devfn];
    if (this.#config.occupied(devfn)) throw addressError(device, `${shown} belongs to the board; choose another slot`);
    if (there !== undefined) throw addressError(device, `${shown} is taken by ${there.name}; choose another slot`);
    if (this.#attached.has(device)) throw addressError(device, "it is plugged in already");
    const plug: Plug = { devfn, isIn: true };
    this.#attached.set(device, plug);
    this.#config.functions[devfn] = device;
    device.connect(this.#hostFor(device, plug));
    this.#mapBars();
    const irq = this.#options.acpi ? undefined : this.#interrupts.irqOf(devfn, device.interruptPin);
    if (irq !== undefined) device.configWrite(PCI_INTERRUPT_LINE, 1, irq);
  }

  /** Pulls a function out. The guest should have let go of it; one that was never plugged in is ignored. */
  detach(device: PciFunction): void {
    const plug = this.#attached.get(device);
    if (plug === undefined) return;
    this.#attached.delete(device);
    plug.isIn = false;
    this.#config.functions[plug.devfn] = undefined;
    this.#interrupts.remove(plug.devfn);
    this.#mapBars();
  }

  /** True when bus 0 has a function there, ours or the board's. */
  occupied(devfn: number): boolean {
    return this.#config.functions[devfn] !== undefined || this.#config.occupied(devfn);
  }

  /**
   * Lets the guest run, from where it stopped. Harmless while it runs.
   * @throws ERR_VIRTKIT_ENGINE_STATE when the guest is off, failed, or the engine was destroyed
   */
  start(): void {
    if (this.#state === "running") return;
    if (this.#state !== "stopped")
      throw new VirtkitError("ERR_VIRTKIT_ENGINE_STATE", `the machine is ${this.#state}: create another one`);
    this.#state = "running";
    if (this.#resetDue) this.#powerCycle();
    else if (this.#resetting === undefined) this.#schedule(0);
  }

  /** Halts the guest between two instructions, until start(). Called from a device it ends the present turn. */
  stop(): void {
    if (this.#state !== "running") return;
    this.#state = "stopped";
    this.#cancelTurn();
  }

  /** The reset button: functions are reset and the PC boots again. Waits until it is ready to run. */
  async reset(): Promise<void> {
    if (this.#state === "destroyed" || this.#state === "failed") return;
    if (this.#state === "off") this.#state = "stopped";
    this.#powerCycle();
    await this.#resetting;
  }

  /**
   * The power button of ACPI: a guest that listens to it switches itself off. What it does with it is its own affair; without ACPI
   * nothing happens.
   */
  pressPowerButton(): void {
    const acpi = this.#instance?.v86.cpu.devices.acpi;
    if (!this.#options.acpi || acpi === undefined) return;
    acpi.pm1_status |= PM1_POWER_BUTTON;
    if ((acpi.pm1_enable & PM1_POWER_BUTTON) !== 0) this.#interrupts.pulse(ACPI_IRQ);
  }

  /** Stops and lets go of everything. The engine cannot be used again. */
  async destroy(): Promise<void> {
    if (this.#state === "destroyed") return;
    this.#state = "destroyed";
    this.#cancelTurn();
    await this.#resetting;
    for (const device of [...this.#attached.keys()]) this.detach(device);
    await this.#instance?.destroy();
  }

  /**
   * Input for COM1 (port 0) .. COM4 (port 3). Queued; the guest gets it as it reads.
   * @throws ERR_VIRTKIT_OPTION when the machine has no such port
   */
  sendSerial(port: number, bytes: Uint8Array): void {
    if (!this.#serial.send(port, bytes))
      throw new VirtkitError("ERR_VIRTKIT_OPTION", `the machine has no serial port ${port}: raise serialPorts`);
    this.#wake();
  }

  /** A file for the firmware, by its name in QEMU's fw_cfg ("bootorder"); it is read at power-on. */
  setFirmwareFile(name: string, data: Uint8Array): void {
    this.#firmware.setFile(name, data);
  }

  /** Bytes given to {@link sendSerial} that still wait for the guest to read; at 0 the event `serialDrained` tells. */
  serialWaiting(port: number): number {
    return this.#serial.waiting(port);
  }

  /**
   * The whole machine as bytes for the option `state` of a machine with the same memory size. About as large as the memory the
   * guest has touched; zstd makes it a quarter of that.
   * @throws ERR_VIRTKIT_STATE while functions are plugged in, during a reset, or from inside a device
   */
  saveState(): Uint8Array {
    if (this.#attached.size > 0) throw stateError("unplug all PCI functions before the state is saved");
    if (this.#inGuest) throw stateError("a device cannot save the state while the guest is in its register");
    if (this.#resetting !== undefined)
      throw stateError("the machine is being reset: save its state when it runs again");
    const state = new Uint8Array(this.#machine().save_state());
    this.#window.sync();
    return state;
  }

  #restore(state: Uint8Array): void {
    const { cpu } = this.#machine();
    const original = cpu.zero_memory;
    // Fresh memory is zero but for the firmware, and clearing it again would make every page resident.
    cpu.zero_memory = (address, size) => original(address, Math.min(size, 1 << 20));
    try {
      const whole = state.byteOffset === 0 && state.byteLength === state.buffer.byteLength;
      this.#machine().restore_state((whole ? state.buffer : state.slice().buffer) as ArrayBuffer);
    } catch (cause) {
      this.#checkStateSize();
      throw new VirtkitError(
        "ERR_VIRTKIT_STATE",
        `the saved state does not load (${describe(cause)}): it must come from a machine with as many serial ports and the same acpi`,
        { cause },
      );
    } finally {
      cpu.zero_memory = original;
    }
    this.#checkStateSize();
    this.#window.sync();
  }

  #checkStateSize(): void {
    const size = this.#machine().cpu.memory_size[0] as number;
    if (size !== this.#window.size)
      throw stateError(`the saved state has ${size} bytes of memory and this machine ${this.#window.size}`);
  }

  /** A function that was pulled out reaches nothing any more, whatever it still has to say. */
  #hostFor(device: PciFunction, plug: Plug): PciHost {
    return {
      setIntx: (asserted) => {
        if (plug.isIn) this.#interrupts.setLevel(plug.devfn, device.interruptPin, asserted);
      },
      sendMsi: (address, data) => {
        if (plug.isIn) this.#message(address, data);
      },
      barsChanged: () => {
        if (plug.isIn) this.#mapBars();
      },
    };
  }

  #message(address: number, data: number): void {
    if (address >= MSI_FIRST && address < MSI_END) {
      if (this.#options.acpi) this.#interrupts.deliverMessage(data);
      return;
    }
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setUint32(0, data, true);
    this.memory.write(address, bytes);
  }

  #mapBars(): void {
    this.#io.update(this.#attached.keys());
  }

  #machine(): V86Instance["v86"] {
    if (this.#instance === undefined) throw new Error("the machine is being reset");
    return this.#instance.v86;
  }

  /** Wires the parts to the present instance. */
  #powerOn(boot: LinuxBoot | undefined): void {
    const { cpu } = this.#machine();
    this.#boot = boot;
    this.#window.follow(cpu);
    this.#interrupts.follow(cpu);
    this.#serial.follow(this.#instance);
    this.#firmware.follow(cpu);
    this.#config.follow(cpu.devices.pci);
    cpu.reboot_internal = () => this.#board.requestReset();
    const finished = cpu.codegen_finalize_finished;
    cpu.codegen_finalize_finished = (index, start, flags) => {
      finished(index, start, flags);
      this.#window.sync();
    };
    if (boot !== undefined) cpu.option_roms.push(linuxBootRom());
  }

  #powerCycle(): void {
    this.#resetDue = false;
    this.#cancelTurn();
    // Not before the present turn is over: a device may have asked, from inside the guest.
    this.#resetting ??= Promise.resolve()
      .then(() => this.#replaceInstance())
      .catch((error: unknown) => this.#fail(error))
      .finally(() => {
        this.#resetting = undefined;
        if (this.#state === "running") this.#schedule(0);
      });
  }

  async #replaceInstance(): Promise<void> {
    for (const device of this.#attached.keys()) device.reset();
    this.#mapBars();
    const boot = await resolveBoot(this.#options.boot, this.#options.memorySize);
    await this.#powerOff();
    this.#instance = await createInstance({
      ...this.#options,
      intercept: (imports) => this.#board.install(imports, this.#io),
    });
    this.#board.clear();
    this.#powerOn(boot);
  }

  /** Lets go of the instance first: making the next one is what has its memory collected. */
  async #powerOff(): Promise<void> {
    const old = this.#instance;
    this.#instance = undefined;
    this.#window.release();
    this.#interrupts.follow(undefined);
    this.#serial.follow(undefined);
    await old?.destroy();
  }

  #schedule(delay: number): void {
    this.#cancelTurn();
    this.#asleep = delay > SPIN;
    this.#turn = this.#asleep
      ? this.#scheduler.after(this.#runTurn, Math.floor(delay) + 1)
      : this.#scheduler.immediate(this.#runTurn);
  }

  #cancelTurn(): void {
    if (this.#turn !== undefined) this.#scheduler.cancel(this.#turn);
    this.#turn = undefined;
    this.#asleep = false;
  }

  #wake(): void {
    if (this.#asleep) this.#schedule(0);
  }

  #interruptChanged(): void {
    // Inside the guest v86 looks by itself before it gives the turn back.
    if (this.#inGuest) return;
    this.#interruptPending = true;
    this.#wake();
  }

  readonly #runTurn = (): void => {
    this.#turn = undefined;
    this.#asleep = false;
    this.#window.sync();
    let delay = 0;
    this.#inGuest = true;
    try {
      this.#serial.feed((port) => this.#emptied.push(port));
      if (this.#interruptPending) {
        this.#interruptPending = false;
        this.#machine().cpu.handle_irqs();
      }
      delay = this.#machine().cpu.main_loop();
    } catch (error) {
      this.#crashed(error);
    } finally {
      this.#inGuest = false;
      this.#window.sync();
    }
    this.#endTurn(delay);
  };

  #endTurn(delay: number): void {
    if (this.#board.routesDirty) {
      this.#board.routesDirty = false;
      this.#interrupts.reroute();
    }
    if (this.#state === "running" && this.#resetting === undefined)
      this.#schedule(this.#interruptPending || this.#serial.hungry ? 0 : delay);
    this.#serial.flush((port, bytes) => this.#events.emit("serial", port, bytes));
    for (const port of this.#emptied.splice(0)) this.#events.emit("serialDrained", port);
    for (const line of this.#firmware.take()) this.#events.emit("firmware", line);
    const request = this.#board.takeRequest();
    if (request !== undefined) this.#obey(request);
  }

  #obey(request: "poweroff" | "halt" | ResetCause): void {
    if (this.#state === "destroyed" || this.#state === "failed") return;
    if (request === "halt") {
      this.#events.emit("halt");
    } else if (request === "poweroff") {
      this.#state = "off";
      this.#cancelTurn();
      this.#events.emit("poweroff");
    } else {
      this.#resetDue = true;
      this.#cancelTurn();
      this.#events.emit("reset", request);
      if (this.#state === "running" && this.#resetDue) this.#powerCycle();
    }
  }

  /** The CPU stops at once and stays so until the turn ends. */
  #haltCpu(): void {
    this.#window.flags[0] = (this.#window.flags[0] as number) & ~(1 << 9);
    this.#window.halted[0] = 1;
  }

  #crashed(error: unknown): void {
    // v86 gives up where a CPU would shut down: an exception with no interrupt table to go by. That resets a PC.
    if (this.#machine().cpu.idtr_size[0] === 0 && isTrap(error)) this.#board.requestReset("triple-fault");
    else this.#fail(error);
  }

  #fail(error: unknown): void {
    if (this.#state === "destroyed") return;
    this.#state = "failed";
    this.#cancelTurn();
    const said = this.#board.takeMessage();
    const wrapped = new VirtkitError(
      "ERR_VIRTKIT_V86_FAULT",
      `the machine failed: ${said === undefined ? describe(error) : said}`,
      { cause: error },
    );
    this.#events.emit("fault", wrapped);
  }
}

async function resolveBoot(boot: V86EngineOptions["boot"], memorySize: number): Promise<LinuxBoot | undefined> {
  const resolved = typeof boot === "function" ? await boot() : boot;
  if (resolved !== undefined) checkLinuxBoot(resolved, memorySize);
  return resolved;
}

function isTrap(error: unknown): boolean {
  return error instanceof Error && error.name === "RuntimeError";
}

function describe(error: unknown): string {
  return error instanceof Error && error.message !== "" ? error.message : String(Object(error).message ?? error);
}

function addressError(device: PciFunction, why: string): VirtkitError {
  return new VirtkitError("ERR_VIRTKIT_PCI_ADDRESS", `cannot plug in ${device.name}: ${why}`);
}

function stateError(why: string): VirtkitError {
  return new VirtkitError("ERR_VIRTKIT_STATE", why);
}
