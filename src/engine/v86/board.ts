import type { AccessSize } from "../../transport/pci/function.ts";
import type { ResetCause } from "./events.ts";
import { DEBUG_PORT, DEBUG_PRESENT } from "./firmware.ts";
import type { V86Imports } from "./internals.ts";
import type { BoardPorts, IoMap } from "./io-map.ts";
import { BOOT_PORT } from "./linux-boot.ts";
import { PCI_CONFIG_ADDRESS, PCI_CONFIG_DATA, PciConfig } from "./pci-config.ts";

/** ACPI PM1 control of v86's power management block. */
const PM1_CONTROL = 0xb004;
const SLEEP_ENABLE = 1 << 13;
const SLEEP_TYPE = 7 << 10;
/** The hot-plug registers of SeaBIOS's ACPI tables. Read as ones they tell Linux that each slot is to be removed. */
const HOTPLUG_FIRST = 0xae00;
const HOTPLUG_LAST = 0xae0f;
/** System control port A; bit 0 resets the CPU. */
const PORT_A = 0x92;
const FAST_RESET = 1;

type Request = "poweroff" | "halt" | ResetCause;

/** The registers of the board that the engine looks after itself, and what the guest asked of the machine through them. */
export class Board implements BoardPorts {
  readonly config: PciConfig;
  /** The routes of the interrupt pins may have changed in this turn. */
  routesDirty = false;
  /** Makes the CPU stop where it is. */
  haltCpu: () => void = () => {};
  /** The option ROM runs: the kernel is to be put into memory. */
  loadKernel: () => void = () => {};
  /** A byte on the firmware's debug port; without it there is none. */
  firmwareSaid: ((byte: number) => void) | undefined;
  /** Text in v86's own memory. */
  readText: (offset: number, length: number) => string = () => "";
  readonly #acpi: boolean;
  #request: Request | undefined;
  #message: string | undefined;

  constructor(acpi: boolean) {
    this.#acpi = acpi;
    this.config = new PciConfig(() => {
      this.routesDirty = true;
    });
  }

  /** The ranges of ports, first and last, that come here. */
  claims(): (readonly [number, number])[] {
    const always: (readonly [number, number])[] = [
      [PCI_CONFIG_ADDRESS, PCI_CONFIG_DATA + 3],
      [BOOT_PORT, BOOT_PORT],
      [PORT_A, PORT_A],
      [DEBUG_PORT, DEBUG_PORT],
    ];
    return this.#acpi ? [...always, [PM1_CONTROL, PM1_CONTROL + 1], [HOTPLUG_FIRST, HOTPLUG_LAST]] : always;
  }

  /** Puts board and map in front of what v86 gives its WebAssembly module. */
  install(imports: V86Imports, io: IoMap): void {
    io.install(imports);
    imports.cpu_event_halt = () => {
      this.#request ??= "halt";
    };
    // The engine schedules the turns, so v86 need not be told to wake up.
    imports.stop_idling = () => {};
    imports.console_log_from_wasm = (offset, length) => {
      this.#message = this.readText(offset, length);
    };
  }

  read(port: number, size: AccessSize): number | undefined {
    if (port >= PCI_CONFIG_DATA && port < PCI_CONFIG_DATA + 4) return this.config.read(port, size);
    if (port === DEBUG_PORT) return this.firmwareSaid === undefined ? undefined : DEBUG_PRESENT;
    return port >= HOTPLUG_FIRST && port <= HOTPLUG_LAST ? 0 : undefined;
  }

  write(port: number, size: AccessSize, value: number): boolean {
    if (port >= PCI_CONFIG_DATA && port < PCI_CONFIG_DATA + 4) return this.config.write(port, size, value);
    if (port === DEBUG_PORT) this.firmwareSaid?.(value & 0xff);
    else if (port === BOOT_PORT) this.loadKernel();
    else if (port === PORT_A && (value & FAST_RESET) !== 0) this.requestReset();
    else if (port === PM1_CONTROL && size === 2 && (value & SLEEP_ENABLE) !== 0 && (value & SLEEP_TYPE) === 0)
      this.#ask("poweroff");
    return false;
  }

  requestReset(cause: ResetCause = "guest"): void {
    this.#ask(cause);
  }

  takeRequest(): Request | undefined {
    const request = this.#request;
    this.#request = undefined;
    return request;
  }

  /** The last words of v86's WebAssembly module, if it failed. */
  takeMessage(): string | undefined {
    const message = this.#message;
    this.#message = undefined;
    return message;
  }

  /** Forgets what the guest of before asked for. */
  clear(): void {
    this.#request = undefined;
    this.#message = undefined;
    this.routesDirty = false;
  }

  #ask(request: Request): void {
    this.#request = request;
    this.haltCpu();
  }
}
