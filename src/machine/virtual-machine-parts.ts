import type { Environment } from "../common/environment.ts";
import type { LinuxBoot } from "../engine/v86/index.ts";
import type { BackendFactory } from "./backend-factory.ts";
import type { MachineDescription } from "./description.ts";
import type { MachineTrace } from "./machine-host.ts";
import type { TypeRegistry } from "./object-model/registry.ts";

/** How a machine gets from power-on to its devices. */
export type MachineBoot =
  /** A guest of ours: its init answers on the serial line, and a saved state may stand in for its boot. */
  | {
      readonly from: "guest";
      /** Asked for at power-on; with a saved state not before the first reset. */
      readonly linux: () => Promise<LinuxBoot>;
      readonly loadState: () => Promise<Uint8Array | undefined>;
      readonly saveState: (state: Uint8Array) => Promise<void>;
      /** Where init mounts a disk: "vda:/root". */
      readonly data: string | undefined;
      /** TERM of the user's terminal, for the guest's shell. */
      readonly term: string | undefined;
    }
  /** Somebody else's kernel: it finds the devices as it boots. */
  | { readonly from: "kernel"; readonly linux: () => Promise<LinuxBoot> }
  /** The firmware boots from a disk. */
  | { readonly from: "disk" };

/** Everything that a machine is made of, all of it handed in. */
export interface VirtualMachineParts {
  readonly description: MachineDescription;
  readonly boot: MachineBoot;
  readonly bios: Uint8Array;
  readonly vgaBios: Uint8Array;
  readonly wasm: Uint8Array;
  /** The v86 module's namespace; left out, the installed package is imported. */
  readonly library?: unknown;
  readonly registry: TypeRegistry;
  readonly backends: BackendFactory;
  readonly environment: Environment;
  readonly name?: string | undefined;
  /** Adds the ports over which {@link VirtualMachine.exec} runs commands. */
  readonly agent: boolean;
  /** Adds the port of the helper by which a prepared guest takes part in plugging and powering down. Default: with the agent. */
  readonly control?: boolean;
  /** A guest that reboots ends the machine. */
  readonly noReboot: boolean;
  readonly trace?: MachineTrace | undefined;
}
